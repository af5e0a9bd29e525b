"""Tokenizers: a folder's own is read by transformers, without any code of the folder's, or refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paramdex_schemas import CheckpointError, foreign

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_JSON = (FILE, CONFIG, "special_tokens_map.json", "added_tokens.json")
_TAKEN_BY_ALL = ("tekken.json", "tokenizer.model", "tiktoken.model")
"""Vocabularies that transformers converts for any class of tokenizers."""
_SAVE = f"save_pretrained(folder) of a fast tokenizer writes a {FILE}, which is read whatever the type"
_VOCABULARIES = {FILE, "vocab.json", "vocab.txt", "tekken.json"}


def load_tokenizer(source: str, folder: Path) -> Any:
    """The tokenizer in ``folder`` (of transformers, with a backend of the tokenizers library). It is read from
    tokenizer.json as that stands. Where there is none, it is what the class of its type makes of its vocabulary files.

    Raises CheckpointError where there is none, it cannot be read, or it is code of the folder's, which never runs.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with reading(source):
        if not any(file.name in _VOCABULARIES or file.suffix == ".model" for file in folder.iterdir()):
            raise CheckpointError(f"{source} has no tokenizer; save it with tokenizer.save_pretrained(folder)")
        parts = {name: _read_json(source, folder / name) for name in _JSON if (folder / name).is_file()}
    with reading(source, ", ".join(parts if FILE in parts else [*_vocabularies(folder), *parts])):
        if FILE in parts:
            return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
        _check_class(source, folder, parts.get(CONFIG, {}))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        _check_files(source, folder, type(tokenizer))
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise CheckpointError(f"{source}: {type(tokenizer).__name__} is a tokenizer without a {FILE}; {_SAVE}")
        return tokenizer


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of its special tokens: those marked so, and those with a role, such as the end of a text."""
    ids = tokenizer.get_vocab()
    marked = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | {ids[token] for token in tokenizer.all_special_tokens if token in ids}


@contextmanager
def reading(source: str, files: str = "") -> Iterator[None]:
    """A context for reading ``files`` of a tokenizer: errors of libraries become a CheckpointError of one line. Nothing
    is printed, as Rust prints its panics and warnings.
    """
    what = f"{source}: its tokenizer{f' ({files})' if files else ''}"
    with foreign.reading(what, CheckpointError), _silent():
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """Discards standard output and error (1 and 2) within the block; a closed one stays closed."""
    kept = {}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            with suppress(OSError):
                kept[stream] = os.dup(stream)
                os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def _read_json(source: str, file: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises CheckpointError."""
    with reading(source, file.name):
        data = json.loads(foreign.read_bytes(file).decode())
        if not isinstance(data, dict):
            raise TypeError("it holds no JSON object")
        if file.name == FILE and not isinstance(data.get("model"), dict):
            raise TypeError("it has no model, which holds the vocabulary")
        return data


def _check_class(source: str, folder: Path, config: dict[str, Any]) -> None:
    """Refuses a tokenizer that is code in the model's folder, or a class that finds no vocabulary there.

    Raises CheckpointError.
    """
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    code = config.get("auto_map")
    code = code.get("AutoTokenizer") if isinstance(code, dict) else code
    if code:
        names = ", ".join(map(str, filter(None, code))) if isinstance(code, (list, tuple)) else code
        raise CheckpointError(
            f"{source}: its tokenizer is code of its own ({names}), which is never run, and there is no {FILE}; {_SAVE}"
        )
    model = _read_json(source, folder / "config.json") if (folder / "config.json").is_file() else {}
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    name = named or TOKENIZER_MAPPING_NAMES.get(str(model.get("model_type"))) or "TokenizersBackend"
    found = tokenizer_class_from_name(name) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(f"{source}: transformers has no tokenizer {name}, and there is no {FILE}; {_SAVE}")
    _check_files(source, folder, found)


def _check_files(source: str, folder: Path, of: Any) -> None:
    """Raises CheckpointError where a class does not find its files: transformers then makes up a vocabulary of a few
    special tokens.
    """
    files = dict(getattr(of, "vocab_files_names", {}))
    merges = files.pop("merges_file", None)
    own = [name for name in files.values() if name and name != FILE]
    whole = merges is None or (folder / merges).is_file()
    if not any((folder / name).is_file() for name in (*(own if whole else ()), *_TAKEN_BY_ALL, FILE)):
        wanted = " or ".join([*(f"{name} with {merges}" if merges else name for name in own), FILE])
        raise CheckpointError(
            f"{source}: {of.__name__} reads its vocabulary from {wanted}, and the folder has only "
            f"{', '.join(_vocabularies(folder))}; {_SAVE}"
        )


def _vocabularies(folder: Path) -> list[str]:
    """The files of a folder that are some tokenizer's vocabulary, by their names."""
    names = {*_VOCABULARIES, "merges.txt"}
    return sorted(file.name for file in folder.iterdir() if file.name in names or file.suffix in (".model", ".codes"))
