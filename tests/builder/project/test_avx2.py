"""Operands of int16 within their bound, and the compiled kernel against sums of integers in Python's own.

That searches by it are exact, test_strongest_tokens.py and test_pairs.py say.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdex_builder.project.arithmetic import gamma64
from paramdex_builder.project.kernels import avx2
from paramdex_builder.project.kernels.avx2 import (
    LEAST,
    dots,
    library,
    operand,
    operand_error,
    packed,
    reaching,
    scores,
    values,
)

KERNELS = Path("builder", "paramdex_builder", "project", "kernels")
ROOT = Path(__file__).parents[3]
COMPILES = platform.machine() == "x86_64" and shutil.which("cc") is not None
needs_compiler = pytest.mark.skipif(not COMPILES, reason="needs a C compiler, and x86-64")
needs_kernel = pytest.mark.skipif(library() is None, reason="there was no compiler for the kernel")


@given(st.integers(1, 12), st.integers(1, 70), st.integers(-120, 99), st.integers(0, 2**32 - 1))
def test_operands_keep_their_bound(n: int, d: int, exponent: int, seed: int) -> None:
    """Rows of Gaussian entries, of one large entry and hardly any others, and of zeros."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d)) * 2.0 ** (exponent - draw.integers(0, 20, (n, 1)))
    x[::3] *= 2.0 ** -draw.integers(0, 30, (len(x[::3]), d))
    x[1::4] = 0
    x = torch.from_numpy(x)
    rows = operand(x)
    error, norms = (x - values(rows, d)).norm(dim=1), x.norm(dim=1)
    assert (error <= 1.0001 * operand_error(d) * norms.clamp_min(LEAST)).all()
    assert (values(rows, d)[1::4] == 0).all()
    assert int(rows[:, :d].abs().max()) < 2**14


@pytest.mark.parametrize("rows", [0, 1, 7, 9])
def test_operands_are_rounded_some_rows_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = operand(x)
    monkeypatch.setattr(avx2, "_CHUNK", 3)
    assert torch.equal(operand(x), whole)


@pytest.mark.parametrize("entry", [1 - 2.0**-17, 1 - 2.0**-30, 1.0, 1 + 2.0**-17])
def test_entries_that_would_round_up_to_2_14(entry: float) -> None:
    x = torch.tensor([[entry, 2.0**-10, 0.0], [-entry, 0.0, 2.0**-20]], dtype=torch.float64)
    rows = operand(x)
    assert ((values(rows, 3) - x).norm(dim=1) <= operand_error(3) * x.norm(dim=1)).all()
    assert int(rows[0, 0]) > 0 > int(rows[1, 0]) > -(2**14)


def exact(a: torch.Tensor, b: torch.Tensor, d: int) -> list[list[float]]:
    """-1 times the scores: sums of integers, made float32, times the scales, which are powers of two."""
    scales = [float(scale) for scale in (a[:, -2:].contiguous().view(torch.float32)).flatten()]
    others = [float(scale) for scale in (b[:, -2:].contiguous().view(torch.float32)).flatten()]
    left, right = a[:, :d].tolist(), b[:, :d].tolist()
    return [
        [
            -float(np.float32(sum(map(int.__mul__, row, column)))) * scale * other
            for column, other in zip(right, others, strict=True)
        ]
        for row, scale in zip(left, scales, strict=True)
    ]


