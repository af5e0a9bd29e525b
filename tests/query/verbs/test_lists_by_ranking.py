"""Lists by score and by token_z, in every verb that shows some: against float64 brute force, and against each other.

``token_z`` of a token and a vector is computed anew here, from all V scores of all vectors: how many standard
deviations the score lies from the mean of the token's scores over all vectors of the kind in the space that scores it.
"""

from __future__ import annotations

import random
from pathlib import Path

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from paramdex import Atlas, QueryError, TokenFilter
from paramdex.cli import cli
from paramdex.store.postings import Side
from paramdex.text import arrow, visible
from paramdex_schemas import Address
from paramdex_schemas.model import Model, Ranking
from query_helpers import Everything, ids_of_words

KEPT, LEAST = 12, 50
"""Tokens per side and ranking of the atlas, and the vectors that something must have for anything to be usual."""
EDGE = 1e-5
"""Strengths nearer to each other may come in either order."""
DEFAULTS = {"gpt2-a": "token_z", "gpt2-wide": "token_z", "llama-gqa": "token_z", "bert": "score"}
SIGNS = {"top": 1, "bottom": -1}
BY = {by: TokenFilter(by=by) for by in ("score", "token_z")}


def token_z(model: Model, whole: Everything) -> np.ndarray:
    """Of all vectors and tokens (n x V); NaN where too few vectors of the kind are scored in one space."""
    groups = [
        (kind, model.layout.space(kind, (None, layer))) for kind, layer in zip(whole.kinds, whole.layers, strict=True)
    ]
    found = np.full(whole.scores.shape, np.nan)
    for group in dict.fromkeys(groups):
        rows = [i for i, each in enumerate(groups) if each == group]
        if len(rows) >= LEAST:
            own = whole.scores[rows]
            found[rows] = (own - own.mean(axis=0)) / own.std(axis=0)
    return found


@pytest.fixture(scope="module")
def unusual(reading_atlas: Atlas, reading_wholes: dict[str, Everything]) -> dict[str, np.ndarray]:
    return {name: token_z(reading_atlas.models[name], whole) for name, whole in reading_wholes.items()}


def strengths(scores: np.ndarray, z: np.ndarray, by: str) -> np.ndarray:
    """What ranks the tokens of one vector (V)."""
    return scores if by == "score" or np.isnan(z).all() else z


@pytest.mark.parametrize("by", ["score", "token_z", None])
@pytest.mark.parametrize("model", DEFAULTS)
def test_show(
    reading_atlas: Atlas,
    reading_wholes: dict[str, Everything],
    unusual: dict[str, np.ndarray],
    draw: random.Random,
    model: str,
    by: Ranking | None,
) -> None:
    """Ids, ranks, scores and both z of parameters of every kind; what is said of the ranking."""
    whole = reading_wholes[model]
    for i in whole.some(draw, 12):
        scores, z = whole.scores[i], unusual[model][i]
        known = not np.isnan(z).any()
        card = reading_atlas.show(whole.addresses[i], 7, filter=TokenFilter(by=by))
        ranks = strengths(scores, z, by or DEFAULTS[model])
        by_z = known and (by or DEFAULTS[model]) == "token_z"
        for side, sign in SIGNS.items():
            rows = [row for row in card if row["side"] == side]
            assert [row["rank"] for row in rows] == list(range(1, 8))
            ids = [row["token_id"] for row in rows]
            np.testing.assert_allclose(sign * ranks[ids], np.sort(sign * ranks)[::-1][:7], atol=EDGE)
            np.testing.assert_allclose([row["score"] for row in rows], scores[ids], rtol=1e-5, atol=1e-5)
            of_scores = (scores[ids] - scores.mean()) / scores.std()
            np.testing.assert_allclose([row["z"] for row in rows], of_scores, rtol=1e-4, atol=1e-4)
            if known:
                np.testing.assert_allclose([row["token_z"] for row in rows], z[ids], rtol=1e-4, atol=1e-4)
            else:
                assert {row["token_z"] for row in rows} == {None}
        assert ("ranked by token_z" in str(card.title)) is by_z
        assert ("top token z" in str(card)) is by_z
        said = f"ranked by score, because {model} has too few {whole.kinds[i]} to say what is usual for a token"
        assert (said in card.notes) is (by == "token_z" and not known)


