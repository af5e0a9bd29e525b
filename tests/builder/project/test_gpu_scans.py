"""What a GPU selects in the epilogue of its products, run by Triton's interpreter, against brute force in float64 and
the searches of a processor.

The interpreter multiplies in float32, in another order than a GPU does; the bounds are of any order. Tiles are made
small, so that there are several of them, with rests, also of few rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from paramdex_builder.project import gpu_pairs, pair_scan, tokens
from paramdex_builder.project.arithmetic import UNDERFLOW, dot
from paramdex_builder.project.block import Tokens, screen_of
from paramdex_builder.project.engines import FLOAT32, TENSOR_CORES
from paramdex_builder.project.kernels import triton
from paramdex_builder.project.pairs import same_words, strongest_pairs
from paramdex_builder.project.space import make_space
from paramdex_builder.project.tokens import strongest_tokens

CPU = torch.device("cpu")
KS = [1, 50, 200]

pytestmark = pytest.mark.skipif(not triton.INTERPRETED, reason="there is a GPU, and kernels were made for it")


@pytest.fixture(autouse=True, scope="module")
def small_tiles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "TOKEN_TILE", {"BM": 32, "BN": 64, "BK": 32})
        patch.setattr(triton, "PAIR_TILE", {"BM": 64, "BN": 16, "BK": 32})
        for name, value in (("TILE_ROWS", 64), ("TILE_COLUMNS", 64), ("STEP", 32), ("CROWD", 300)):
            patch.setattr(pair_scan, name, value)
        yield


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def bits(scores: torch.Tensor) -> torch.Tensor:
    return scores.contiguous().view(torch.int32)


def settled(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """The stored scores of all rows of A and B, in the one order of summing that is settled."""
    a, b = torch.from_numpy(A).double(), torch.from_numpy(B).double()
    return torch.stack([dot(row.expand(len(b), -1), b).float() for row in a]).numpy() + np.float32(0)


def check_tokens(E: np.ndarray, W: np.ndarray, k: int) -> int:
    """Compare both sides of every row with the brute force and with a processor's; the number of rows it did itself."""
    E, W = E.astype(np.float32), W.astype(np.float32)
    space, rows = make_space(torch.from_numpy(E), CPU), torch.from_numpy(W)
    left_over: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        plain = tokens._screened
        patch.setattr(tokens, "_screened", lambda part, *rest: left_over.append(len(part)) or plain(part, *rest))
        found = strongest_tokens(rows, space, k, TENSOR_CORES)
    usual = strongest_tokens(rows, space, k, FLOAT32)
    scores = settled(W, E)
    for side, sign in (("top", 1), ("bottom", -1)):
        order = np.lexsort((np.broadcast_to(np.arange(len(E)), scores.shape), -sign * scores))[:, :k]
        assert np.array_equal(found[side].ids.numpy(), order), side
        expected = Tokens(torch.from_numpy(order), torch.from_numpy(np.take_along_axis(scores, order, 1)))
        for other in (expected, usual[side]):
            assert torch.equal(found[side].ids, other.ids), side
            assert torch.equal(bits(found[side].scores), bits(other.scores)), side
    return len(W) - sum(left_over)


@pytest.mark.parametrize(("k", "least"), [(1, 30), (50, 40), (200, 40)])
def test_tokens_of_random_rows(k: int, least: int) -> None:
    """Nearly all of them without the search that they fall back to."""
    assert check_tokens(normal(1, 500, 40), normal(2, 45, 40), k) >= least


def hard_rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    """E (V x d) and rows."""
    E, W = normal(3, 220, 24), normal(4, 6, 24)
    if name == "equal norms":
        E /= np.linalg.norm(E, axis=1, keepdims=True)
    elif name == "one huge row":
        E[17] *= 1e6
    elif name == "zero rows":
        E[::3], W[::4] = 0, 0
    elif name == "duplicates":
        E = E[np.arange(220) % 40]
    elif name == "negative only":
        E, W = -np.abs(E), np.abs(W)
    elif name == "fewer than k":
        E = E[:30]
    elif name == "rank-deficient":
        E = E[:, :3] @ normal(5, 3, 24)
    elif name == "near float16's largest":
        E, W = E * 2.0**14, W * 2.0**15
    elif name == "near float16's smallest":
        E, W = E * 2.0**-24, W * 2.0**-20
    elif name == "near bfloat16's largest":
        E, W = E * 2.0**60, W * 2.0**63
    elif name == "near bfloat16's smallest":
        E, W = E * 2.0**-70, W * 2.0**-70
    elif name == "of one order":
        E[:, 0] += 100
    return E, W


HARD = [
    "equal norms", "one huge row", "zero rows", "duplicates", "negative only", "fewer than k", "rank-deficient",
    "near float16's largest", "near float16's smallest", "near bfloat16's largest", "near bfloat16's smallest",
    "of one order",
]  # fmt: skip


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", HARD)
def test_tokens_of_hard_rows(name: str, k: int) -> None:
    check_tokens(*hard_rows(name), k)


