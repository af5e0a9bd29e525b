"""The weight files of a model folder, read one tensor at a time: safetensors, or PyTorch's own format without code."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from paramdex_schemas import CheckpointError

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STEMS = ("model.safetensors", "pytorch_model.bin")
"""The names under which transformers saves weights; the first that is there is read, whole before in shards."""
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names of checkpoints that were converted from TensorFlow (bert-base-uncased, for one) -> as transformers has them."""
Stamp = tuple[int, int, int] | None
"""A file's inode, size in bytes and time of its last change in ns: others where it was replaced. None: it is gone."""


@dataclass(frozen=True)
class _Stored:
    """A tensor of a file: what the file calls it, its shape and dtype, and of PyTorch's format the tensor itself."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    mapped: torch.Tensor | None = None


@dataclass
class TensorFiles:
    """The weight files of a model. Nothing of them stays open or in memory between two reads."""

    source: str
    paths: list[Path]
    promised: dict[str, Path] = field(default_factory=dict)
    """Tensor -> the shard in which an index says that it is."""
    _tensors: dict[str, _Stored] = field(default_factory=dict)
    _copies: dict[str, list[_Stored]] = field(default_factory=dict)
    """Tensor -> all that there are of it, in order of their shards, where several shards hold one of its name."""

    @classmethod
    def open(cls, source: str, folder: Path, stems: Sequence[str] = _STEMS) -> TensorFiles:
        """The weight files in ``folder``, sharded or not, of the first of these names that is there.

        Of a tensor that several shards hold, the one in the shard that the index names is read; one that it does not
        name at all is read too, as transformers does.

        Raises CheckpointError where they cannot be read, or are not what the index says.
        """
        files = cls(source, *weight_files(source, folder, stems))
        for path in files.paths:
            try:
                path.open("rb").close()  # safe_open takes every failure for a missing file
            except OSError as error:
                raise CheckpointError(f"{source}: {path.name} cannot be read ({error.strerror})") from error
            if path.suffix == ".safetensors":
                files._list_safetensors(path)
            else:
                for name, tensor in files._load_pickle(path).items():
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    files._add(_Stored(path, name, tuple(tensor.shape), dtype, tensor))
        files._check_promises()
        return files

    def _add(self, stored: _Stored) -> None:
        """List a tensor. Raises CheckpointError for one in a second shard where the index names neither."""
        name = _modern(stored.name)
        shard, other = self.promised.get(name), self._tensors.get(name)
        if other is not None and other.path != stored.path:
            self._copies.setdefault(name, [other]).append(stored)
            if shard is None:
                raise CheckpointError(
                    f"{self.source}: tensor {stored.name} is in {other.path.name} and in {stored.path.name}, and the "
                    "index does not say which counts; save the model again"
                )
            if stored.path != shard:
                return
        self._tensors[name] = stored

    def _check_promises(self) -> None:
        """Raises CheckpointError where a tensor is not in the shard that the index names."""
        for name, shard in self.promised.items():
            found = self._tensors.get(name)
            if found is None or found.path != shard:
                where = "it is not there" if found is None else f"it is in {found.path.name}"
                raise CheckpointError(
                    f"{self.source}: the index says that tensor {name} is in {shard.name}, but {where}; fetch both "
                    "again, or save the model again"
                )

    def check_copies(self) -> None:
        """Raises CheckpointError where transformers would not read the tensors that this does: of several copies it
        takes that of the last shard.
        """
        for name, copies in self._copies.items():
            read, last = self._tensors[name], copies[-1]
            same = read.path == last.path or (read.shape, read.dtype) == (last.shape, last.dtype)
            if not same or not torch.equal(self._read(read), self._read(last)):
                raise CheckpointError(
                    f"{self.source}: the index says that tensor {name} is in {read.path.name}, but transformers would "
                    f"run the one in {last.path.name}, which is different; take that out"
                )

    def alias(self, name: str, of: str) -> None:
        """Make a tensor be found under a second name."""
        self._tensors[name] = self._tensors[of]

    def _list_safetensors(self, path: Path) -> None:
        with self._safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                part = file.get_slice(name)
                dtype = part.get_dtype()
                self._add(_Stored(path, name, tuple(part.get_shape()), _DTYPES.get(dtype, dtype)))

    def _safetensors(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
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

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """float32, float16, ...; for what is not floating point the name that the file gives it."""
        return self._tensors[name].dtype

    def tensor(self, name: str, part: int | None = None) -> torch.Tensor:
        """A tensor, or only the ``part``-th entry of its first axis, which stays (1 x ...)."""
        return self._read(self._tensors[name], part)

    def _read(self, stored: _Stored, part: int | None = None) -> torch.Tensor:
        here = slice(part, None if part is None else part + 1)
        if stored.mapped is not None:
            return stored.mapped[here]
        with self._safetensors(stored.path) as file:
            return file.get_tensor(stored.name) if part is None else file.get_slice(stored.name)[here]


def _modern(name: str) -> str:
    """A tensor's name as transformers has it today."""
    old = next((ending for ending in _OLD_ENDINGS if name.endswith(ending)), None)
    return name if old is None else name.removesuffix(old) + _OLD_ENDINGS[old]


def same_name(name: str, other: str) -> bool:
    """Whether two names mean one thing, one of them below a module that the other begins in."""
    return f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}")


def weight_files(source: str, folder: Path, stems: Sequence[str] = _STEMS) -> tuple[list[Path], dict[str, Path]]:
    """The weight files of a model folder, sharded or not, in order of their names; and of every tensor that an index
    names the shard where it says it is.

    Raises CheckpointError where there are none or a shard is missing.
    """
    for stem in stems:
        if (folder / stem).is_file():  # before its shards, as transformers has it
            return [folder / stem], {}
        index = folder / f"{stem}.index.json"
        if index.is_file():
            try:
                shards = dict(json.loads(index.read_text("utf-8"))["weight_map"].items())
                names = sorted(set(shards.values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{source}: {index.name} is damaged; fetch it again") from error
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise CheckpointError(f"{source}: the shard {missing[0]} is missing; fetch it again")
            return [folder / name for name in names], {_modern(name): folder / shard for name, shard in shards.items()}
    raise CheckpointError(f"{source} has no {stems[0]}; save it with model.save_pretrained(folder), which writes one")


def stamps(paths: Sequence[Path]) -> list[Stamp]:
    """The stamp of each file; a link's is that of the file it leads to."""

    def stamp(path: Path) -> Stamp:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    return [stamp(path) for path in paths]
