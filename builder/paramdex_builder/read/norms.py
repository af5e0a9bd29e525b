"""Norms folded into the vectors beside them, whatever the stream is divided by.

With gains g and 1 the vector of ones, a norm gives of a state x, before its bias,

    RMS norm:     g * x / s            LayerNorm:     g * (x - mean(x) 1) / s

A reading vector w takes its product with that. But for the positive s, this is the product of x with one vector: g * w,
and for a LayerNorm g * w less its mean, as <w, g * (x - mean(x) 1)> = <g * w - mean(g * w) 1, x>. The same holds for
each row of an embedding behind the final norm. A vector w that is written through a norm adds g * w, and through a
LayerNorm g * (w - mean(w) 1). s changes with w too, by the part of w along the state; that is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from paramdex_builder.read.family import Family, Norm, choose_norm
from paramdex_builder.read.names import Names
from paramdex_schemas import KINDS
from paramdex_schemas.layout import Place

_ROWS = 2048
"""Rows that are held in float64 at a time."""


@dataclass(frozen=True)
class Norms:
    """Which tensors of a checkpoint hold the gains of its norms.

    ``inward`` says that tokens pass a map into the stream: a norm before that has no gains of the stream's own.
    """

    family: Family
    names: Names
    inward: bool

    def beside(self, kind: str, place: Place) -> str | None:
        """The tensor of the gains beside vectors of a kind: of the norm whose output they read, or through which what
        they write passes before it is added to the stream; None where there is no such norm.
        """
        norms = self.names.stacks[place[0]].norms
        part = "attn" if kind.startswith("attn_") else "ff"
        name = part if KINDS[kind].role == "reads" else f"{part}_after"
        return self._name(choose_norm(norms.get(kind, norms.get(name)), self.names.config), place)

    def final(self) -> str | None:
        """The tensor of the gains of the norm at the end of the blocks (``Family.final_norm``)."""
        place = (next(iter(self.names.stacks)), None)
        return self._name(choose_norm(self.family.final_norm, self.names.config), place)

    def _name(self, rule: Any, place: Place) -> str | None:
        """The tensor that a rule of ``norms`` means (see ``family``)."""
        stack, layer = place
        if isinstance(rule, str):
            rule = {"then": rule}
        if rule is None:
            return None
        if layer == 0 and "first" in rule:
            return f"{self.names.prefix}{rule['first']}" if rule["first"] and not self.inward else None
        stack = rule.get("stack", stack)
        if stack not in self.names.stacks:
            return None
        if "model" in rule:
            return f"{self.names.prefix}{rule['model']}"
        if "last" in rule:
            layer = self.names.sizes[stack]["n_layers"] - 1
        elif "previous" in rule:
            layer = (layer or 0) - 1
        within = next(rule[key] for key in ("then", "previous", "last") if key in rule)
        return f"{self.names.of_layer(stack, layer)}{within}"


def folded(
    rows: torch.Tensor, gains: torch.Tensor, norm: Norm, role: str, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The vectors ``rows`` (n x d) of a ``role``, reads or writes, with a norm of these ``gains`` (d, float64) folded
    in; each number is rounded once. ``out`` (n x d) may be ``rows`` themselves.
    """
    out = torch.empty_like(rows, memory_format=torch.contiguous_format) if out is None else out
    for part, into in zip(torch.split(rows, _ROWS), torch.split(out, _ROWS), strict=True):
        w = part.double()
        if norm == "layer" and role == "writes":
            w = w - w.mean(dim=1, keepdim=True)
        w = w * gains
        if norm == "layer" and role == "reads":
            w = w - w.mean(dim=1, keepdim=True)
        into.copy_(w)
    return out
