"""Norms folded into the vectors beside them, whatever the stream is divided by.

With gains g and 1 the vector of ones, a norm gives of a state x, before its bias,

    RMS norm:     g * x / s            LayerNorm:     g * (x - mean(x) 1) / s

A vector w that reads that sees, but for the positive s, the product of x with one vector: g * w, of a LayerNorm less
its mean, as <w, g * (x - mean(x) 1)> = <g * w - mean(g * w) 1, x>. So does each row of an embedding behind the final
norm. A vector w that is written through a norm adds g * w, of a LayerNorm g * (w - mean(w) 1). What s changes with w,
the part of w along the state, is left out.
"""

from __future__ import annotations

from typing import Literal

import torch

Norm = Literal["layer", "rms"]
"""layer: the mean of a state is taken off before it is scaled."""
_ROWS = 2048
"""Rows that are held in float64 at a time."""


def folded(
    rows: torch.Tensor, gains: torch.Tensor, norm: Norm, role: str, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The vectors ``rows`` (n x d) of a ``role``, reads or writes, with a norm of these ``gains`` (d, float64) folded
    in; each number is rounded once. ``out`` (n x d) may be ``rows`` themselves.
    """
    out = torch.empty_like(rows, memory_format=torch.contiguous_format) if out is None else out
    for part, into in zip(rows.split(_ROWS), out.split(_ROWS), strict=True):
        w = part.double()
        if norm == "layer" and role == "writes":
            w = w - w.mean(dim=1, keepdim=True)
        w = w * gains
        if norm == "layer" and role == "reads":
            w = w - w.mean(dim=1, keepdim=True)
        into.copy_(w)
    return out
