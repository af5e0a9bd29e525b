"""An engine that somebody else wrote: two of them, from what ``Engine`` says alone, find what the brute force finds.

One multiplies in float64. The other has operands of eight bits, and a scale per row: what an accelerator for int8 does.
Builds take them from ``ENGINES``, and store what they store with the engines that are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_OPTIONS
from hypothesis import given
from hypothesis import strategies as st

from opened import opened
from paramdex_builder import build
from paramdex_builder.project import engines, pair_scan
from paramdex_builder.project.arithmetic import UNDERFLOW, dot, gamma64
from paramdex_builder.project.engines import Engine
from paramdex_builder.project.pairs import same_words, strongest_pairs
from paramdex_builder.project.space import make_space
from paramdex_builder.project.tokens import projection_shared, strongest_tokens

CPU = torch.device("cpu")
Listed = list[Callable[[torch.device], Engine | None]]


class Float64(Engine):
    """Nothing is rounded but the sum."""

    operand_dtype = score_dtype = torch.float64
    u = 2.0**-53

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        del d
        return rows

    def operand_error(self, d: int) -> float:
        del d
        return 0.0

    def gamma(self, d: int) -> float:
        return gamma64(d)

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.mm(a, b.T, out=out[: len(a) * len(b)].view(len(a), len(b)))


class EightBits(Engine):
    """Row x is 2^e q, with whole numbers q of at most 127 in size; e stands behind them.

    Where 2^(e + 6) <= max |x_i| < 2^(e + 7), an entry is off by half of 2^e, or by all of it where it would round up to
    128. So ||x - x'|| <= 2^e sqrt(d) <= 2^-6 sqrt(d) ||x||. Sums of products are below 2^24 for d <= 1040, and so exact
    in float32 in any order; powers of two do not round. e is -126 or more: what smaller rows lose is below UNDERFLOW.
    """

    operand_dtype, score_dtype = torch.int8, torch.float32
    u = 2.0**-24

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] <= 1040
        e = (torch.frexp(x.abs().amax(1, keepdim=True)).exponent - 7).clamp_min(-126)
        q = torch.ldexp(x, -e).round().clamp(-127, 127)
        return torch.cat([q, e], 1).to(torch.int8)

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        return torch.ldexp(rows[:, :d].double(), rows[:, d:].int())

    def operand_error(self, d: int) -> float:
        return 2.0**-6 * math.sqrt(d)

    def gamma(self, d: int) -> float:
        del d
        return 0.0

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        out = out[: len(a) * len(b)].view(len(a), len(b))
        torch.mm(a[:, :-1].float(), b[:, :-1].float().T, out=out)
        exponents = a[:, -1:].int() + b[:, -1].int()
        return out.copy_(torch.ldexp(out.double(), exponents))


OTHERS = [Float64(), EightBits()]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TILE_ROWS", 24), ("TILE_COLUMNS", 40), ("STEP", 8), ("CROWD", 100)):
        monkeypatch.setattr(pair_scan, name, value)


@pytest.mark.parametrize("engine", OTHERS)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 200), st.integers(-80, 0), st.integers(0, 2**32 - 1))
def test_products_keep_their_bound(engine: Engine, n: int, m: int, d: int, scale: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = (torch.from_numpy(draw.normal(size=(rows, d))) for rows in (n, m))
    a, b = 2.0**scale * a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    out = torch.empty(n * m + 1, dtype=engine.score_dtype)
    found = engine.product(engine.operand(a), engine.operand(b), out).double()
    assert ((found - a @ b.T).abs() <= engine.error(d) * torch.outer(a.norm(dim=1), b.norm(dim=1)) + UNDERFLOW).all()


def settled(A: torch.Tensor, B: torch.Tensor) -> np.ndarray:
    """All stored scores of A B^T."""
    return np.stack([dot(a.expand(len(B), -1), B).float().numpy() for a in A.double()]) + np.float32(0)


@pytest.mark.parametrize("engine", OTHERS)
@given(st.integers(1, 500), st.integers(1, 24), st.sampled_from([1, 10, 60]), st.integers(0, 2**32 - 1))
def test_tokens(engine: Engine, V: int, d: int, k: int, seed: int) -> None:
    """Rows of very different norm, and duplicates."""
    draw = np.random.default_rng(seed)
    E = draw.normal(size=(V, d)) * np.exp(draw.normal(size=(V, 1)) * draw.choice([0.0, 0.3, 2.0]))
    E = torch.from_numpy(E[draw.integers(0, V, V)]).float()
    rows = torch.from_numpy(draw.normal(size=(4, d)) * [[1.0], [1e-9], [1e9], [0.0]]).float()
    scores = settled(rows, E.double())
    for side, found in strongest_tokens(rows, make_space(E, CPU), k, engine).items():
        signed = -scores if side == "top" else scores
        order = np.lexsort((np.broadcast_to(np.arange(V), scores.shape), signed))[:, :k]
        assert np.array_equal(found.ids.numpy(), order)
        assert np.array_equal(found.scores.numpy(), np.take_along_axis(scores, order, 1))


@pytest.mark.parametrize("engine", OTHERS)
@given(st.integers(1, 120), st.integers(1, 12), st.sampled_from([1, 10, 60]), st.integers(0, 2**32 - 1))
def test_pairs(engine: Engine, V: int, d: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    A, B = (torch.from_numpy(draw.normal(size=(V, d)) * np.exp(draw.normal(size=(V, 1)))) for _ in "AB")
    words = draw.integers(0, V, V)
    scores, different = settled(A, B), words[:, None] != words
    for side, found in strongest_pairs(A, B, same_words(words, CPU), k, engine).items():
        for got, mask in ((found.distinct, different), (found.all, np.ones_like(different))):
            source, target = mask.nonzero()
            order = np.lexsort((target, source, (-1 if side == "top" else 1) * scores[mask]))[:k]
            assert np.array_equal(got.source.numpy(), source[order])
            assert np.array_equal(got.target.numpy(), target[order])
            assert np.array_equal(got.score.numpy(), scores[mask][order])


@pytest.mark.parametrize("engine", OTHERS)
def test_few_tokens_are_scored_in_float64(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is of use: of 5000 tokens a row, few are left."""
    draw = np.random.default_rng(0)
    E, rows = (torch.from_numpy(draw.normal(size=(n, 16))).float() for n in (5000, 20))
    asked: list[int] = []
    dots = engine.dots
    monkeypatch.setattr(engine, "dots", lambda W, E, row, token: asked.append(len(row)) or dots(W, E, row, token))
    strongest_tokens(rows, make_space(E, CPU), 10, engine)
    assert 2 * 20 * 10 <= sum(asked) < 20 * 5000 / 10


