"""Where a model comes from: a local folder, the hub's cache or the hub; its config.json; and texts to run it on."""

from __future__ import annotations

import hashlib
import io
import lzma
import re
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from paramdex_builder.read.contents import in_place_of_a_folder, without_config
from paramdex_builder.read.family import shown
from paramdex_builder.read.hub import ADAPTER_CONFIG, Origin, on_hub
from paramdex_schemas import BuildError, CheckpointError, FamilyError
from paramdex_schemas.arguments import given_path
from paramdex_schemas.foreign import all_of, read_bytes, read_json, reading

_TOKENIZER = re.compile(
    r"(tokenizer|vocab)[^/]*|merges\.txt|(special_tokens_map|added_tokens|tekken)\.json|[^/]+\.model"
)
_DIGITS = 12
"""Hexadecimal digits of a text's SHA-256 that are kept."""


def locate(source: str) -> Origin:
    """Where the files of a model are: a local folder, or a name on the hub, with @REVISION where one is meant.

    Raises CheckpointError where there is neither such a folder nor such a model.
    """
    path = Path(source)
    with reading(source, CheckpointError):
        if path.is_dir():
            return Origin(source, path)
        if path.exists():
            raise CheckpointError(in_place_of_a_folder(path))
    origin = on_hub(source)
    if origin is None:
        raise CheckpointError(f"there is no folder {source}")
    return origin


def read_config(origin: Origin) -> dict[str, Any]:
    """config.json, with a model_type. Raises CheckpointError."""
    source = origin.source
    if not origin.has("config.json") and origin.has(ADAPTER_CONFIG):
        raise CheckpointError(f"{source} is an adapter; say with --base which model it was tuned from")
    if not origin.has("config.json"):
        raise CheckpointError(f"{source} is not a model: it has no config.json; {without_config(origin)}")
    data = read_json(origin.path("config.json"), f"{source}: config.json", CheckpointError)
    if not isinstance(data.get("model_type"), str):
        raise CheckpointError(f"{source}: config.json names no model_type")
    return data


def tokenizer_files(origin: Origin) -> list[str]:
    """The names of all that a tokenizer is read from."""
    return [name for name in origin.names if _TOKENIZER.fullmatch(name)]


def knows(model_type: str) -> bool:
    """Whether transformers has models of a type."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def typed_config(source: str, folder: Path) -> Any:
    """The transformers config, with the defaults of its model type. Raises CheckpointError."""
    from transformers import AutoConfig

    with reading(f"{source}: config.json", CheckpointError, "cannot be read by transformers"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def untyped_config(data: dict[str, Any]) -> SimpleNamespace:
    """What config.json says, without the defaults of its model's type: under its own names and under those that
    transformers has for them in other types (``attribute_map``), with ``tie_word_embeddings``.

    transformers 4 left that out where it had its default value. Then the default of the model's type in transformers
    counts. For a type that transformers does not know, it is true for a language model, as in transformers 4.

    Raises FamilyError where it is neither true nor false.
    """
    from transformers import CONFIG_MAPPING

    said = data.get("tie_word_embeddings")
    if not (said is None or isinstance(said, bool)):
        raise FamilyError(f"config.json: tie_word_embeddings is {shown(said)}; it is true or false")

    model_type = data["model_type"]
    known = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401  # its get is not lazy
    data = dict(data)
    for usual, own in (known.attribute_map if known else {}).items():
        given = [data[name] for name in (usual, own) if name in data]  # the usual name comes first
        data |= dict.fromkeys((usual, own), given[0]) if given else {}
    if "tie_word_embeddings" in data:
        return SimpleNamespace(**data)
    if known:
        tied = bool(getattr(known(), "tie_word_embeddings", False))
    else:
        tied = any(re.search(r"LM|ConditionalGeneration", str(name)) for name in data.get("architectures") or ())
    return SimpleNamespace(**data, tie_word_embeddings=tied)


def read_text(path: Path) -> str:
    """A text file of the user's, plain or compressed with xz. Raises BuildError where it cannot be read as text."""
    return _text(path)[0]


def read_words(path: str | PathLike[str]) -> str:
    """A text to run a model on, as ``read_text``. Raises BuildError where it cannot be read or is empty."""
    return read_named_words(path)[0]


def read_named_words(path: str | PathLike[str]) -> tuple[str, str]:
    """As ``read_words``, and what tells this text from others: the file's name and how its SHA-256 begins."""
    path = given_path(path, "the text", BuildError)
    text, raw = _text(path)
    if not text.strip():
        raise BuildError(f"{path} is empty; give a text of some hundred words or more")
    return text, f"{path.name}, SHA-256 {hashlib.sha256(raw).hexdigest()[:_DIGITS]}"


def _text(path: Path) -> tuple[str, bytes]:
    """What a text file says, and the bytes of the file, which is read once: it may be a pipe."""
    with reading(path, BuildError, "cannot be read as text"):
        raw = said = read_bytes(path)
        if path.suffix == ".xz":
            with lzma.open(io.BytesIO(raw)) as file:
                said = all_of(file.read)
        return said.decode("utf-8-sig"), raw
