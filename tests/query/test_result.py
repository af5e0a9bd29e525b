"""Results: Arrow, pandas, JSON, CSV, HTML and printed tables all carry the same values, whatever the text in them."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
import subprocess
import sys
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdex import Atlas, Result
from paramdex.result import SHOWN_ROWS
from paramdex.text import visible

NASTY = [
    " Canada", "Canada ", "  two", "a\nb", "tab\there", "\r", "\x00", "\x1b[31mred", "\x85", "\xa0", "\xad", "\u2028",
    "\u2029", "\u200b", "\u202eevil", "<b>&amp;\"'", "[bold]rich[/bold]", "a,b", '"quoted"', "", "日本", "é", "e\u0301",
    "🍁", "\ue000", "=1+1", "null", "␣",
]  # fmt: skip
TABLE = pa.table(
    {
        "n": pa.array(range(len(NASTY)), pa.int64()),
        "text": NASTY,
        "score": pa.array([i / 7 - 1 for i in range(len(NASTY))], pa.float32()),
        "yes": [i % 2 == 0 for i in range(len(NASTY))],
        "nothing": pa.array([None] * len(NASTY), pa.string()),
        "list": [[text, " x"] for text in NASTY],
    }
)


@pytest.fixture(scope="module")
def answers(atlas: Atlas) -> dict[str, Result]:
    """One answer of every verb."""
    return {
        "info": atlas.info(),
        "show": atlas.show("gpt2-a/L0/ff_value/3"),
        "show position": atlas.show("bert/position/3"),
        "show head": atlas.show("llama-gqa/L0/H1"),
        "show model": atlas.show("bert"),
        "find": atlas.find(["canada", "paris"]),
        "search": atlas.search("canada paris"),
        "similar": atlas.similar("gpt2-a/L0/ff_value/3", model="all"),
        "align": atlas.align("gpt2-b", "gpt2-a"),
        "check": atlas.check(),
        "sql": atlas.sql("SELECT * FROM models ORDER BY model"),
        "sql layout": atlas.sql("SELECT * FROM layout ORDER BY first_param_id"),
    }


VERBS = [
    "info", "show", "show position", "show head", "show model", "find", "search", "similar", "align", "check", "sql",
    "sql layout",
]  # fmt: skip


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def same(found: object, expected: object) -> bool:
    """Equal, a float32 in its shortest form being equal to itself, and a date to its text."""
    if isinstance(expected, float) and isinstance(found, float):
        return float32(found) == float32(expected)
    return found == (str(expected) if isinstance(expected, datetime) else expected)


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_one_array_of_row_objects(answers: dict[str, Result], verb: str) -> None:
    result = answers[verb]
    parsed = json.loads(result.to_json())
    table = result.to_arrow().to_pylist()
    assert [list(row) for row in parsed] == [list(row) for row in table] != []
    for found, expected in zip(parsed, table, strict=True):
        assert all(same(found[name], expected[name]) for name in expected), (found, expected)


@pytest.mark.parametrize("verb", VERBS)
def test_pandas_and_arrow_carry_the_rows(answers: dict[str, Result], verb: str) -> None:
    result = answers[verb]
    frame = result.to_pandas()
    assert list(frame.columns) == result.columns == result.to_arrow().column_names
    assert len(frame) == len(result) == result.to_arrow().num_rows
    for name in result.columns:
        for found, expected in zip(frame[name].tolist(), result.to_arrow()[name].to_pylist(), strict=True):
            if expected is None:
                assert found is None or found != found  # noqa: PLR0124  # NaN
            elif isinstance(expected, list):
                assert list(found) == expected
            else:
                assert found == expected


@pytest.mark.parametrize("verb", VERBS)
def test_csv_parses_back(answers: dict[str, Result], verb: str) -> None:
    result = answers[verb]
    header, *rows = csv.reader(io.StringIO(result.to_csv()))
    assert header == result.columns
    expected = [["" if value is None else value for value in row.values()] for row in result.to_arrow().to_pylist()]
    for found_row, expected_row in zip(rows, expected, strict=True):
        for found, value in zip(found_row, expected_row, strict=True):
            if isinstance(value, list):
                assert json.loads(found) == value
            elif isinstance(value, float):
                assert float32(float(found)) == float32(value)
            else:
                assert found == str(value)


def test_nasty_text_survives_json_and_csv() -> None:
    result = Result(TABLE)
    rows = json.loads(result.to_json())
    assert [row["text"] for row in rows] == NASTY
    assert [row["list"] for row in rows] == [[text, " x"] for text in NASTY]
    header, *lines = csv.reader(io.StringIO(result.to_csv(), newline=""))
    assert [line[header.index("text")] for line in lines] == NASTY
    assert [json.loads(line[header.index("list")]) for line in lines] == [[text, " x"] for text in NASTY]
    assert [line[header.index("nothing")] for line in lines] == [""] * len(NASTY)


@given(st.lists(st.tuples(st.text(), st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=5))
def test_any_text_survives_json_and_csv(rows: list[tuple[str, int | None]]) -> None:
    table = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.string()), "b": pa.array([b for _, b in rows], pa.int64())}
    )
    result = Result(table)
    assert [tuple(row.values()) for row in json.loads(result.to_json())] == rows
    _, *lines = csv.reader(io.StringIO(result.to_csv(), newline=""))
    assert [(a, int(b) if b else None) for a, b in lines] == rows


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_is_written_short_and_exactly(value: float) -> None:
    (row,) = Result(pa.table({"x": pa.array([value], pa.float32())})).to_rows()
    assert float32(row["x"]) == value
    assert len(repr(row["x"])) <= len(repr(value))


def test_float32_in_its_shortest_form() -> None:
    values = [0.1, 1 / 3, 1 + 2**-23, 16777217.0, -0.0, 1e-45]
    rows = Result(pa.table({"x": pa.array(values, pa.float32())})).to_rows()
    assert [row["x"] for row in rows] == [0.1, 0.33333334, 1.0000001, 16777216.0, 0.0, 1e-45]


def test_numbers_that_json_does_not_have_are_null() -> None:
    table = pa.table(
        {
            "x": [math.nan, math.inf, 1.5],
            "y": [[math.nan], [1.0], None],
            "z": pa.array([-math.inf, 0.5, None], pa.float32()),
        }
    )
    text = Result(table).to_json()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(text, parse_constant=refuse) == [
        {"x": None, "y": [None], "z": None},
        {"x": None, "y": [1.0], "z": 0.5},
        {"x": 1.5, "y": None, "z": None},
    ]


def test_other_types(atlas: Atlas) -> None:
    query = (
        "SELECT 12345678901234567890123::HUGEINT AS h, 1.5::DECIMAL(4, 2) AS d, sum(x) AS s, DATE '2026-01-02' AS t, "
    )
    query += "{'a': 1, 'b': [true]} AS r, x'00ff'::BLOB IS NOT NULL AS b FROM range(3) AS t(x)"
    expected = {
        "h": 12345678901234567890123,
        "d": 1.5,
        "s": 3,
        "t": "2026-01-02",
        "r": {"a": 1, "b": [True]},
        "b": True,
    }
    assert json.loads(atlas.sql(query).to_json()) == [expected]


def test_no_rows_and_no_columns() -> None:
    empty = Result(pa.table({"a": pa.array([], pa.int64())}), "title", ["a note"])
    assert (empty.to_json(), empty.to_csv(), str(empty)) == ("[]", "a", "title\n(no rows)\na note")
    assert (len(empty), list(empty)) == (0, [])
    nothing = Result(pa.table({}))
    assert (nothing.to_json(), nothing.to_csv(), str(nothing)) == ("[]", "", "(no rows)")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (" Canada", "␣Canada"), ("Canada ", "Canada␣"), ("a b", "a b"), ("  ", "␣␣"), ("a\nb", r"a\nb"), ("\t", r"\t"),
        ("\r", r"\r"), ("\x00", r"\x00"), ("\x1b[31m", r"\x1b[31m"), ("\x7f", r"\x7f"), ("\x85", r"\x85"),
        ("\xa0", r"\xa0"), ("\u2028", r"\u2028"), ("\u200b", r"\u200b"), ("\u202e", r"\u202e"), ("\ufeff", r"\ufeff"),
        ("é日🍁", "é日🍁"),
        ("", ""), (r"\xe9", r"\xe9"),
    ],
)  # fmt: skip
def test_visible(text: str, printed: str) -> None:
    assert visible(text) == printed


@given(st.text())
def test_visible_is_one_printable_line(text: str) -> None:
    assert visible(text).isprintable()
    assert len(visible(text)) >= len(text)


def test_table_prints_one_line_a_row() -> None:
    """No text breaks a line, moves the cursor, or is taken for rich's own markup; numbers have four digits."""
    lines = str(
        Result(TABLE.select(["n", "text", "score", "yes", "nothing"]), "The [bold]title[/bold]", ["note"])
    ).split("\n")
    assert lines[0] == "The [bold]title[/bold]"
    assert lines[1].split() == ["n", "text", "score", "yes", "nothing"]
    assert lines[-1] == "note"
    rows = lines[3:-1]
    assert len(rows) == len(NASTY)
    for i, (row, text) in enumerate(zip(rows, NASTY, strict=True)):
        assert row.isprintable()
        assert row.lstrip().startswith(f"{i} ")
        assert visible(text) in row
        assert row.split()[-2:] == [f"{float32(i / 7 - 1):.4g}", "yes" if i % 2 == 0 else "no"]


