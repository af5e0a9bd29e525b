"""Safetensors files, written block by block: embedding spaces, and transfer matrices.

The safetensors library takes whole tensors, all of a file at once. E may be the largest tensor that a build holds: 1
GiB in bfloat16 would take 2 GiB more in float32, and as much again for its bytes. The format is simple: the length of a
header, the header in JSON, and the tensors' bytes one after the other. A header whose length is a multiple of eight
keeps them aligned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from paramdex_builder.project.space import Space

_CHUNK = 2048
"""Rows of E at a time."""
_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class Blocks:
    """A tensor of a shape and dtype (float16, float32 or float64), some rows at a time."""

    shape: tuple[int, ...]
    dtype: str
    parts: Iterable[np.ndarray]

    @property
    def n_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape))


def write_tensors(path: Path, tensors: dict[str, Blocks]) -> None:
    """Write the tensors in their order. Each block is made only when those before it are written. Raises OSError."""
    header: dict[str, object] = {}
    end = 0
    for name, each in tensors.items():
        start, end = end, end + each.n_bytes
        header[name] = {"dtype": _NAMES[each.dtype], "shape": each.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for each in tensors.values():
            little = np.dtype(each.dtype).newbyteorder("<")
            file.writelines(np.ascontiguousarray(part, little).data for part in each.parts)  # and none is kept


def write_space(path: Path, space: Space) -> None:
    """Write ``embedding`` (V x d), ``means`` (d) and ``root`` (r x d) of a space.

    ``embedding`` is in float16 where that holds every value exactly, as it does for models stored so, else in float32;
    the others are in float64. Raises OSError.
    """
    E, root = space.embedding, space.root.root
    rows = (chunk.float().cpu().numpy() for chunk in torch.split(E, _CHUNK))
    write_tensors(
        path,
        {
            "embedding": Blocks(tuple(E.shape), "float16" if _fits_half(E) else "float32", rows),
            "means": Blocks(tuple(space.means.shape), "float64", [space.means.cpu().numpy()]),
            "root": Blocks(root.shape, "float64", [root]),
        },
    )


def _fits_half(E: torch.Tensor) -> bool:
    """Whether float16 holds every value of E exactly."""
    return all(torch.equal(chunk.half().float(), chunk.float()) for chunk in torch.split(E, _CHUNK))