@needs_kernel
@given(
    st.integers(1, 11),
    st.integers(1, 70) | st.sampled_from([16, 32, 48, 96]),
    st.integers(1, 50) | st.sampled_from([130, 200, 384]),
    st.sampled_from([16, 32, 48, 64]),
    st.integers(0, 2**32 - 1),
)
def test_kernel_is_exact(n: int, m: int, d: int, group: int, seed: int) -> None:
    """Every score, with any number of rows, columns and terms, also where some are left of 4, 16 and 4, and groups that
    are all in the cache or not.
    """
    draw = np.random.default_rng(seed)
    a, b = (operand(torch.from_numpy(draw.normal(size=(rows, d)) + draw.integers(-2, 3))) for rows in (n, m))
    out, groups = torch.full((n + 1, m + 3), 7.0), -(-m // group)
    peaks = torch.full((2, n, groups), 7.0)
    scores(a, b, out[:n, :m], peaks, group)
    expected = exact(a, b, d)
    assert out[:n, :m].tolist() == expected
    again, peaks_again = torch.empty(n, m), torch.empty(2, n, groups)
    scores(a, packed(b)[:m], again, peaks_again, group, is_packed=True)
    assert torch.equal(again, out[:n, :m])
    assert torch.equal(peaks_again, peaks)
    assert (out[n] == 7).all()
    assert (out[:, m:] == 7).all()
    for sign, found in zip((-1, 1), peaks, strict=True):
        padded = np.full((n, groups * group), -np.inf)
        padded[:, :m] = sign * np.array(expected)
        assert np.array_equal(found.clamp_min(0), padded.reshape(n, groups, group).max(2).clip(0))


@needs_kernel
def test_sums_as_large_as_there_are() -> None:
    """All products of one sign, at a width where sums come near 2^28, and the same with signs turned."""
    d = 4096
    x = torch.cat([torch.ones(3, d, dtype=torch.float64), -torch.ones(2, d, dtype=torch.float64)]) * 0.999 / d**0.5
    rows = operand(x)
    out, peaks = torch.empty(5, 5), torch.empty(2, 5, 1)
    scores(rows, rows, out, peaks, 5)
    assert out.tolist() == exact(rows, rows, d)
    assert Fraction(float(out.abs().max())) * 2**28 > 2**27


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (operand(torch.randn(rows, 33, generator=draw, dtype=torch.float64)) for rows in (50, 336))
    before = torch.get_num_threads()
    found = []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            out, peaks = torch.empty(50, 336), torch.empty(2, 50, 21)
            scores(a, packed(b), out, peaks, 16, is_packed=True)
            found.append((out, peaks))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@needs_kernel
@given(st.integers(0, 30), st.integers(1, 70), st.sampled_from([0, -(2**31)]), st.integers(0, 2**32 - 1))
def test_reaching(n: int, width: int, flip: int, seed: int) -> None:
    """Limits among few values, so that many are met exactly; bits as those of floats of both signs."""
    draw = np.random.default_rng(seed)
    bits = draw.integers(-9, 10, (12, width)).astype(np.float32).view(np.int32)
    rows, keys = draw.integers(0, 12, n), draw.integers(1, 10, n).astype(np.float32).view(np.int32)
    found = reaching(torch.from_numpy(bits), torch.from_numpy(rows), torch.from_numpy(keys), flip)
    flipped = bits[rows] ^ np.int32(flip)
    expected = np.flatnonzero(flipped >= keys[:, None])
    assert found[0].tolist() == expected.tolist()
    assert found[1].tolist() == flipped.ravel()[expected].tolist()


@needs_kernel
@given(st.integers(0, 40), st.integers(1, 70), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_dots(n: int, d: int, threads: int, seed: int) -> None:
    """Within the bound of a float64 sum of the true sum, in rational numbers, and the same for any other entries."""
    draw = np.random.default_rng(seed)
    a = torch.from_numpy(draw.normal(size=(5, d)))
    b = torch.from_numpy(draw.normal(size=(7, d))).float()
    of_a, of_b = (torch.from_numpy(draw.integers(0, rows, n)) for rows in (5, 7))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = dots(a, b, of_a, of_b)
    finally:
        torch.set_num_threads(before)
    for value, x, y in zip(found.tolist(), a[of_a], b[of_b].double(), strict=True):
        true = sum((Fraction(p) * Fraction(q) for p, q in zip(x.tolist(), y.tolist(), strict=True)), Fraction(0))
        assert abs(Fraction(value) - true) <= gamma64(d) * float(x.norm() * y.norm())
    assert torch.equal(dots(a, b, of_a[::2], of_b[::2]), found[::2])


@needs_kernel
def test_what_is_packed_may_lie_apart() -> None:
    rows = operand(torch.randn(64, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert torch.equal(packed(rows[::2]), packed(rows[::2].clone()))


@needs_kernel
def test_what_is_packed_can_be_joined() -> None:
    """At multiples of 16, as E is; behind the last row there are rows of 0."""
    rows = operand(torch.randn(75, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    joined = torch.cat([packed(part) for part in rows.split(32)])
    assert torch.equal(joined, packed(rows))
    out, largest = torch.empty(75, 80), torch.empty(2, 75, 5)
    scores(rows, joined, out, largest, 16, is_packed=True)
    assert out[:, :75].tolist() == exact(rows, rows, 40)
    assert (out[:, 75:] == 0).all()


@needs_kernel
def test_what_the_kernel_cannot_read_is_refused() -> None:
    rows = operand(torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="as many columns"):
        scores(rows, operand(torch.eye(5, dtype=torch.float64)), torch.empty(4, 5), torch.empty(2, 4, 1), 5)
    with pytest.raises(ValueError, match="as many columns"):
        scores(rows, rows.float(), torch.empty(4, 4), torch.empty(2, 4, 1), 4)
    with pytest.raises(ValueError, match="contiguous"):
        scores(rows[::2], rows, torch.empty(2, 4), torch.empty(2, 2, 1), 4)
    with pytest.raises(ValueError, match="contiguous"):
        scores(rows, rows, torch.empty(4, 4).T, torch.empty(2, 4, 1), 4)


@needs_compiler
def test_an_installation_has_the_kernel() -> None:
    """Also this one, made by the hook of the build from the source as it is now."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert library() is not None
    else:
        assert library() is None


def test_no_kernel_where_the_processor_or_the_file_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        assert library.__wrapped__() is None
    source = tmp_path / "avx2.c"
    monkeypatch.setattr(avx2, "_SOURCE", source)
    assert library.__wrapped__() is None


@needs_kernel
def test_no_kernel_of_another_state_of_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path(avx2.__file__).parent
    for file in (folder / "avx2.c", *folder.glob("avx2-*.so")):
        shutil.copy(file, tmp_path)
    source = tmp_path / "avx2.c"
    monkeypatch.setattr(avx2, "_SOURCE", source)
    assert library.__wrapped__() is not None
    source.write_bytes(source.read_bytes() + b"\n")
    assert library.__wrapped__() is None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What wheels are built from."""
    tree = tmp_path / "tree"
    for folder in ("builder", "query", "schemas"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "hatch_build.py", ".gitignore"):
        shutil.copy(ROOT / file, tree)
    return tree


def build(tree: Path, compiler: str) -> tuple[str, list[str], str]:
    """The name of the wheel that is built as pip does it, its files, and what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tree.parent)],
        cwd=tree,
        env=os.environ | {"CC": compiler},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tree.parent.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    wheel.unlink()
    return wheel.name, files, done.stdout + done.stderr


@needs_compiler
def test_a_wheel_with_the_kernels(tree: Path) -> None:
    name, files, _ = build(tree, "cc")
    library, other = sorted(file for file in files if file.endswith(".so"))
    assert library.startswith("paramdex_builder/project/kernels/avx2-")
    assert other.startswith("paramdex_builder/project/kernels/vnni-")
    assert "-py3-none-linux" in name or "-py3-none-macosx" in name
    package = tree / KERNELS
    made = package / Path(library).name
    before = made.stat().st_ino
    build(tree, "false")  # which leaves what an editable installation may use
    assert made.stat().st_ino == before
    source = package / "avx2.c"
    source.write_bytes(source.read_bytes() + b"\n")
    build(tree, "cc")
    assert len(list(package.glob("*.so"))) == 2
    assert not made.exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere nothing is compiled")
@pytest.mark.parametrize("compiler", ["false", "true", "no-such-compiler", "cc 'unbalanced"])
def test_a_wheel_without_a_compiler(tree: Path, compiler: str) -> None:
    """Where it is missing or fails, in words or silently, or makes nothing, a pure wheel is built, with a warning."""
    name, files, said = build(tree, compiler)
    assert name.endswith("-py3-none-any.whl")
    assert "paramdex_builder/project/kernels/avx2.c" in files
    assert not [file for file in files if file.endswith(".so")]
    assert "no compiled kernels" in said
    assert not [file for file in (tree / KERNELS).iterdir() if "compiling" in file.name]
