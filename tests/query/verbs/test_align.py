"""``align``: rows equal to a float64 brute force, for one vocabulary and for two, both orders; and the heat maps."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

import oracle
from paramdex import AddressError, Atlas, QueryError
from paramdex.verbs.align import _alignment, diagonality
from query_helpers import GPT2, shared_ids

PAIRS = [
    ("gpt2-a", "gpt2-b"),
    ("gpt2-b", "gpt2-wide"),
    ("gpt2-a", "bert"),
    ("gpt2-wide", "llama-gqa"),
    ("llama-gqa", "bert"),
]
"""One vocabulary; one vocabulary and other widths; different vocabularies. Each is asked in both orders."""


def layer_scores(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    return np.array([[np.abs(oracle.pearson(x, y)).mean() for y in b] for x in a])


def best_sum(scores: np.ndarray) -> float:
    """The largest sum of a one-to-one matching, by trying all."""
    scores = scores if scores.shape[0] <= scores.shape[1] else scores.T
    return max(
        sum(scores[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(scores.shape[1]), len(scores))
    )


def assert_matched(scores: np.ndarray, matched: np.ndarray) -> None:
    assert matched.sum() == min(scores.shape)
    assert matched.sum(0).max() == matched.sum(1).max() == 1
    assert scores[matched].sum() == pytest.approx(best_sum(scores), abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [*PAIRS, *(pair[::-1] for pair in PAIRS)])
def test_agrees_with_brute_force(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], a: str, b: str
) -> None:
    one_vocabulary = a in GPT2 and b in GPT2
    ids = shared_ids(db, a, b)
    E_a, E_b = (truths[m].E if one_vocabulary else truths[m].E[i] for m, i in zip((a, b), ids, strict=True))
    result = atlas.align(a, b)
    kinds = [kind for kind in oracle.WEIGHTS if kind in truths[a].rows and kind in truths[b].rows]
    assert result.kinds == kinds
    for kind in kinds:
        rows_a, rows_b = truths[a].rows[kind], truths[b].rows[kind]
        rows = [row for row in result if row["kind"] == kind]
        places = list(np.ndindex(len(rows_a), len(rows_b)))
        assert [(row["model_a"], row["model_b"], row["layer_a"], row["layer_b"]) for row in rows] == [
            (a, b, *place) for place in places
        ]
        assert {(row["stack_a"], row["stack_b"]) for row in rows} == {(None, None)}
        scores = layer_scores([x @ E_a.T for x in rows_a], [y @ E_b.T for y in rows_b])
        found = result.scores(kind)
        np.testing.assert_allclose(found, scores, atol=1e-5, rtol=0)
        np.testing.assert_allclose([row["score"] for row in rows], found.ravel(), rtol=1e-7)
        assert_matched(scores, np.reshape([row["matched"] for row in rows], scores.shape))
        if not one_vocabulary or E_a.shape[1] != E_b.shape[1]:
            assert {(row["feature_score"], row["feature_matched"]) for row in rows} == {(None, None)}
            assert np.isnan(result.scores(kind, feature=True)).all()
            continue
        features = layer_scores(rows_a, rows_b)
        np.testing.assert_allclose(result.scores(kind, feature=True), features, atol=1e-5, rtol=0)
        assert_matched(features, np.reshape([row["feature_matched"] for row in rows], features.shape))


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_other_order_is_the_transpose(atlas: Atlas, a: str, b: str) -> None:
    there = {(row["kind"], row["layer_a"], row["layer_b"]): row for row in atlas.align(a, b)}
    back = {(row["kind"], row["layer_b"], row["layer_a"]): row for row in atlas.align(b, a)}
    assert there.keys() == back.keys()
    for place, row in there.items():
        assert row["score"] == pytest.approx(back[place]["score"], abs=1e-6)
        assert row["matched"] == back[place]["matched"]
        assert row["feature_score"] == back[place]["feature_score"]


@pytest.mark.parametrize(("a", "b"), [("gpt2-a", "gpt2-b"), ("bert", "llama-gqa")])
def test_one_kind(atlas: Atlas, a: str, b: str) -> None:
    assert atlas.align(a, b, "attn_key").to_rows() == [row for row in atlas.align(a, b) if row["kind"] == "attn_key"]


def test_summary_says_layers_and_means(atlas: Atlas) -> None:
    """The printed line of a kind: its matching, and the mean score of matched pairs and of the others."""
    result = atlas.align("gpt2-wide", "gpt2-a")
    rows = [row for row in result if row["kind"] == "ff_value"]
    matched, others = ([row["score"] for row in rows if row["matched"] is wanted] for wanted in (True, False))
    pairs = " ".join(f"{row['layer_a']}-{row['layer_b']}" for row in rows if row["matched"])
    (line,) = [line for line in str(result).splitlines() if line.startswith("ff_value")]
    numbers = [np.mean(matched), np.mean(others), *result.diagonality("ff_value")]
    assert line.split() == ["ff_value", *pairs.split(), *(f"{number:.4g}" for number in numbers)]


def test_the_same_order_on_both_sides_is_called_so(atlas: Atlas) -> None:
    for row in atlas.align("gpt2-a", "gpt2-b").summary:
        pairs = {(r["layer_a"], r["layer_b"]) for r in atlas.align("gpt2-a", "gpt2-b", row["kind"]) if r["matched"]}
        assert (row["layers"] == "identity") == (pairs == {(0, 0), (1, 1)})


def brute_diagonality(S: np.ndarray) -> tuple[float, float]:
    """By its definition: the correlation of all entries, and of every order of the longer side, or of either."""
    i, j = np.indices(S.shape)
    near = (1 - np.abs(i / (len(S) - 1) - j / (S.shape[1] - 1))).ravel()
    own = np.corrcoef(near, S.ravel())[0, 1]
    of_a = [np.corrcoef(near, S[list(p)].ravel())[0, 1] for p in permutations(range(S.shape[0]))]
    of_b = [np.corrcoef(near, S[:, list(p)].ravel())[0, 1] for p in permutations(range(S.shape[1]))]
    chosen = [others for others, size in ((of_a, S.shape[0]), (of_b, S.shape[1])) if size == max(S.shape)]
    return own, max(float(np.mean(np.array(others) >= own - 1e-9)) for others in chosen)


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 999))
def test_diagonality_is_its_definition(n: int, m: int, seed: int) -> None:
    S = np.random.default_rng(seed).random((n, m))
    assert diagonality(S) == pytest.approx(brute_diagonality(S))
    assert diagonality(S.T) == pytest.approx(diagonality(S))


def test_diagonality_of_deep_models_is_drawn() -> None:
    """Of 24 layers: a diagonal is found out, noise is not, and both the same every time."""
    noise = np.random.default_rng(0).random((24, 24))
    ordered = noise + 2 * np.eye(24)
    correlation, p = diagonality(ordered)
    assert correlation == pytest.approx(brute_correlation(ordered))
    assert p == 1 / 10_000
    correlation, p = diagonality(noise)
    assert 0.01 < p < 1
    assert diagonality(noise) == (correlation, p)
    orders = np.random.default_rng(1).permuted([range(24)] * 2000, axis=1)
    drawn = [brute_correlation(noise[:, order]) for order in orders]
    assert p == pytest.approx(np.mean(np.array(drawn) >= correlation), abs=0.05)


@pytest.mark.parametrize(
    ("sizes", "lines"),
    [
        ([(4, 4)], ["p of 4 layers is at least 1/24"]),
        ([(2, 5), (3, 3), (5, 5)], ["p of 3 layers is at least 1/6", "p of 5 layers is at least 1/120"]),
        ([(8, 8)], ["p of 8 layers is at least 1/10,000"]),
        ([(1, 6)], []),
    ],
    ids=str,
)
def test_the_least_p_is_said_and_can_be(sizes: list[tuple[int, int]], lines: list[str]) -> None:
    """Of layers that align as well as layers can."""
    rows = [
        (f"kind{number}", (None, i), (None, j), 1 - abs(i / max(n - 1, 1) - j / (m - 1)), i == j, None, None)
        for number, (n, m) in enumerate(sizes)
        for i in range(n)
        for j in range(m)
    ]
    result = _alignment("a", "b", rows)
    for printed in (result, result.summary):
        assert (printed.title or "").splitlines()[2:] == lines
    least = {float(Fraction(line.rpartition(" ")[2].replace(",", ""))) for line in lines}
    assert {row["p"] for row in result.summary} == (least or {None})


def brute_correlation(S: np.ndarray) -> float:
    depth = np.linspace(0, 1, len(S))
    return float(np.corrcoef((1 - np.abs(depth[:, None] - depth)).ravel(), S.ravel())[0, 1])


@pytest.mark.parametrize("S", [np.ones((3, 4)), np.ones((1, 4)), np.zeros((2, 2))])
def test_diagonality_of_what_has_no_order(S: np.ndarray) -> None:
    assert np.isnan(diagonality(S)).all()


def test_different_vocabularies_say_what_they_share(atlas: Atlas, db: duckdb.DuckDBPyConnection) -> None:
    ids, _ = shared_ids(db, "bert", "gpt2-a")
    n = len(ids)
    (note,) = atlas.align("bert", "gpt2-a").notes
    shares = f"({n / 86:.0%} of bert's, {n / 483:.0%} of gpt2-a's)"
    assert note == f"bert and gpt2-a are compared on the {n} tokens whose text both have {shares}"
    assert list(atlas.align("gpt2-a", "gpt2-b").notes) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gpt2-a", "gpt2-a"), QueryError, "align takes two different models, not gpt2-a twice"),
        (("gpt2-a", "gpt2-x"), AddressError, "has no model 'gpt2-x'; did you mean gpt2-b"),
        (("nope", "gpt2-a"), AddressError, "has no model 'nope'; there are gpt2-a, gpt2-b"),
        (("gpt2-a", "gpt2-b", "ff_valu"), QueryError, "there is no kind 'ff_valu'; did you mean ff_value"),
        (("gpt2-a", "bert", "ff_gate"), QueryError, "there is no kind 'ff_gate'"),
        (
            ("gpt2-a", "gpt2-b", "ff_bias"),
            QueryError,
            "align compares the weights of layers, and ff_bias is not a weight; ",
        ),
        (
            ("gpt2-a", "bert", "position"),
            QueryError,
            "the weights of layers, and position is not a weight; there are ff_key, ff_value, ",
        ),
        (("llama-gqa", "bert", "ff_gate"), QueryError, "llama-gqa and bert have no kind of parameter in common"),
    ],
)
def test_what_is_not_there_is_said(
    atlas: Atlas, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        atlas.align(*arguments)


@pytest.mark.parametrize(
    ("a", "b", "rows"), [("gpt2-a", "gpt2-b", 2), ("gpt2-a", "gpt2-wide", 1), ("bert", "llama-gqa", 1)]
)
def test_png_is_a_picture_of_its_size(atlas: Atlas, tmp_path: Path, a: str, b: str, rows: int) -> None:
    """Six kinds side by side at 150 dots an inch, in colour; a second row of raw weights where the widths agree."""
    path = atlas.align(a, b).plot(tmp_path / "heat.png")
    assert path == tmp_path / "heat.png"
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    picture = imread(path)
    assert picture.shape[:2] == (round((2.5 * rows + 0.9) * 150), round((2.3 * 6 + 1.2) * 150))
    colours = np.unique((picture[..., :3] * 255).round().astype(int).reshape(-1, 3), axis=0)
    assert len(colours) > 100
    # both ends of the colour map: some pair of layers is the least alike, some the most
    for end in ([68, 1, 84], [253, 231, 37]):
        assert np.abs(colours - end).max(1).min() <= 2


def test_svg_is_a_picture_with_the_names_in_it(atlas: Atlas, tmp_path: Path) -> None:
    result = atlas.align("gpt2-a", "gpt2-wide", "ff_key")
    root = ET.parse(result.plot(tmp_path / "heat.svg")).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.attrib["width"].removesuffix("pt")) == pytest.approx((2.3 + 1.2) * 72)
    assert float(root.attrib["height"].removesuffix("pt")) == pytest.approx((2.5 + 0.9) * 72)
    images = root.findall(".//{http://www.w3.org/2000/svg}image")
    assert len(images) == 2  # the heat map and its colour bar
    # layers of the first model upwards, of the second to the right: 2 x 3 cells
    width, height = (float(images[0].attrib[name]) for name in ("width", "height"))
    assert width / height == pytest.approx(3 / 2, rel=0.05)


def test_html_is_a_page_with_the_picture_in_it(atlas: Atlas, tmp_path: Path) -> None:
    text = atlas.align("gpt2-a", "gpt2-b", "ff_key").plot(tmp_path / "a&b.html").read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert "<title>a&amp;b</title>" in text
    assert "layer of gpt2-a" in text
    assert "http" not in text.partition("<svg")[0]
    assert "<script" not in text
    assert ET.fromstring(text[text.index("<svg") : text.index("</body>")]).tag.endswith("svg")


def test_plot_of_one_kind_is_one_column(atlas: Atlas, tmp_path: Path) -> None:
    picture = imread(atlas.align("gpt2-a", "gpt2-wide", "ff_key").plot(tmp_path / "heat.png"))
    assert picture.shape[:2] == (round(3.4 * 150), round(3.5 * 150))


@pytest.mark.parametrize("name", ["heat.txt", "heat", "heat.", ".png", "heat.jpegg"])
def test_bad_ending_is_refused_and_nothing_written(atlas: Atlas, tmp_path: Path, name: str) -> None:
    with pytest.raises(QueryError, match=r"no ending that names a picture format; write one of .*\.png.*\.svg"):
        atlas.align("gpt2-a", "gpt2-b", "ff_key").plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"cannot write .*missing.heat\.png: No such file or directory"):
        atlas.align("gpt2-a", "gpt2-b", "ff_key").plot(tmp_path / "missing" / "heat.png")
    assert list(tmp_path.iterdir()) == []