@pytest.mark.parametrize("by", ["score", "token_z", None])
@pytest.mark.parametrize("words", [["canada"], ["river", "ocean", "winter", "summer", "bread"]])
def test_find(
    reading_atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    reading_wholes: dict[str, Everything],
    unusual: dict[str, np.ndarray],
    words: list[str],
    by: Ranking | None,
) -> None:
    """Which sides of which parameters have the words, how many, the best rank and both z: all of every model, those
    left out of which a wanted token stands at the edge of the list.
    """
    result = reading_atlas.find(words, 10_000, filter=TokenFilter(by=by)).to_rows()
    rows = [row for row in result if row["kind"] not in ("QK", "VO")]
    found = {(row["address"], row["side"]): row for row in rows}
    n_found = n_unclear = 0
    for model, whole in reading_wholes.items():
        items = ids_of_words(db, model, words)
        for i, address in enumerate(whole.addresses):
            scores, z = whole.scores[i], unusual[model][i]
            ranks = strengths(scores, z, by or DEFAULTS[model])
            for side, sign in SIGNS.items():
                order = np.argsort(-sign * ranks, kind="stable")
                place = {int(token): n for n, token in enumerate(order[:KEPT], start=1)}
                cut = sign * (ranks[order[KEPT - 1]] + ranks[order[KEPT]]) / 2
                mine = [t for own in items.values() for t in own]
                if any(abs(sign * ranks[t] - cut) < EDGE for t in mine):
                    n_unclear += 1
                    continue
                row = found.get((address, side))
                holding = [[t for t in own if t in place] for own in items.values()]
                holding = [own for own in holding if own]
                assert (row is None) is (not holding)
                if row is None:
                    continue
                n_found += 1
                assert row["words"] == len(holding)
                best = min(place[t] for own in holding for t in own)
                assert sign * abs(ranks[order[row["rank"] - 1]] - ranks[order[best - 1]]) < EDGE
                of_scores = sign * (scores - scores.mean()) / scores.std()
                assert row["z"] == pytest.approx(np.mean([of_scores[own].max() for own in holding]), rel=1e-4, abs=1e-4)
                if np.isnan(z).any():
                    assert row["token_z"] is None
                else:
                    expected = np.mean([(sign * z[own]).max() for own in holding])
                    assert row["token_z"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert n_found > 100
    assert n_unclear < 5


def test_find_is_in_the_order_of_each_models_ranking(reading_atlas: Atlas) -> None:
    """Most words first, then what ranks a row: token_z of a model that is ranked by it, where there is one."""
    for by in ("score", "token_z", None):
        rows = reading_atlas.find(["river", "ocean"], 400, filter=TokenFilter(by=by)).to_rows()
        for are_heads in (False, True):
            keys = []
            for row in (row for row in rows if (row["kind"] in ("QK", "VO")) is are_heads):
                ranking = by or DEFAULTS[row["address"].partition("/")[0]]
                z = row["z"] if ranking == "score" or row["token_z"] is None else row["token_z"]
                keys.append((-row["words"], 0 if are_heads else -z))  # linked pairs come between for heads
            assert keys == sorted(keys)


def test_models_that_are_ranked_differently_are_named(reading_atlas: Atlas) -> None:
    """Those of which something is found."""
    note = (
        "each model is ranked by its own ranking: bert by score; gpt2-a, gpt2-wide, llama-gqa by token_z "
        "(--by ranks all alike)"
    )
    assert note in reading_atlas.find("canada", 10_000).notes
    for asked in ({"filter": BY["score"]}, {"filter": BY["token_z"]}, {"model": "bert"}, {"model": "gpt2-a"}):
        assert not any("ranked by" in each for each in reading_atlas.find("canada", 10_000, **asked).notes)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["score", "token_z"])
