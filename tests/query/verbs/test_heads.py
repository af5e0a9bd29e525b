"""``heads``: the score of every head on given pairs, against the whole V x V matrix in float64."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner

import models
import oracle
from paramdex import Atlas, QueryError, TokenError
from paramdex import open as open_atlas
from paramdex.cli import cli
from paramdex_builder import Options, build
from query_helpers import MODELS, ids_of_words

WORDS = [word.lower() for word in models.WORDS]


def some_pairs(draw: random.Random, n: int = 6) -> list[tuple[str, str]]:
    return [(draw.choice(WORDS), draw.choice(WORDS)) for _ in range(n)]


def brute_force(
    truth: oracle.Truth, spellings: dict[str, list[int]], pairs: list[tuple[str, str]], matrix: str, top: int
) -> dict[tuple[int, int], tuple[float, float, float, float]]:
    """(layer, head) -> score, z, share and share_bottom."""
    found = {}
    for layer, head in product(range(truth.n_layers), range(truth.n_heads)):
        S = truth.pair_scores(matrix, layer, head)
        scores, hits = [], ([], [])
        for source, target in pairs:
            both = list(product(spellings[source], spellings[target]))
            scores.append(np.mean([S[s, t] for s, t in both]))
            for side, sign in zip(hits, (1, -1), strict=True):
                side.append(any((sign * S[s] > sign * S[s, t]).sum() < top for s, t in both))
        mean = float(np.mean(scores))
        z = (mean - S.mean()) / (S.std() / len(pairs) ** 0.5)
        found[layer, head] = (mean, z, float(np.mean(hits[0])), float(np.mean(hits[1])))
    return found


@pytest.mark.parametrize("matrix", ["VO", "QK"])
@pytest.mark.parametrize("model", MODELS)
def test_every_head_is_scored(
    atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    truths: dict[str, oracle.Truth],
    draw: random.Random,
    model: str,
    matrix: str,
) -> None:
    pairs = some_pairs(draw)
    spellings = ids_of_words(db, model, WORDS)
    truth = brute_force(truths[model], spellings, pairs, matrix, 40)
    rows = atlas.heads(pairs, k=1000, model=model, matrix=matrix, top=40).to_rows()
    assert [row["rank"] for row in rows] == list(range(1, len(truth) + 1))
    assert {row["address"] for row in rows} == {f"{model}/L{layer}/H{head}" for layer, head in truth}
    assert [row["z"] for row in rows] == sorted((row["z"] for row in rows), reverse=True)
    for row in rows:
        layer, head = (int(part[1:]) for part in row["address"].split("/")[1:])
        score, z, share, share_bottom = truth[layer, head]
        std = truths[model].pair_scores(matrix, layer, head).std()
        assert row["score"] == pytest.approx(score, rel=1e-4, abs=1e-5 * std)
        assert row["z"] == pytest.approx(z, rel=1e-4, abs=1e-4)
        assert (row["share"], row["share_bottom"]) == (pytest.approx(share), pytest.approx(share_bottom))
        assert (row["pairs"], row["matrix"]) == (len(pairs), matrix)


def test_sides_and_k(atlas: Atlas, draw: random.Random) -> None:
    pairs = some_pairs(draw)
    every = {row["address"]: row["z"] for row in atlas.heads(pairs, k=1000, top=0).to_rows()}
    assert {address.split("/")[0] for address in every} == set(MODELS)
    for side, strength in (("top", lambda z: z), ("bottom", lambda z: -z), ("both", abs)):
        rows = atlas.heads(pairs, k=5, side=side, top=0).to_rows()
        assert [row["address"] for row in rows] == sorted(every, key=lambda a: -strength(every[a]))[:5]
        assert [row["share"] for row in rows] == [None] * 5
    assert str(atlas.heads(pairs, k=5)).startswith("VO of every head on 6 pairs, read → written\nz: ")


def test_a_planted_head_is_found(tmp_path: Path) -> None:
    """A head whose VO is made to take some words to others has all of them on top, and z far above the rest."""
    from safetensors.torch import load_file, save_file

    folder = models.save_word_model(tmp_path / "model", 5)
    tensors = load_file(folder / "model.safetensors")
    E, d, d_head = tensors["transformer.wte.weight"], 24, 12
    pairs = [(f"word{i}", f"word{i + 10}") for i in range(4)]
    read = np.linalg.pinv(E.double().numpy())[:, [22 + i for i in range(4)]]  # d x 4: one at one word, 0 at no other
    write = E.double().numpy()[[32 + i for i in range(4)]].T
    fused, out = tensors["transformer.h.1.attn.c_attn.weight"], tensors["transformer.h.1.attn.c_proj.weight"]
    own = slice(2 * d + d_head, 2 * d + 2 * d_head)  # the second head's values
    fused[:, own], out[d_head:] = 0, 0
    fused[:, own.start : own.start + 4] = fused.new_tensor(read)
    out[d_head : d_head + 4] = out.new_tensor(write.T)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    build([str(folder)], tmp_path / "x.atlas", Options(top_k=5, pair_k=5, device="cpu"))
    with open_atlas(tmp_path / "x.atlas") as atlas:
        first, second, *_ = atlas.heads(pairs, top=3).to_rows()
        assert (first["address"], first["share"]) == ("model/L1/H1", 1.0)
        assert first["z"] > second["z"] + 3


def test_words_that_a_vocabulary_has_not(atlas: Atlas) -> None:
    result = atlas.heads([("canada", "ottawa"), ("é", "canada"), ("canada", "nowhere")], model="bert")
    assert set(result.table["pairs"].to_pylist()) == {2}
    assert list(result.notes) == ["1 of 3 pairs are left out: the vocabulary of bert has no nowhere"]
    result = atlas.heads([("canada", "ottawa"), ("ing", "canada")], model="bert", top=0)  # ##ing is no word
    assert list(result.notes) == ["1 of 2 pairs are left out: the vocabulary of bert has no ing"]
    result = atlas.heads([("canada", "ottawa"), ("é", "canada")], model="llama-gqa", top=0)
    assert list(result.notes) == ["1 of 2 pairs are left out: the vocabulary of llama-gqa has no é"]
    with pytest.raises(TokenError, match="has both words of any pair; the words nearest to 'canadaa' are canada"):
        atlas.heads([("canadaa", "ottawa")], model="bert")


def test_files_and_the_command_line(small_atlas: Path, atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("canada\tottawa\n\nfrance\tparis\n")
    expected = atlas.heads([("canada", "ottawa"), ("france", "paris")], 4, matrix="QK", side="both", top=5)
    assert atlas.heads(tmp_path / "x.tsv", 4, matrix="QK", side="both", top=5).to_rows() == expected.to_rows()
    options = ["--pairs", str(tmp_path / "x.tsv"), "-k", "4", "--matrix", "QK", "--side", "both", "--top", "5"]
    result = CliRunner().invoke(cli, ["heads", str(small_atlas), *options, "--format", "json"], catch_exceptions=False)
    assert result.output.strip() == expected.to_json()


def test_what_cannot_be_answered(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text("canada\tottawa\ncanada ottawa\n")
    (tmp_path / "three.tsv").write_text("a\tb\tc\n")
    (tmp_path / "empty.tsv").write_text("\n")
    good = [("canada", "ottawa")]
    for pairs, more, message in (
        (tmp_path / "none.tsv", {}, "none.tsv cannot be read: No such file"),
        (tmp_path / "bad.tsv", {}, "line 2 of .*bad.tsv is 'canada ottawa'; write SOURCE, a tab and TARGET"),
        (tmp_path / "three.tsv", {}, "line 1 of"),
        (tmp_path / "empty.tsv", {}, "holds no pairs"),
        ([], {}, "give at least one pair"),
        ([("a",)], {}, "two words each"),
        (good, {"matrix": "vo"}, "matrix is QK or VO, not 'vo'"),
        (good, {"side": "left"}, "side is one of top, bottom, both"),
        (good, {"top": -1}, "at least 0"),
    ):
        with pytest.raises(QueryError, match=message):
            atlas.heads(pairs, **more)


def test_displacements_have_no_heads_to_score(tmp_path: Path) -> None:
    base, tuned = models.save_word_model(tmp_path / "base", 1), models.save_word_model(tmp_path / "tuned", 2)
    few = {"top_k": 5, "pair_k": 5, "device": "cpu"}
    build([f"moved={tuned}"], tmp_path / "x.atlas", Options(base=str(base), **few))
    build([str(base)], tmp_path / "x.atlas", Options(**few))
    with open_atlas(tmp_path / "x.atlas") as atlas:
        with pytest.raises(QueryError, match="moved: the heads of a displacement are differences of matrices"):
            atlas.heads([("canada", "ottawa")], model="moved")
        result = atlas.heads([("canada", "ottawa")], k=100)
        assert {row["address"].split("/")[0] for row in result.to_rows()} == {"base"}
        assert list(result.notes) == ["left out because they are displacements: moved"]
