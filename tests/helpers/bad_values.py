"""Values that no one should pass, or that few do: each is made anew for every call, for an iterator is used up by one.

``VALUES`` is name -> maker.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import io
import itertools
import uuid
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

import paramdex
from paramdex_builder import EvaluateOptions, Options, StitchOptions
from paramdex_schemas import KINDS, Address, Layout, Run


class Odd(enum.Enum):
    """An enumeration of nothing that is asked for."""

    ONE = 1
    TEXT = "top"


class Failing:
    """Whatever is done with it fails, with an error of its own."""

    def _fail(self, *_: object) -> Any:
        raise LookupError("out of order")

    __str__ = __repr__ = __index__ = __len__ = __iter__ = __bool__ = __hash__ = __eq__ = __float__ = __int__ = _fail  # type: ignore[assignment]
    __fspath__ = __array__ = __format__ = __getitem__ = __contains__ = _fail


class FailingText(str):
    """A text that cannot be printed."""

    __slots__ = ()

    def __str__(self) -> str:
        raise LookupError("out of order")

    __repr__ = __str__


class FailingIterator:
    """A sequence whose second item fails."""

    def __iter__(self) -> Iterator[str]:
        yield "food"
        raise LookupError("out of order")


class PathLike:
    """A path that is no ``Path``."""

    def __init__(self, text: str | bytes) -> None:
        self.text = text

    def __fspath__(self) -> str | bytes:
        return self.text


class WideIndex:
    """A whole number too long to be written in decimal."""

    def __index__(self) -> int:
        return 10**5000


def _deep(levels: int, of: type = list) -> Any:
    found: Any = "food"
    for _ in range(levels):
        found = {"x": found} if of is dict else of([found])
    return found


def _circle() -> list[Any]:
    found: list[Any] = ["food"]
    found.append(found)
    return found


def _objects() -> np.ndarray:
    found = np.empty(24, object)
    found[3] = Failing()
    return found


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "zero": lambda: 0,
    "minus one": lambda: -1,
    "a million": lambda: 10**6,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "2**70": lambda: 2**70,
    "-2**70": lambda: -(2**70),
    "10**5000": lambda: 10**5000,
    "a half": lambda: 0.5,
    "two as a float": lambda: 2.0,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "complex": lambda: 1 + 2j,
    "a decimal": lambda: decimal.Decimal("1.5"),
    "a fraction": lambda: Fraction(1, 3),
    "no text": lambda: "",
    "a space": lambda: " ",
    "a line end": lambda: "\n",
    "NUL": lambda: "\0",
    "NUL in a text": lambda: "fo\0od",
    "a lone surrogate": lambda: "\udc80",
    "a high surrogate": lambda: "fo\ud800od",
    "quotes": lambda: "'\"`;--",
    "percent": lambda: "%s %d {x} %",
    "dollar and question mark": lambda: "$x ?",
    "terminal sequences": lambda: "\x1b[31mred\x07",
    "right to left": lambda: "\u202efood",
    "a long text": lambda: "a" * 1_000_000,
    "a long text of words": lambda: "food " * 20_000,
    "slashes": lambda: "////",
    "an address of nothing": lambda: "x/L0/ff_value/0",
    "a home": lambda: "~",
    "an unknown home": lambda: "~nobody-of-that-name/x",
    "a home with NUL": lambda: "~\0",
    "an address": lambda: "gpt2-a/L0/ff_value/1",
    "a model": lambda: "gpt2-a",
    "a digit": lambda: "7",
    "a long number": lambda: "9" * 5000,
    "bytes": lambda: b"food",
    "a bytearray": lambda: bytearray(b"food"),
    "a memoryview": lambda: memoryview(b"food"),
    "an empty list": list,
    "an empty tuple": lambda: (),
    "a list of None": lambda: [None],
    "a list of texts": lambda: ["food", "bread"],
    "a list of no text": lambda: [""],
    "a list of numbers": lambda: [1, 2],
    "a list of NaN": lambda: [float("nan")],
    "a list of surrogates": lambda: ["\udc80"],
    "a list of NUL": lambda: ["\0"],
    "a list of lists": lambda: [["food"], [["bread"]]],
    "pairs": lambda: [("food", "bread")],
    "a ragged list": lambda: [[1.0], [1.0, 2.0]],
    "a deep list": lambda: _deep(100_000),
    "a deep tuple": lambda: _deep(3_000, tuple),
    "a deep dictionary": lambda: _deep(3_000, dict),
    "a list in a circle": _circle,
    "an empty dictionary": dict,
    "a dictionary": lambda: {"food": 1},
    "a dictionary of numbers": lambda: {1: 2},
    "a set": lambda: {"food", "bread"},
    "a range": lambda: range(3),
    "a slice": lambda: slice(3),
    "a generator": lambda: (word for word in ("food", "bread")),
    "a generator that fails": lambda: (1 / n for n in (1, 0)),
    "a sequence that fails": FailingIterator,
    "an iterator": lambda: iter([]),
    "a map": lambda: map(int, ["x"]),
    "a chain": lambda: itertools.chain([1], [None]),
    "a function": lambda: len,
    "a class": lambda: int,
    "a module": lambda: np,
    "an object": object,
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "an error": lambda: ValueError("x"),
    "what fails": Failing,
    "a text that fails": lambda: FailingText("food"),
    "a long index": WideIndex,
    "an enumeration": lambda: Odd.ONE,
    "an enumeration of a text": lambda: Odd.TEXT,
    "a date": lambda: dt.date(2020, 1, 1),
    "a time": lambda: dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    "a duration": lambda: dt.timedelta(days=999_999_999),
    "a UUID": lambda: uuid.UUID(int=0),
    "a path": lambda: Path("food"),
    "a path of nothing": Path,
    "a path of a home": lambda: Path("~/food"),
    "a path of surrogates": lambda: Path("\udc80"),
    "a path with NUL": lambda: Path("fo\0od"),
    "a long path": lambda: Path("a" * 100_000),
    "a deep path": lambda: "a/" * 100_000,
    "a pure path": lambda: PurePosixPath("food"),
    "what is like a path": lambda: PathLike("food"),
    "what is like a path of bytes": lambda: PathLike(b"food"),
    "an open file": lambda: io.StringIO("food"),
    "an open file of bytes": lambda: io.BytesIO(b"food"),
    "NumPy's text": lambda: np.str_("food"),
    "NumPy's bytes": lambda: np.bytes_(b"food"),
    "NumPy's whole number": lambda: np.int8(-1),
    "NumPy's unsigned": lambda: np.uint64(2**64 - 1),
    "NumPy's bool": lambda: np.bool_(True),
    "NumPy's float": lambda: np.float16("inf"),
    "NumPy's long double": lambda: np.longdouble(1),
    "NumPy's complex": lambda: np.complex64(1j),
    "NumPy's time": lambda: np.datetime64("NaT"),
    "NumPy's void": lambda: np.void(b"food"),
    "an array": lambda: np.ones(24),
    "an array of rows": lambda: np.ones((2, 24), np.float16),
    "an array of no rows": lambda: np.ones((0, 24)),
    "an array of no dimension": lambda: np.array(3),
    "an array of a text": lambda: np.array("food"),
    "an array of texts": lambda: np.array(["food", "bread"]),
    "an array of objects": _objects,
    "a structured array": lambda: np.zeros(2, [("a", "f8"), ("b", "U3")]),
    "an array of times": lambda: np.array(["2020"], "M8[D]"),
    "an array of complex": lambda: np.ones(24, complex),
    "an array of bools": lambda: np.ones(24, bool),
    "a masked array": lambda: np.ma.masked_array(np.ones(24), [True] + [False] * 23),
    "an array of 32 dimensions": lambda: np.ones((1,) * 32),
    "a series": lambda: pd.Series(["food", "bread"]),
    "a series of missing": lambda: pd.Series([1, None], dtype="Int64"),
    "a frame": lambda: pd.DataFrame({"food": [1]}),
    "an index": lambda: pd.MultiIndex.from_tuples([("a", "b")]),
    "a categorical": lambda: pd.Categorical(["food"]),
    "missing": lambda: pd.NA,
    "no time": lambda: pd.NaT,
    "Arrow's text": lambda: pa.scalar("food"),
    "Arrow's array": lambda: pa.array(["food", None]),
    "Arrow's chunks": lambda: pa.chunked_array([["food"], ["bread"]]),
    "Arrow's table": lambda: pa.table({"food": [1]}),
    "Arrow's lists": lambda: pa.array([[1.0] * 24]),
    "Arrow's null": lambda: pa.scalar(None),
    "a tensor": lambda: torch.ones(24, dtype=torch.bfloat16, requires_grad=True),
    "a tensor of one": lambda: torch.tensor(3),
    "a tensor of a bool": lambda: torch.tensor(True),
    "a tensor of no data": lambda: torch.ones(24, device="meta"),
    "a tensor of one without data": lambda: torch.ones((), dtype=torch.int64, device="meta"),
    "a sparse tensor": lambda: torch.ones(2, 24).to_sparse(),
    "a quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(24), 0.1, 0, torch.qint8),
    "a complex tensor": lambda: torch.ones(24, dtype=torch.complex64),
    "an Address": lambda: Address("gpt2-a", 0, kind="ff_value", idx=1),
    "an Address of nothing": lambda: Address("gpt2-a", 10**8, 7, "no_kind", 10**8, "cross", 3),
    "an Address of half a parameter": lambda: Address("gpt2-a", kind="ff_value"),
    "a filter": lambda: paramdex.TokenFilter(ascii=True),
    "a filter's class": lambda: paramdex.TokenFilter,
    "a Result": lambda: paramdex.Result(pa.table({"x": [1]})),
    "a Kind": lambda: KINDS["ff_value"],
    "a Run": lambda: Run("ff_value", None, 0, None, 1, 1, 1),
    "a Layout": lambda: Layout(()),
    "Options": Options,
    "EvaluateOptions": EvaluateOptions,
    "StitchOptions": StitchOptions,
}