@pytest.mark.parametrize("width", [20, 60, 100, 200])
def test_narrow_terminal_cuts_no_number_and_no_address(
    answers: dict[str, Result], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = str(answers["similar"])
    for row in answers["similar"]:
        (line,) = [line for line in text.splitlines() if f" {row['address']} " in f"{line} "]
        assert line.split()[:3] == [str(row["rank"]), f"{row['similarity']:.4g}", row["address"]]


def test_long_text_folds_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = str(Result(pa.table({"n": [12345], "hash": ["0123456789abcdef" * 8]}))).splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(line.removeprefix("12345").strip() for line in lines[2:]) == "0123456789abcdef" * 8


@pytest.mark.parametrize(("rows", "more"), [(SHOWN_ROWS, None), (SHOWN_ROWS + 1, "1"), (SHOWN_ROWS + 1234, "1,234")])
def test_printed_rows_are_capped_and_it_is_said(rows: int, more: str | None) -> None:
    result = Result(pa.table({"x": list(range(rows))}))
    lines = str(result).splitlines()
    assert [line.strip() for line in lines[2 : 2 + SHOWN_ROWS]] == [str(i) for i in range(SHOWN_ROWS)]
    assert lines[2 + SHOWN_ROWS :] == (
        [] if more is None else [f"... {more} more rows; --format csv or json gives all"]
    )
    assert result._repr_html_().count("<tr>") == SHOWN_ROWS + 1
    assert (f"<p>... {more} more rows</p>" in result._repr_html_()) is (more is not None)
    assert len(json.loads(result.to_json())) == rows == len(result.to_csv().splitlines()) - 1


def test_printed_text_is_plain_in_a_notebook_and_with_forced_colour(
    answers: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich by itself would send a notebook its own output and give an empty text, and write bold where it is forced."""
    plain = str(answers["show"])
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(answers["show"]) == plain
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(answers["show"]) == plain
    assert "\x1b" not in plain


class Cells(HTMLParser):
    """The texts of the cells of a table, and every tag that was met."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:  # noqa: ARG002  # the parser calls it so
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("td", "th"):
            self.rows[-1][-1] += data


def test_html_escapes_everything() -> None:
    result = Result(TABLE.select(["n", "text", "list"]), "<script>title</script>", ["<i>note</i>"])
    cells = Cells()
    cells.feed(result._repr_html_())
    assert cells.tags == {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert cells.rows[0] == ["n", "text", "list"]
    assert cells.rows[1:] == [[str(i), visible(t), f"{visible(t)}, ␣x"] for i, t in enumerate(NASTY)]
    assert "<p>&lt;script&gt;title&lt;/script&gt;</p>" in result._repr_html_()
    assert result._repr_html_().endswith("<p>&lt;i&gt;note&lt;/i&gt;</p>")


def test_pandas_missing_leaves_the_rest_working(small_atlas: Path) -> None:
    """pandas is asked for by to_pandas alone."""
    program = (
        "import sys; sys.modules['pandas'] = None\nimport paramdex\n"
        f"with paramdex.open({str(small_atlas)!r}) as atlas: print(atlas.sql('SELECT 1 AS x').to_json())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == '[{"x": 1}]\n'


def test_a_prompt_shows_the_answer(atlas: Atlas) -> None:
    for result in (atlas.info(), atlas.show("bert/L0/ff_key/1"), atlas.align("gpt2-a", "gpt2-b")):
        assert repr(result) == str(result)
