"""The second of two rankings, found in what was screened for the first: against the one settled order of summing, and
its bound against what is screened.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpu_engines import ENGINES
from paramdex_builder.project import tokens
from paramdex_builder.project.arithmetic import dot
from paramdex_builder.project.block import Block, Tokens, rank, screen_of
from paramdex_builder.project.derived import Derived, Second
from paramdex_builder.project.engines import Engine
from paramdex_builder.project.space import TokenRows, make_space, scaled
from paramdex_builder.project.tokens import strongest_by_both, strongest_tokens

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**32 - 1)
FACTORS = [0.0, 1e-3, 0.7, 1.0, 41.3]


def made(V: int, d: int, n: int, offset: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, TokenRows]:
    """Vectors that lean to one side, their mean, and rows with very different factors."""
    draw = np.random.default_rng(seed)
    E, rows = (torch.from_numpy(draw.normal(size=shape) + offset).float() for shape in ((V, d), (n, d)))
    rows *= torch.from_numpy(draw.choice([1.0, 1e-4, 300.0], (n, 1))).float()
    return rows, rows.double().mean(0), scaled(make_space(E, CPU), torch.from_numpy(draw.choice(FACTORS, V)))


def settled(rows: torch.Tensor, space: TokenRows, k: int) -> dict[str, Tokens]:
    """The k strongest of all scores in the one order of summing."""
    f = torch.ones(len(space)).double() if space.factors is None else space.factors
    every = torch.stack([(dot(space.embedding.double(), w.double().expand(len(space), -1)) * f).float() for w in rows])
    found = {}
    for side, sign in (("top", 1), ("bottom", -1)):
        best = rank(sign * (every + 0.0), torch.arange(len(space)).expand_as(every), k)
        found[side] = Tokens(best.ids, sign * best.scores + 0.0)
    return found


def check(rows: torch.Tensor, mean: torch.Tensor, unusual: TokenRows, k: int, engine: Engine) -> None:
    assert unusual.plain is not None
    expected = settled(rows, unusual.plain, k), settled(rows.double() - mean, unusual, k)
    for found, own in zip(strongest_by_both(rows, unusual, mean, k, engine), expected, strict=True):
        for side, tokens_of_side in own.items():
            assert torch.equal(found[side].ids, tokens_of_side.ids)
            assert torch.equal(found[side].scores, tokens_of_side.scores)


@given(st.integers(1, 400), st.integers(1, 12), st.sampled_from([1, 5, 50]), st.sampled_from([0.0, 0.3, 20.0]), SEEDS)
def test_both_rankings_are_settled(V: int, d: int, k: int, offset: float, seed: int) -> None:
    rows, mean, unusual = made(V, d, 6, offset, seed)
    for engine in ENGINES:
        check(rows, mean, unusual, min(k, V), engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_blocks_and_tiles_with_rests(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, scored together and apart; few rows are scored as a whole."""
    rows, mean, unusual = made(3000, 24, 700, 0.2, 5)
    wholes = []
    whole = Block.whole
    monkeypatch.setattr(
        Block, "whole", lambda block, some, *rest: wholes.append(len(some)) or whole(block, some, *rest)
    )
    check(rows, mean, unusual, 10, engine)
    assert sum(wholes) < 0.1 * 4 * len(rows)
    monkeypatch.setattr(tokens, "_TOGETHER", 1)
    check(rows, mean, unusual, 10, engine)


@pytest.mark.parametrize("engine", ENGINES)
@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([0.0, 0.3, 20.0]), SEEDS)
def test_what_is_screened_keeps_its_bound(engine: Engine, V: int, d: int, offset: float, seed: int) -> None:
    rows, mean, unusual = made(V, d, 5, offset, seed)
    assert unusual.plain is not None
    screen = screen_of(unusual.plain, engine)
    first = Block(rows.double(), unusual.plain, screen)
    second = Second.of(unusual, mean, screen)
    block = Derived(first, second)
    room = 5 * len(screen.rows)
    bits, _ = first.screened(4, torch.empty(room, dtype=engine.score_dtype))
    found, peaks = block.from_first(bits, torch.empty(room))
    zeta = -torch.cat([tile.view(5, -1) for tile in torch.split(found.view(torch.float32).view(-1), 5 * block.tile)], 1)
    assert (zeta[:, V:] == 0).all()
    for sign, own in zip((1, -1), peaks.view(torch.float32), strict=True):
        largest = (sign * zeta).view(5, -1, 4).amax(2)
        assert torch.equal(own.clamp_min(0), largest.clamp_min(0))
    scores = (rows.double() - mean) @ unusual[:].T
    exact = (scores - scores.mean(1, keepdim=True)) / (second.largest * screen.size * first.norms)[:, None]
    row, token = (each.flatten() for each in torch.meshgrid(torch.arange(5), torch.arange(V), indexing="ij"))
    off = (zeta[:, :V].double() - exact).abs().flatten()
    bound = block.off(row, token)
    assert (off <= bound + block.relative * zeta[:, :V].double().abs().flatten() + 1e-14).all()
    assert (bound.view(5, V) <= 1.0001 * block.most_off()[:, None]).all()


def test_no_factors_at_all() -> None:
    """Nothing varies: all scores by the second ranking are 0, and tokens come by their ids."""
    rows, mean, unusual = made(40, 3, 4, 0.0, 1)
    assert unusual.plain is not None
    none = scaled(unusual.plain, torch.zeros(40, dtype=torch.float64))
    first, second = strongest_by_both(rows, none, mean, 5)
    assert torch.equal(first["top"].ids, strongest_tokens(rows, unusual.plain, 5)["top"].ids)
    assert torch.equal(second["bottom"].ids, torch.arange(5).expand(4, 5))