@pytest.mark.parametrize("address", ["gpt2-wide/L2/H3", "llama-gqa/L1/H2", "gpt2-wide/L0/H0"])
def test_pairs_of_heads(reading_atlas: Atlas, address: str, by: Ranking) -> None:
    """The pairs of one ranking in its order, with its ranks, of all words and of two; those of the table."""
    suffix = "" if by == "score" else "_token_z"
    for distinct in (True, False):
        result = reading_atlas.show(address, 30, distinct=distinct, filter=BY[by])
        place = "rank_distinct" if distinct else "rank"
        expected = reading_atlas.sql(
            f"SELECT matrix, side, rank{suffix}, rank_distinct{suffix}, source_id, target_id, score, token_z "
            f"FROM head_pairs WHERE address = ? AND {place}{suffix} IS NOT NULL "
            f"ORDER BY matrix, side DESC, {place}{suffix}",
            [address],
        )
        names = ("matrix", "side", "rank", "rank_distinct", "source_id", "target_id", "score", "token_z")
        found = [tuple(row[name] for name in names) for row in result]
        assert found == [tuple(row.values()) for row in expected]
        for matrix in ("QK", "VO"):
            for side, sign in SIGNS.items():
                own = [row for row in result if (row["matrix"], row["side"]) == (matrix, side)]
                assert [row[place] for row in own] == list(range(1, 31))
                values = [sign * row[by] for row in own]
                assert values == sorted(values, reverse=True)
        assert ("ranked by token_z" in str(result.title)) is (by == "token_z")
        assert f"top {by.replace('_', ' ')}" in str(result)
        same = reading_atlas.sql(
            f"SELECT count(*) FILTER (same_word) AS n FROM head_pairs WHERE address = ? AND matrix = 'VO' "
            f"AND side = 'top' AND rank{suffix} IS NOT NULL",
            [address],
        ).to_rows()[0]["n"]
        assert f"VO: {same} of its top 30 pairs are of a word with itself" in result.notes


def test_few_heads_are_ranked_by_score(reading_atlas: Atlas) -> None:
    """gpt2-a has four."""
    asked, plain = (reading_atlas.show("gpt2-a/L1/H0", 9, filter=each) for each in (BY["token_z"], BY["score"]))
    assert asked.to_rows() == plain.to_rows()
    note = "ranked by score, because gpt2-a has too few heads to say what is usual for a token"
    assert note in asked.notes
    assert note not in reading_atlas.show("gpt2-a/L1/H0").notes


@pytest.mark.parametrize("by", ["score", "token_z", None])
def test_what_describes_a_parameter_or_a_head(reading_atlas: Atlas, by: Ranking | None) -> None:
    """In search, similar, lens, match and similar of heads: the first that show gives."""
    choice = TokenFilter(by=by)

    def first(address: str, side: str) -> list[str]:
        return [row["text"] for row in reading_atlas.show(address, 5, filter=choice) if row["side"] == side]

    found = [
        reading_atlas.search("canada bread", 6, filter=choice),
        reading_atlas.similar("gpt2-wide/L2/ff_key/3", 6, model="all", filter=choice),
    ]
    found.append(reading_atlas.lens(np.arange(24.0) - 3, "gpt2-a", 6, filter=choice).parameters)  # type: ignore[attr-defined]
    for row in (row for result in found for row in result):
        assert (row["top"], row["bottom"]) == (first(row["address"], "top"), first(row["address"], "bottom"))
    printed = reading_atlas.match("gpt2-a", "gpt2-wide", "ff_value", 4, filter=choice).shown
    assert printed is not None
    for row in printed.to_pylist():
        assert row["top"] == ", ".join(map(visible, first(row["address"], "top")[:3]))
    for row in reading_atlas.similar("gpt2-wide/L2/H3", 4, filter=choice):
        shown = reading_atlas.show(row["address"], 3, filter=choice)
        own = [each for each in shown if (each["matrix"], each["side"]) == (row["matrix"], "top")]
        assert row["top"] == [arrow(each["source"], each["target"]) for each in own]