def test_memory_counts_what_is_held() -> None:
    """Eight bits a number, and E in float64, since neither engine reads another E itself."""
    shared = [projection_shared(1000, 100, torch.float32, engine) for engine in OTHERS]
    assert shared[0] - shared[1] == 7 * 1000 * 100 + 4 * 100 * 100


@pytest.fixture
def listed() -> Iterator[Listed]:
    """``ENGINES``, which is left as it was found."""
    before = list(engines.ENGINES)
    yield engines.ENGINES
    engines.ENGINES[:] = before


def test_the_last_listed_that_has_one_is_taken(listed: Listed) -> None:
    ours = engines.engine_of(CPU)
    listed += [lambda _: OTHERS[0], lambda _: OTHERS[1], lambda device: None if device == CPU else OTHERS[0]]
    assert engines.engine_of(CPU) is OTHERS[1]
    assert engines.engine_of(torch.device("meta")) is OTHERS[0]
    del listed[:2]
    assert engines.engine_of(CPU) is ours


def contents(atlas: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows of every table, as they are stored, but for the time; among them the digests of all files."""
    with opened(atlas) as connection:
        tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'store'").fetchall()
        return {
            name: connection.execute(f"SELECT COLUMNS(lambda c: c <> 'built_at') FROM store.{name}").fetchall()
            for (name,) in tables
        }


@pytest.mark.parametrize("engine", OTHERS)
def test_a_build_takes_a_listed_engine_and_stores_the_same(
    engine: Engine,
    listed: Listed,
    word_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ordinary = contents(build(f"m={word_model}", tmp_path / "ours.atlas", SMALL_OPTIONS))
    assert ordinary["parameters"]
    assert ordinary["pairs"]
    multiplied: list[int] = []
    operand = engine.operand
    monkeypatch.setattr(engine, "operand", lambda x: multiplied.append(len(x)) or operand(x))
    listed.append(lambda device: engine if device.type == "cpu" else None)
    assert contents(build(f"m={word_model}", tmp_path / "theirs.atlas", SMALL_OPTIONS)) == ordinary
    assert multiplied
