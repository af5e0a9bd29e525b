"""Where a model comes from: a local folder, the hub's cache or the hub; its config.json; and texts to run it on."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from paramdex_schemas import BuildError, CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
"""What a folder of PEFT's holds in place of a model's config."""
_WANTED_FILES = [
    "config.json", ADAPTER_CONFIG, "adapter_model.bin",
    "*.safetensors", "*.index.json", "pytorch_model*.bin", "tokenizer*", "vocab*", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "*.model",
]  # fmt: skip


def locate(source: str) -> tuple[Path, str | None]:
    """The local folder of a model and, for one from the hub, its revision.

    Raises CheckpointError where there is neither such a folder nor such a model.
    """
    path = Path(source)
    if path.is_dir():
        return path, None
    if path.exists():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json and the weights")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise CheckpointError(f"there is no folder {source}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, allow_patterns=_WANTED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"there is no folder {source}, and no model of that name in the hub's cache or on the hub ({reason})"
        ) from error
    return folder, folder.name


def read_config(source: str, folder: Path) -> dict[str, Any]:
    """config.json, with a model_type. Raises CheckpointError."""
    file = folder / "config.json"
    if not file.is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{source} is an adapter; say with --base which model it was tuned from")
    if not file.is_file():
        raise CheckpointError(f"{source} is no model: it has no config.json")
    try:
        data = json.loads(file.read_text("utf-8"))
        model_type = data.get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: config.json is not a JSON object ({error})") from error
    if not isinstance(model_type, str):
        raise CheckpointError(f"{source}: config.json names no model_type")
    return data


def typed_config(source: str, folder: Path) -> Any:
    """The transformers config, with the defaults of its model type. Raises CheckpointError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds of errors here
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: transformers cannot read config.json ({reason})") from error


def untyped_config(data: dict[str, Any]) -> SimpleNamespace:
    """What config.json says, without the defaults of its model's type: under its own names and under those that
    transformers has for them in other types (``attribute_map``), with ``tie_word_embeddings``.

    transformers 4 left that out where it was its default. Then it is the default of the model's type in transformers;
    of a type of nobody's there, true of a language model, as transformers 4 had it.
    """
    from transformers import CONFIG_MAPPING

    model_type = data["model_type"]
    known = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401  # its get is not lazy
    data = dict(data)
    for usual, own in (known.attribute_map if known else {}).items():
        given = [data[name] for name in (usual, own) if name in data]  # as transformers has it where there are both
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
    try:
        raw = path.read_bytes()
        return (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8-sig")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BuildError(f"{path} cannot be read as text ({reason})") from error
