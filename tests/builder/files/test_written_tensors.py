"""space.safetensors, written a block at a time: what the library reads of it, for every type of E and any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from paramdex_builder.files import tensors
from paramdex_builder.files.tensors import write_space
from paramdex_builder.project.space import Space
from paramdex_schemas.isometry import Root


def space(E: torch.Tensor, rank: int) -> Space:
    draw = np.random.default_rng(0)
    d = E.shape[1]
    root = draw.normal(size=(d, rank)).T  # in another order than it is written
    return Space(E, torch.from_numpy(draw.normal(size=d)), 1.0, Root(root))


def assert_written(path: Path, one: Space, dtype: torch.dtype) -> None:
    write_space(path, one)
    found = load_file(path)
    assert list(found) == ["embedding", "means", "root"]
    assert found["embedding"].dtype == dtype
    assert torch.equal(found["embedding"].float(), one.embedding.float())
    assert torch.equal(found["means"], one.means)
    assert np.array_equal(found["root"].numpy(), one.root.root)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 3, 7, 100]))
def test_every_shape_and_block(tmp_path: Path, V: int, d: int, chunk: int) -> None:
    draw = torch.Generator().manual_seed(V * 10 + d)
    E = torch.randn(V, d, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "_CHUNK", chunk)
        assert_written(tmp_path / "space", space(E, max(1, d - 1)), torch.float32)
        assert_written(tmp_path / "space", space(E.half(), d), torch.float16)
        assert_written(tmp_path / "space", space(E.half().float(), d), torch.float16)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.0, torch.float16), (65504.0, torch.float16), (2.0**-24, torch.float16), (65536.0, torch.float32),
        (2.0**-25, torch.float32), (1 + 2.0**-11, torch.float32), (0.0, torch.float16), (torch.inf, torch.float16),
    ],
)  # fmt: skip
def test_half_only_where_it_is_exact(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    E = torch.ones(5, 3)
    E[4, 2] = value
    assert_written(tmp_path / "space", space(E, 3), dtype)
    if E.bfloat16().float().equal(E):
        assert_written(tmp_path / "space", space(E.bfloat16(), 3), dtype)


def test_no_more_than_a_block_is_converted_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    E = torch.zeros(20_000, 8, dtype=torch.bfloat16)
    E[-1, -1] = 1e-9  # so that it is written in float32
    sizes = []
    for name in ("float", "half", "to", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *more, of=original: sizes.append(len(self)) or of(self, *more)
        )
    write_space(tmp_path / "space", space(E, 8))
    assert max(sizes) == tensors._CHUNK