@settings(max_examples=6)
@given(st.integers(1, 250), st.integers(1, 40), st.integers(1, 40), st.sampled_from(KS), st.integers(0, 2**32 - 1))
def test_tokens_of_any_shape(V: int, d: int, n: int, k: int, seed: int) -> None:
    check_tokens(normal(seed, V, d), normal(seed + 1, n, d), k)


@settings(max_examples=6)
@given(st.integers(2, 200), st.integers(1, 6), st.sampled_from(KS), st.integers(0, 2**32 - 1))
def test_tokens_with_ties(V: int, d: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    check_tokens(draw.integers(-3, 4, (V, d)), draw.integers(-3, 4, (9, d)), k)


def test_rows_of_other_tails_have_their_own_threshold() -> None:
    """What was learned from one layer leaves the rows of another short, and is learned anew."""
    E = normal(6, 400, 40)
    space = make_space(torch.from_numpy(E.astype(np.float32)), CPU)
    one, other = normal(7, 40, 40).astype(np.float32), (E[:40] + normal(8, 40, 40)).astype(np.float32)
    known = screen_of(space, TENSOR_CORES).deviations
    known[50] = 9.0
    for rows in (one, other):
        found = strongest_tokens(torch.from_numpy(rows), space, 50, TENSOR_CORES)
        for side, usual in strongest_tokens(torch.from_numpy(rows), make_space(space.embedding, CPU), 50).items():
            assert torch.equal(found[side].ids, usual.ids)
            assert torch.equal(bits(found[side].scores), bits(usual.scores))
        assert 0.5 < known[50] < 4


def test_tokens_reaching_counts_past_its_room() -> None:
    low, rows = (torch.from_numpy(normal(seed, 40, 16)).bfloat16() for seed in (9, 10))
    t = low.float() @ rows[:33].float().T
    count, token, value = triton.tokens_reaching(low, rows, 33, torch.full((40,), 1.0), 12)
    assert torch.equal(count.long(), (t.abs() >= 1).sum(1))
    assert count.max() > 12
    for i in range(40):
        written = token[i, : min(12, int(count[i]))]
        assert len(set(written.tolist())) == len(written)
        assert (t[i, written].abs() >= 1).all()
        size = value[i, : len(written)] / t[i, written]
        assert ((size <= 1) & (size > 1 - 2.0**-13)).all()


def check_pairs(A: np.ndarray, B: np.ndarray, k: int, words: np.ndarray | None = None) -> None:
    """Compare both sides, overall and of different words, with the brute force and with a processor's scan."""
    words = np.arange(len(A)) if words is None else words
    a, b, numbers = torch.from_numpy(A), torch.from_numpy(B), same_words(words, CPU)
    found = strongest_pairs(a, b, numbers, k, TENSOR_CORES)
    usual = strongest_pairs(a, b, numbers, k, FLOAT32)
    scores = settled(A, B)
    different = words[:, None] != words[None, :]
    for side, sign in (("top", 1), ("bottom", -1)):
        for name, mask in (("distinct", different), ("all", np.ones_like(different))):
            got = getattr(found[side], name)
            source, target = mask.nonzero()
            order = np.lexsort((target, source, -sign * scores[mask]))[:k]
            assert np.array_equal(got.source.numpy(), source[order]), (side, name)
            assert np.array_equal(got.target.numpy(), target[order]), (side, name)
            assert np.array_equal(got.score.numpy().view(np.int32), scores[mask][order].view(np.int32)), (side, name)
            other = getattr(usual[side], name)
            assert torch.equal(got.source << 32 | got.target, other.source << 32 | other.target), (side, name)
            assert torch.equal(bits(got.score), bits(other.score)), (side, name)


def hard_factors(name: str) -> tuple[np.ndarray, np.ndarray]:
    A, B = normal(11, 100, 12), normal(12, 100, 12)
    if name == "equal norms":
        A, B = (X / np.linalg.norm(X, axis=1, keepdims=True) for X in (A, B))
    elif name == "one huge row":
        A[17] *= 1e6
    elif name == "zero rows":
        A[::3], B[::2] = 0, 0
    elif name == "duplicates":
        A, B = (X[np.arange(100) % 20] for X in (A, B))
    elif name == "negative only":
        A, B = np.abs(A), -np.abs(B)
    elif name == "fewer than k":
        A, B = A[:9], B[:9]
    elif name == "rank-deficient":
        A = A[:, :2] @ normal(13, 2, 12)
    elif name.startswith("near"):
        power = {"float16's l": 15, "float16's s": -22, "bfloat16's l": 62, "bfloat16's s": -68}
        A, B = (X * 2.0 ** next(power[start] for start in power if name[5:].startswith(start)) for X in (A, B))
    elif name == "of one order":
        A[:, 0], B[:, 0] = A[:, 0] + 100, B[:, 0] + 100
    return A, B


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("name", HARD)
def test_pairs_of_hard_factors(name: str, k: int) -> None:
    check_pairs(*hard_factors(name), k)


@pytest.mark.parametrize("room", [40, 2000])
def test_pairs_past_the_room_are_found_all_the_same(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waves are cut in two, and a tile that is still too much is searched as on a processor."""
    monkeypatch.setattr(gpu_pairs, "ROOM", room)
    waves: list[int] = []
    wave = gpu_pairs.WaveScan._wave
    monkeypatch.setattr(
        gpu_pairs.WaveScan, "_wave", lambda self, start, stop: waves.append(stop - start) or wave(self, start, stop)
    )
    check_pairs(normal(14, 150, 8), normal(15, 150, 8), 50, np.arange(150) // 2)
    assert (1 in waves) == (room == 40)
    check_pairs(np.ones((90, 3)), np.ones((90, 3)), 200, np.arange(90) // 2)
    assert 1 in waves


@settings(max_examples=6)
@given(st.integers(1, 120), st.integers(1, 40), st.sampled_from(KS), st.integers(1, 120), st.integers(0, 2**32 - 1))
def test_pairs_of_any_shape(V: int, r: int, k: int, n_words: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    skew = np.exp(draw.normal(size=(V, 1)))
    check_pairs(draw.normal(size=(V, r)) * skew, draw.normal(size=(V, r)), k, draw.integers(0, n_words, V))


def test_a_scan_of_pruned_tiles_computes_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of very different norm: tiles that cannot reach the threshold are not given to the kernel."""
    seen: list[int] = []
    kernel = triton.pairs_reaching
    monkeypatch.setattr(triton, "pairs_reaching", lambda *given: seen.append(len(given[3])) or kernel(*given))
    skew = np.exp(3 * normal(16, 320, 1))
    check_pairs(normal(17, 320, 8) * skew, normal(18, 320, 8) * skew, 50)
    assert 0 < sum(seen) < 15  # of 25


def test_pairs_reaching_is_what_reaches() -> None:
    a, b = (torch.from_numpy(normal(seed, 150, 20)).bfloat16() for seed in (19, 20))
    s = a.float() @ b.float().T
    words = torch.arange(150, dtype=torch.int32)
    norms = [x.float().norm(dim=1).flip(0).cummax(0).values.flip(0) for x in (a, b)]
    tiles, limits = torch.tensor([[0, 0], [128, 0]]), torch.tensor([[9.0, torch.inf], [6.0, 5.0]])
    count, pair = triton.pairs_reaching(
        (a, b), (norms[0], norms[1]), (words, words), tiles.int(), (128, 128), limits, 5000, (1.001, UNDERFLOW)
    )
    hot = torch.zeros(150, 150, dtype=torch.bool)
    hot[:128, :128] = s[:128, :128] >= 9
    hot[128:, :128] = (s[128:, :128] >= 6) | (-s[128:, :128] >= 5)
    hot.fill_diagonal_(False)
    assert int(count) == int(hot.sum()) > 20
    assert sorted(divmod(p, 1 << 32) for p in pair[: int(count)].tolist()) == [tuple(p) for p in hot.nonzero().tolist()]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from paramdex_builder.project.kernels import triton as kernels

TYPES = {"W": "*bf16", "A": "*bf16", "B": "*bf16", "E": "*bf16", "grow": "fp32", "under": "fp32", "FOUND": "*i64",
         "PAIR": "*i64", "ROW": "*i64", "OUT": "*fp64", "V": "i32", "N": "i32"}
FLOATS, DOT = ("THETA", "NORM_A", "NORM_B", "LIMITS"), {"W": "*fp64", "TOKEN": "*i64"}
for kernel, given, types, warps in (
    (kernels._token_kernel, kernels.TOKEN_TILE | {"GROUP": 8, "WIDE": False}, {}, 8),
    (kernels._pair_kernel, kernels.PAIR_TILE | {"WIDE": False}, {}, 4),
    (kernels._dot_kernel, {"BM": 32, "BK": 128}, DOT, 4),
):
    names = kernel.arg_names
    types = TYPES | types
    kind = lambda n: types.get(n, "*fp32" if n in FLOATS else "*i32" if n.isupper() else "i32")
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in ("W", "E", "A", "B", "d", "r") if n in names}
    source = ASTSource(
        kernel, {n: "constexpr" if n in given else kind(n) for n in names},
        {(names.index(n),): v for n, v in given.items()}, aligned,
    )
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=kernels._schedule(warps))
    print(kernel.fn.__name__, made.metadata.shared, "wgmma.mma_async" in made.asm["ptx"], len(made.asm["cubin"]) > 0)
"""


def test_kernels_are_made_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """They compile down to a Hopper's machine code, its tensor cores in use, within its shared memory."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ
        | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "No module named" in found.stderr or "ptxas" in found.stderr:
        pytest.skip("this Triton has no compiler for NVIDIA's GPUs")
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [(name, uses, made) for name, _, uses, made in lines] == [
        ("_token_kernel", "True", "True"),
        ("_pair_kernel", "True", "True"),
        ("_dot_kernel", "False", "True"),
    ]
    assert all(int(shared) <= 227 << 10 for _, shared, _, _ in lines)
