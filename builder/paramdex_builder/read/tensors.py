"""The weight files of a model folder, read one tensor at a time: safetensors, or PyTorch's own format without code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from paramdex_builder.read.hub import Origin
from paramdex_builder.read.pickled import load_state, usual
from paramdex_builder.read.weight_files import STEMS, choose
from paramdex_schemas import CheckpointError
from paramdex_schemas.foreign import reading

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names of checkpoints that were converted from TensorFlow (bert-base-uncased, for one) -> as transformers has them."""
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that torch.compile, FSDP and activation checkpointing insert into tensor names, at any depth."""
_OUTSIDE = ("module.", "base_model.model.")
"""Prefixes that DataParallel and PEFT put before all names."""
Stamp = tuple[int, int, int] | None
"""A file's inode, size in bytes and time of its last change in ns, which differ if it was replaced. None: it is gone.
"""


class Tensors(Protocol):
    """The tensors of one model, each by its name: those of its files, or what an adapter makes of them."""

    @property
    def paths(self) -> list[Path]:
        """All files that decide what the tensors hold."""

    def __contains__(self, name: str) -> bool: ...

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """float32, float16, ...; or, if not floating point, the file's own name for it."""

    def tensor(self, name: str, part: int | None = None) -> torch.Tensor:
        """A tensor, or only the ``part``-th entry of its first axis, which stays (1 x ...). Raises CheckpointError."""

    def alias(self, name: str, of: str) -> None:
        """Make a tensor be found under a second name."""

    def check_copies(self) -> None:
        """Raises CheckpointError where transformers would not read these tensors."""


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
    _mapped: dict[Path, Stamp] = field(default_factory=dict)
    """The files whose tensors are mapped, with their stamps: what is no longer there must not be read."""

    @classmethod
    def open(cls, origin: Origin, stems: Sequence[str] = STEMS) -> TensorFiles:
        """The weight files of a model, sharded or not, of the first of these names that is there; fetched where they
        are on the hub.

        Of a tensor that several shards hold, the one in the shard that the index names is read; one that it does not
        name at all is read too, as transformers does.

        Raises CheckpointError where they cannot be read, or are not what the index says.
        """
        source = origin.source
        chosen = choose(origin, stems)
        origin.fetch(chosen.names)
        promised = {_modern(name): origin.folder / shard for name, shard in chosen.index.items()}
        files = cls(source, [origin.folder / name for name in chosen.names], promised)
        for path in files.paths:
            try:
                path.open("rb").close()  # safe_open takes every failure for a missing file
            except OSError as error:
                raise CheckpointError(f"{source}: {path.name} cannot be read ({error.strerror})") from error
            if path.suffix == ".safetensors":
                files._list_safetensors(path)
            else:
                files._mapped[path] = stamps([path])[0]
                for name, tensor in load_state(path, f"{source}: {path.name}").items():
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    with reading(f"{source}: tensor {name} of {path.name}", CheckpointError):
                        files._add(_Stored(path, name, tuple(tensor.shape), dtype, tensor))
        files._check_promises()
        plain = _unwrapped(source, files._tensors)
        files._tensors = {plain[name]: stored for name, stored in files._tensors.items()}
        files._copies = {plain[name]: copies for name, copies in files._copies.items()}
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
        """Raises CheckpointError where transformers would read other tensors: of several copies it takes that of the
        last shard.
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
        with self._damage(path), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is not a mapping
                part = file.get_slice(name)
                dtype = part.get_dtype()
                self._add(_Stored(path, name, tuple(part.get_shape()), _DTYPES.get(dtype, dtype)))

    def _damage(self, path: Path) -> AbstractContextManager[None]:
        what = f"{self.source}: {path.name}"
        return reading(what, CheckpointError, "is truncated or no safetensors file", "fetch it again")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """float32, float16, ...; or, if not floating point, the file's own name for it."""
        return self._tensors[name].dtype

    def tensor(self, name: str, part: int | None = None) -> torch.Tensor:
        """A tensor, or only the ``part``-th entry of its first axis, which stays (1 x ...).

        Raises CheckpointError where its numbers are of another type than is read, or cannot be read any more.
        """
        stored = self._tensors[name]
        if stored.dtype not in _DTYPES.values():
            raise CheckpointError(
                f"{self.source}: tensor {name} is {stored.dtype}; paramdex reads float32, float16 and bfloat16"
            )
        return self._read(stored, part)

    def _read(self, stored: _Stored, part: int | None = None) -> torch.Tensor:
        if stored.mapped is not None:
            if stamps([stored.path]) != [self._mapped[stored.path]]:  # reading past its end would kill the process
                raise CheckpointError(f"{self.source}: {stored.path.name} changed while it was read; run it again")
            with reading(f"{self.source}: tensor {stored.name} of {stored.path.name}", CheckpointError):
                return usual(stored.mapped, part)
        with self._damage(stored.path), safe_open(stored.path, framework="pt") as file:
            found: torch.Tensor = (
                file.get_tensor(stored.name) if part is None else file.get_slice(stored.name)[part : part + 1]
            )
            return found


def _modern(name: str) -> str:
    """A tensor's name as transformers has it today."""
    old = next((ending for ending in _OLD_ENDINGS if name.endswith(ending)), None)
    return name if old is None else name.removesuffix(old) + _OLD_ENDINGS[old]


def same_name(name: str, other: str) -> bool:
    """Whether two names mean one thing, one of them below a module that the other begins in."""
    return f".{name}".endswith(f".{other}") or f".{other}".endswith(f".{name}")


def _unwrapped(source: str, names: Iterable[str]) -> dict[str, str]:
    """Name of a tensor -> what the model itself calls it, without the steps of wrappers around it, or around parts.

    Raises CheckpointError where that leaves two tensors with one name.
    """
    plain = {name: ".".join(step for step in name.split(".") if step not in _WRAPPERS) for name in names}
    for start in _OUTSIDE * 2:  # one may be around the other
        if all(name.startswith(start) for name in plain.values()):
            plain = {name: each.removeprefix(start) for name, each in plain.items()}
    found: dict[str, str] = {}
    for name, each in plain.items():
        if found.setdefault(each, name) != name:
            raise CheckpointError(f"{source}: {found[each]} and {name} would both be {each}; save the model unwrapped")
    return plain


def stamps(paths: Sequence[Path]) -> list[Stamp]:
    """The stamp of each file; a link's is that of the file it leads to."""

    def stamp(path: Path) -> Stamp:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    return [stamp(path) for path in paths]
