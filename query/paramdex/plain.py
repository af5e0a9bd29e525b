"""Values of Arrow tables as plain Python and as JSON.

Arrow's own values would print a float32 with the digits of a double, and a decimal or an interval as an object that
JSON does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex_schemas import QueryError


def plain_values(column: pa.ChunkedArray) -> list[Any]:
    """A column's values as plain Python: float32 in its own shortest form, decimals as integers or floats where those
    are no other number.
    """
    try:
        values = column.to_pylist()
    except (OverflowError, ValueError) as error:  # years after 9999, nanoseconds
        raise QueryError(f"Python has no such date or time ({error}); cast it to VARCHAR in SQL") from error
    convert = converter(column.type)
    return values if convert is None else [None if value is None else convert(value) for value in values]


def converter(of: pa.DataType) -> Callable[[Any], Any] | None:
    """Makes plain Python of a value of a type that is not null; None where it is plain."""
    if pa.types.is_float32(of):
        return short
    if pa.types.is_decimal(of):
        return plain_decimal
    if pa.types.is_interval(of):
        return lambda value: f"P{value.months}M{value.days}DT{value.nanoseconds / 1e9:.9g}S"
    if pa.types.is_struct(of):
        fields = {field.name: converter(field.type) or (lambda value: value) for field in of}
        return lambda value: {name: None if item is None else fields[name](item) for name, item in value.items()}
    if pa.types.is_map(of):
        key, item = (converter(each) or (lambda value: value) for each in (of.key_type, of.item_type))
        return lambda value: [(key(name), None if each is None else item(each)) for name, each in value]
    if not (pa.types.is_list(of) or pa.types.is_fixed_size_list(of)):
        return None
    inner = converter(of.value_type)
    return None if inner is None else lambda value: [None if item is None else inner(item) for item in value]


def short(value: float | None) -> float:
    """A float32 in its own shortest form; 0 for none.

    >>> short(0.2206999957561493)
    0.2207
    """
    return 0.0 if value is None else float(str(np.float32(value)))


def plain_decimal(value: Decimal) -> int | float | Decimal:
    """An integer or a float where that is the same number.

    >>> plain_decimal(Decimal("3.00")), plain_decimal(Decimal("0.1")), plain_decimal(Decimal("12345678901234567.8"))
    (3, 0.1, Decimal('12345678901234567.8'))
    """
    if value == int(value):
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else value


def json_text(value: Any) -> str:
    """A value as JSON; null stands for NaN and infinity, which JSON does not have."""
    return json.dumps(finite(value), ensure_ascii=False, default=str)


def finite(value: Any) -> Any:
    """The value with None for every NaN and infinity in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
