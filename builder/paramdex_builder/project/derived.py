"""A second ranking of a block's tokens from what was screened for the first: by rows f_t e_t, of vectors less a mean.

Both rankings of a vector w are made of the same products <e_t, w>, so low precision multiplies once. With the names of
``tokens``, tau = <e_t - c, w> / (size ||w||) was screened as tau~. Let m be the mean, c_f the column means of f_t e_t,
and F the largest f_t. In units of F size ||w||, the score f_t <e_t, w - m> less its mean over the tokens is

    zeta = g_t tau + g_t kappa - p_t beta - eta,      g_t = f_t / F,    kappa = <c, w> / (size ||w||),
    p_t = g_t <e_t, m> / size,    beta = 1 / ||w||,    eta = <c_f, w - m> / (F size ||w||)

The last three are a product of n x 3 and 3 x V numbers; with that and one more of tau~ and g, all in float32, zeta~ is
made where tau~ lies. Let s = g |kappa| + |p| beta + |eta|. With |tau~ - tau| <= b + rho |tau~| (rho = u / (1 - u), b as
in ``tokens``), and g |tau~| <= |zeta~| + s but for rounding,

    |zeta~ - zeta| <= g b + (rho + 2^-18) (|zeta~| + s)

where 2^-18 is more than float32 rounds off: each of g |tau~| and s by no more than 2^-20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paramdex_builder.project.arithmetic import UNDERFLOW, Bits
from paramdex_builder.project.block import Block, Screen
from paramdex_builder.project.space import TokenRows

_CHUNK = 2048


@dataclass(frozen=True)
class Second:
    """The ranking by ``rows`` f_t e_t (``TokenRows`` with factors) of vectors less a ``mean`` (d, float64)."""

    rows: TokenRows
    mean: torch.Tensor
    centre: torch.Tensor
    """c (d, float64)."""
    largest: float
    """F; 1 where all factors are 0."""
    g: torch.Tensor
    """V, float64"""
    p: torch.Tensor
    """V, float64"""
    columns: torch.Tensor
    """g, p and 1 of every token (3 x V rounded up as the screen's rows are, float32); 0 behind."""
    most: tuple[float, float, float]
    """Over all tokens the largest g ||e - c - e'||, g ||e'|| and |p|."""

    @classmethod
    def of(cls, rows: TokenRows, mean: torch.Tensor, screen: Screen) -> Second:
        """``screen`` is that of the plain rows."""
        assert rows.factors is not None
        assert rows.plain is not None
        largest = float(rows.factors.max()) or 1.0
        g = rows.factors / largest
        parts = [rows[start : start + _CHUNK] @ mean for start in range(0, len(rows), _CHUNK)]
        p = torch.cat(parts) / (largest * (screen.size or 1))
        columns = torch.zeros(3, len(screen.rows), device=rows.device)
        columns[:, : len(rows)] = torch.stack([g, p, torch.ones_like(g)])
        most = float((g * screen.errors).max()), float((g * screen.norms).max()), float(p.abs().max())
        return cls(rows, mean, rows.plain.means, largest, g, p, columns, most)


class Derived(Block):
    """The vectors of a ``first`` block by a second ranking."""

    def __init__(self, first: Block, second: Second) -> None:
        w, screen = first.W, first.screen
        super().__init__(w - second.mean, second.rows, screen)
        self.first, self.second = first, second
        self.bits = Bits(torch.float32)
        self.relative = first.relative + 2.0**-18
        unit = second.largest * screen.size * first.norms
        self.slack = self._slack(second.rows.longest * self.norms, unit)
        self.kappa = w @ second.centre / (screen.size * first.norms)
        self.beta = 1 / first.norms
        self.eta = self.W @ second.rows.means / unit

    def off(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        g, p = self.second.g[token], self.second.p[token]
        s = g * self.kappa[row].abs() + p.abs() * self.beta[row] + self.eta[row].abs()
        bound: torch.Tensor = g * self.first.off(row, token) + self.relative * s + UNDERFLOW
        return bound

    def most_off(self) -> torch.Tensor:
        errors, norms, p = self.second.most
        of_first = self.first.bounds(torch.tensor(errors), torch.tensor(norms), slice(None))
        bound: torch.Tensor = self.relative * (self.kappa.abs() + p * self.beta + self.eta.abs()) + UNDERFLOW
        return bound + of_first

    def reaching(
        self, bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.bits.reaching(bits, rows, keys, side)

    def from_first(self, bits: torch.Tensor, space: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``screened``, from the bits (n V / group x group) that this gives of the first block; ``space`` has room
        for as many numbers of float32.
        """
        n, group, columns = len(self.W), bits.shape[1], self.second.columns
        rows = torch.stack([self.kappa, -self.beta, -self.eta], 1).float()
        negative = bits.view(self.first.bits.floats).view(-1)
        peaks = torch.empty(2, n, columns.shape[1] // group, dtype=self.bits.integers, device=bits.device)
        done = 0
        for tile in torch.split(columns, self.tile, dim=1):
            here = slice(n * done, n * (done + tile.shape[1]))
            zeta = torch.mm(rows, tile, out=space[here].view(n, -1))
            zeta.addcmul_(negative[here].view(n, -1).float(), tile[0], value=-1)
            groups = slice(done // group, (done + tile.shape[1]) // group)
            self.bits.negated(zeta, peaks[:, :, groups], group)
            done += tile.shape[1]
        return space[: n * done].view(self.bits.integers).view(-1, group), peaks
