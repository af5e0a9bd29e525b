"""State dicts in PyTorch's own format, read without running their code; and tensors of every sort made dense."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from paramdex_schemas import CheckpointError
from paramdex_schemas.foreign import reading

_ZIP = b"PK\x03\x04"


def load_state(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a state dict. They stay on the disk where the file can be mapped, as files of PyTorch 1.6 and
    later can. Parameters count as tensors, and a training program's checkpoint may hold them one level further down.

    Raises CheckpointError, which calls the file ``what``, where it holds no state dict, or more than tensors.
    """
    with reading(what, CheckpointError, "is damaged or holds more than tensors", "convert it to safetensors"):
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP)) == _ZIP
        with warnings.catch_warnings():  # we raise an error of our own for what cannot be read
            warnings.simplefilter("ignore")
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except UnpicklingError as error:  # its message says how to load it all the same, and so run its code
                raise ValueError(_refused(str(error))) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{what} is not a state dict: it holds a {type(loaded).__name__}; save model.state_dict()"
        )
    with reading(what, CheckpointError):
        return _state_dict(loaded, what)


def _refused(said: str) -> str:
    """The reason why PyTorch's safe reader refuses a pickle, from its message."""
    called = re.search(r"GLOBAL (\S+)", said)
    why = re.search(r"WeightsUnpickler error: (.+)", said)
    if called:
        return f"it calls {called[1]}, and no code of a model's is run"
    return why[1] if why else "it is no pickle of tensors"


def _state_dict(loaded: Mapping[Any, Any], what: str) -> dict[str, torch.Tensor]:
    """The tensors of a mapping, or of the only mapping in it that has any. Raises CheckpointError for none, or two."""
    tensors = _tensors(loaded)
    if tensors:
        return tensors
    inner = {key: _tensors(value) for key, value in loaded.items() if isinstance(value, Mapping)}
    held = [key for key, values in inner.items() if values]
    if len(held) == 1:
        return inner[held[0]]
    names = [str(key) for key in held or loaded]
    found = f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" or "nothing"
    raise CheckpointError(f"{what} is not a state dict: it holds {found}; save the model's state dict alone")


def _tensors(values: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {str(name): value.detach() for name, value in values.items() if isinstance(value, torch.Tensor)}


def usual(tensor: torch.Tensor, part: int | None = None) -> torch.Tensor:
    """The tensor as a dense one; or only the ``part``-th entry of its first axis, which stays. Raises ValueError where
    it has no numbers.
    """
    if tensor.is_meta:
        raise ValueError("it has no numbers: it was saved from the device meta")
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense if part is None else dense[part : part + 1]
