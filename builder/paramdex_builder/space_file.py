"""The file of an embedding space, space.safetensors, written a block of E at a time.

The library for this format takes whole tensors, and E may be the largest one that a build holds: an E of 1 GiB in
bfloat16 would take 2 more in float32, and as much again for their bytes. The format is a header of JSON behind its
length, and the tensors' bytes one after the other; a header of whole multiples of eight bytes leaves them aligned.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from paramdex_builder.space import Space

_CHUNK = 2048
"""Rows of E at a time."""
_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64"}


def write_space(path: Path, space: Space) -> None:
    """Write ``embedding`` (V x d), ``means`` (d) and ``root`` (r x d) of a space.

    ``embedding`` is in float16 where that holds every value exactly, as it does for models stored so, else in float32;
    the others are in float64. Raises OSError.
    """
    E = space.embedding
    dtype = np.dtype("<f2" if _fits_half(E) else "<f4")
    others = {"means": space.means.cpu().numpy(), "root": space.root.root}
    shapes = {"embedding": (dtype, tuple(E.shape))} | {
        name: (np.dtype("<f8"), each.shape) for name, each in others.items()
    }
    header: dict[str, object] = {}
    end = 0
    for name, (kind, shape) in shapes.items():
        start, end = end, end + kind.itemsize * int(np.prod(shape))
        header[name] = {"dtype": _NAMES[kind.name], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for chunk in E.split(_CHUNK):
            file.write(chunk.float().cpu().numpy().astype(dtype).data)
        for each in others.values():
            file.write(np.ascontiguousarray(each, "<f8").data)


def _fits_half(E: torch.Tensor) -> bool:
    """Whether float16 holds every value of E exactly."""
    return all(torch.equal(chunk.half().float(), chunk.float()) for chunk in E.split(_CHUNK))
