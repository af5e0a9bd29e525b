"""The weight files of a model folder, read one tensor at a time: safetensors, or PyTorch's own format without code."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from paramdex_schemas import CheckpointError

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STEMS = ("model.safetensors", "pytorch_model.bin")
"""The names under which transformers saves weights; the first that is there is read."""
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names of checkpoints that were converted from TensorFlow (bert-base-uncased, for one) -> as transformers has them."""


@dataclass
class TensorFiles:
    """The opened weight files of a model. Use as a context manager."""

    source: str
    paths: list[Path]
    _stack: ExitStack = field(default_factory=ExitStack)
    _where: dict[str, Any] = field(default_factory=dict)
    _stored: dict[str, str] = field(default_factory=dict)
    """Name -> what the file calls it."""

    @classmethod
    def open(cls, source: str, folder: Path, stems: Sequence[str] = _STEMS) -> TensorFiles:
        """The weight files in ``folder``, sharded or not, of the first of these names that is there.

        Raises CheckpointError where they cannot be read.
        """
        files = cls(source, weight_files(source, folder, stems))
        for path in files.paths:
            try:
                path.open("rb").close()  # safe_open takes every failure for a missing file
            except OSError as error:
                raise CheckpointError(f"{source}: {path.name} cannot be read ({error.strerror})") from error
            handle = files._open_safetensors(path) if path.suffix == ".safetensors" else files._load_pickle(path)
            names = {_modern(stored): stored for stored in handle.keys()}  # noqa: SIM118  # handles are no mappings
            files._where.update(dict.fromkeys(names, handle))
            files._stored.update(names)
        return files

    def _open_safetensors(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.source}: {path.name} is truncated or no safetensors file ({error}); fetch it again"
            ) from error

    def _load_pickle(self, path: Path) -> dict[str, torch.Tensor]:
        """A state dict in PyTorch's format; nothing but tensors is unpickled, and they stay on the disk if possible."""
        for mmap in (True, False):  # files older than PyTorch 1.6 cannot be mapped
            try:
                with warnings.catch_warnings():  # what cannot be read is an error of ours below
                    warnings.simplefilter("ignore")
                    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
                reason: Exception = error
                continue
            if not isinstance(state, dict):
                raise CheckpointError(f"{self.source}: {path.name} holds no state dict")
            return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
        line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise CheckpointError(
            f"{self.source}: {path.name} is damaged or holds more than tensors ({line}); convert it to safetensors"
        ) from reason

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> list[str]:
        return sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        handle, name = self._where[name], self._stored[name]
        return tuple(handle[name].shape if isinstance(handle, dict) else handle.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """float32, float16, ...; for what is not floating point the name that the file gives it."""
        handle, name = self._where[name], self._stored[name]
        if isinstance(handle, dict):
            return str(handle[name].dtype).removeprefix("torch.")
        stored = handle.get_slice(name).get_dtype()
        return _DTYPES.get(stored, stored)

    def tensor(self, name: str, part: int | None = None) -> torch.Tensor:
        """A tensor, or only the ``part``-th entry of its first axis, which stays (1 x ...)."""
        handle, name = self._where[name], self._stored[name]
        if part is None:
            return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)
        return (handle[name] if isinstance(handle, dict) else handle.get_slice(name))[part : part + 1]


def _modern(name: str) -> str:
    """A tensor's name as transformers has it today."""
    old = next((ending for ending in _OLD_ENDINGS if name.endswith(ending)), None)
    return name if old is None else name.removesuffix(old) + _OLD_ENDINGS[old]


def weight_files(source: str, folder: Path, stems: Sequence[str] = _STEMS) -> list[Path]:
    """The weight files of a model folder, sharded or not, in order of their names.

    Raises CheckpointError where there are none or a shard is missing.
    """
    for stem in stems:
        index = folder / f"{stem}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{source}: {index.name} is damaged; fetch it again") from error
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise CheckpointError(f"{source}: the shard {missing[0]} is missing; fetch it again")
            return [folder / name for name in names]
        if (folder / stem).is_file():
            return [folder / stem]
    raise CheckpointError(
        f"{source} has no {stems[0]}; save it with model.save_pretrained(folder), which writes one"
    )
