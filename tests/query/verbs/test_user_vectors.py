"""Vectors of one's own come from any library, with whatever it keeps beside the numbers; all are the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from paramdex import Atlas, QueryError
from paramdex.verbs.user_vectors import user_vectors

NUMBERS = np.arange(24) - 3.5
"""A vector that bfloat16 and float16 hold exactly."""
ROWS = np.stack([NUMBERS, NUMBERS[::-1]])


class Elsewhere:
    """A tensor of a device: its numbers are had by way of ``detach`` and ``cpu`` alone."""

    def __init__(self, values: np.ndarray, steps: tuple[str, ...] = ()) -> None:
        self.values, self.steps = values, steps

    def detach(self) -> Elsewhere:
        return Elsewhere(self.values, (*self.steps, "detach"))

    def cpu(self) -> Elsewhere:
        return Elsewhere(self.values, (*self.steps, "cpu"))

    def is_floating_point(self) -> bool:
        return True

    def double(self) -> Elsewhere:
        if self.steps != ("detach", "cpu"):
            raise RuntimeError("this device has no float64")
        return self

    def numpy(self) -> np.ndarray:
        if self.steps != ("detach", "cpu"):
            raise RuntimeError("can't convert a tensor of a device, or with a gradient")
        return self.values


ONE: dict[str, Callable[[], Any]] = {
    "list": NUMBERS.tolist,
    "tuple": lambda: tuple(NUMBERS.tolist()),
    "float16": lambda: NUMBERS.astype(np.float16),
    "long double": lambda: NUMBERS.astype(np.longdouble),
    "masked, nothing hidden": lambda: np.ma.masked_array(NUMBERS, [False] * 24),
    "memoryview": lambda: memoryview(NUMBERS),
    "bfloat16": lambda: torch.tensor(NUMBERS).bfloat16(),
    "half": lambda: torch.tensor(NUMBERS).half(),
    "gradient": lambda: torch.tensor(NUMBERS, requires_grad=True),
    "bfloat16 with a gradient": lambda: torch.tensor(NUMBERS, dtype=torch.bfloat16, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.tensor(NUMBERS).float()),
    "of a graph": lambda: torch.tensor(NUMBERS, requires_grad=True) * 1,
    "list of tensors": lambda: [torch.tensor(x, dtype=torch.bfloat16, requires_grad=True) for x in NUMBERS],
    "on a device": lambda: Elsewhere(NUMBERS),
    "series": lambda: pd.Series(NUMBERS),
    "series that may miss some": lambda: pd.Series(NUMBERS, dtype="Float64"),
    "series of Arrow": lambda: pd.Series(NUMBERS, dtype="double[pyarrow]"),
    "row of a frame": lambda: pd.DataFrame(ROWS).iloc[0],
    "Arrow": lambda: pa.array(NUMBERS),
    "Arrow in chunks": lambda: pa.chunked_array([NUMBERS[:7], NUMBERS[7:]]),
    "Arrow of halves": lambda: pa.array(NUMBERS.astype(np.float16)),
}
SEVERAL: dict[str, Callable[[], Any]] = {
    "lists": ROWS.tolist,
    "frame": lambda: pd.DataFrame(ROWS),
    "column of lists": lambda: pd.Series([row.tolist() for row in ROWS]),
    "column of arrays": lambda: pd.Series(list(ROWS)),
    "column of tensors": lambda: pd.Series([torch.tensor(row).bfloat16() for row in ROWS]),
    "tensors": lambda: [torch.tensor(row, requires_grad=True) for row in ROWS],
    "tensors on a device": lambda: [Elsewhere(row) for row in ROWS],
    "lists of tensors": lambda: [[torch.tensor(x).bfloat16() for x in row] for row in ROWS],
    "Arrow's lists": lambda: pa.array(ROWS.tolist()),
    "Arrow's lists of one length": lambda: pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 24),
    "a table": lambda: pa.table({str(i): column for i, column in enumerate(ROWS.T)}),
}
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a mask": (lambda: np.ma.masked_array(NUMBERS, [True] + [False] * 23), "masked entries; fill them first"),
    "a mask in a list": (lambda: [np.ma.masked_array(NUMBERS, [True] + [False] * 23)], "masked entries"),
    "bools": (lambda: torch.ones(24, dtype=torch.bool), "entries of type bool; expected real numbers"),
    "complex": (lambda: torch.ones(24, dtype=torch.complex64), "entries of type complex64; expected real"),
    "texts": (lambda: ["1"] * 24, "entries of type <U1"),
    "missing": (lambda: pd.Series([1, None] * 12, dtype="Int64"), "12 of 24 entries that are NaN"),
    "nothing": (lambda: pa.array([1.0, None] * 12), "entries of type object"),
    "no data": (lambda: torch.ones(24, device="meta"), "NumPy cannot read the vector .*no data"),
    "sparse": (lambda: torch.ones(2, 24).to_sparse(), "NumPy cannot read the vector .*to_dense"),
    "ragged": (lambda: [[1.0], [1.0, 2.0]], "NumPy cannot read the vector .*inhomogeneous"),
    "structured": (lambda: np.zeros(24, [("x", "f8")]), "expected real numbers"),
    "times": (lambda: np.array(["2020"] * 24, "M8[D]"), "expected real numbers"),
}


@pytest.mark.parametrize("name", ONE)
def test_a_vector_of_any_library(name: str) -> None:
    found = user_vectors(ONE[name](), 24, "gpt2-a")
    assert (found.rows.tolist(), found.single) == ([NUMBERS.tolist()], True)


@pytest.mark.parametrize("name", SEVERAL)
def test_rows_of_any_library(name: str) -> None:
    found = user_vectors(SEVERAL[name](), 24, "gpt2-a")
    assert (found.rows.tolist(), found.single) == (ROWS.tolist(), False)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_vector_is_named(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(QueryError, match=message):
        user_vectors(make(), 24, "gpt2-a")


def test_float64_is_read_to_its_last_bit() -> None:
    exact = NUMBERS + np.pi
    assert user_vectors(torch.tensor(exact, requires_grad=True), 24, "x").rows.tolist() == [exact.tolist()]


def test_the_lens_of_a_tensor_is_that_of_its_numbers(atlas: Atlas) -> None:
    tensor = torch.tensor(NUMBERS, dtype=torch.bfloat16, requires_grad=True)
    assert atlas.lens(tensor, "gpt2-a").to_rows() == atlas.lens(NUMBERS, "gpt2-a").to_rows()
    assert tensor.requires_grad
    rows = [tensor, tensor.flip(0)]
    assert atlas.lens(rows, "gpt2-a", row=1).to_rows() == atlas.lens(NUMBERS[::-1], "gpt2-a").to_rows()