def test_a_filter_sifts_the_list_of_the_ranking(reading_atlas: Atlas) -> None:
    for by in ("score", "token_z"):
        every = reading_atlas.show("gpt2-wide/L2/ff_key/3", KEPT, filter=BY[by]).to_rows()
        left = reading_atlas.show("gpt2-wide/L2/ff_key/3", 5, filter=TokenFilter(by=by, alnum=True)).to_rows()
        for side in SIGNS:
            passing = [row for row in every if row["side"] == side and row["text"].strip().isalnum()][:5]
            assert [row for row in left if row["side"] == side] == passing


def test_a_ranking_leaves_nothing_out() -> None:
    assert not TokenFilter(by="score")
    assert TokenFilter(by="score", ascii=True)


@given(st.data())
def test_lists_are_taken_apart(data: st.DataObject) -> None:
    """As the builder puts two lists into one, of scores and z with many ties."""
    n, k, sign = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, -1]))
    some = st.lists(st.sampled_from([-1.5, -1.0, -0.0, 0.0, 1.0, 1.5]), min_size=n, max_size=n)
    scores, z = data.draw(some), data.draw(some)
    by = {name: sorted(range(n), key=lambda i: (-sign * own[i], i))[:k]
          for name, own in (("score", scores), ("token_z", z))}  # fmt: skip
    kept = sorted({*by["score"], *by["token_z"]}, key=lambda i: (-sign * scores[i], i))
    whole = Side(kept, [scores[i] for i in kept], [z[i] for i in kept])
    for name, ids in by.items():
        found = whole.ranked(name, sign, k)  # type: ignore[arg-type]
        assert found == Side(ids, [scores[i] for i in ids], [z[i] for i in ids])
    plain = Side(by["score"], [scores[i] for i in by["score"]], None)
    assert plain.ranked("token_z", sign, k) == plain


@pytest.mark.parametrize("wrong", ["z", "", "SCORE", 1, ["score"], True, b"score", np.array(["score"])])
def test_other_rankings_are_refused(wrong: object) -> None:
    with pytest.raises(QueryError, match=r"^by is score or token_z, not ") as caught:
        TokenFilter(by=wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_command_line(reading_folder: Path, reading_atlas: Atlas) -> None:
    folder = str(reading_folder)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, [arguments[0], folder, *arguments[1:], "--format", "json"])
        assert result.exit_code == 0, result.output
        return result.output.strip()

    address, head = "gpt2-wide/L2/ff_key/3", "gpt2-wide/L2/H3"
    shown = set()
    for by, choice in BY.items():
        shown.add(run("show", address, "--by", by))
        assert run("show", address, "--by", by) == reading_atlas.show(address, filter=choice).to_json()
        assert run("show", head, "--by", by) == reading_atlas.show(head, filter=choice).to_json()
        assert run("find", "canada", "--by", by) == reading_atlas.find("canada", filter=choice).to_json()
        assert run("search", "canada", "--by", by) == reading_atlas.search("canada", filter=choice).to_json()
        assert run("similar", head, "--by", by) == reading_atlas.similar(head, filter=choice).to_json()
    assert len(shown) == 2
    assert run("show", address) == reading_atlas.show(address).to_json() == run("show", address, "--by", "token_z")
    wrong = CliRunner().invoke(cli, ["show", folder, address, "--by", "z"])
    assert wrong.exit_code == 2
    assert "'z' is not one of 'score', 'token_z'" in wrong.output
    assert CliRunner().invoke(cli, ["directions", folder, head, "--by", "score"]).exit_code == 2


def test_a_models_own_ranking(reading_atlas: Atlas) -> None:
    """The paper's where it is read as in the paper."""
    assert {name: model.ranking for name, model in reading_atlas.models.items()} == DEFAULTS
    where = Address.parse("bert/L1/ff_key/3")
    assert reading_atlas.show(str(where)).to_rows() == reading_atlas.show(str(where), filter=BY["score"]).to_rows()
