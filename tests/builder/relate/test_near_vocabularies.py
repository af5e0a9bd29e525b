"""Models whose vocabularies differ by few tokens: what the atlas keeps of them, against float64 on the shared tokens.

base, and beside it tuned (4 tokens more at the end), middle (2 in the middle, which shifts ids, padding rows, wider)
and pruned (2 fewer, in another order); far has half of the words.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import models
import oracle
import paramdex
from paramdex.web.cards.parameter import parameter_card
from paramdex_builder import Options, Progress, build
from paramdex_builder.relate import transfers
from query_helpers import assert_ranking, everything

OPTIONS = Options(top_k=5, pair_k=5, neighbor_k=3, reading="embedding", device="cpu")
WORDS = [f"word{i}" for i in range(58)]
VOCABULARIES = {
    "base": ["[UNK]", "[END]", *WORDS],
    "tuned": ["[UNK]", "[END]", *WORDS, "<|im_start|>", "<|im_end|>", "<tool>", "</tool>"],
    "middle": ["[UNK]", "[END]", *WORDS[:30], "<think>", "</think>", *WORDS[30:]],
    "pruned": ["[END]", "[UNK]", *reversed(WORDS[2:])],
    "far": ["[UNK]", "[END]", *WORDS[:29], *(f"other{i}" for i in range(29))],
}
NEAR = [*combinations(["base", "tuned", "middle", "pruned"], 2)]
SHARED = {("base", "tuned"): 58, ("base", "middle"): 58, ("tuned", "middle"): 58} | {
    (other, "pruned"): 56 for other in ("base", "tuned", "middle")
}
WHY = "their vocabularies differ too much; similar and align compare them when asked"
CONSTANT = "tuned/L1/ff_value/5"
"""A vector whose scores differ on added tokens alone."""


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def tokenizer(tokens: list[str]) -> PreTrainedTokenizerFast:
    model = tokenizer_models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    backend = Tokenizer(model)
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]")


def save(root: Path, name: str, seed: int) -> Path:
    tokens = VOCABULARIES[name]
    wide = {"hidden_size": 32, "head_dim": 6} if name == "middle" else {}
    padding = 5 if name == "middle" else 0
    folder = models.save(root / name, models.llama(len(tokens) + padding, **wide), tokenizer(tokens), seed)
    if name == "tuned":
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"][:60, 3] = 0
        column = weights["model.layers.1.mlp.down_proj.weight"][:, 5]
        column[:] = 0
        column[3] = 0.7
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("near")
    return {name: save(root, name, seed) for seed, name in enumerate(VOCABULARIES)}


@pytest.fixture(scope="module")
def built(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The atlas of all five, and what was said as it was built."""
    said = Said()
    sources = [str(folder) for folder in folders.values()]
    return build(sources, tmp_path_factory.mktemp("atlas") / "near.atlas", OPTIONS, said), said.lines


@pytest.fixture(scope="module")
def near(
    built: tuple[Path, list[str]], folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Atlases of those that are near, by how layers are read."""
    sources = [str(folder) for name, folder in folders.items() if name != "far"]
    options = replace(OPTIONS, reading="effective")
    return {
        "embedding": built[0],
        "effective": build(sources, tmp_path_factory.mktemp("atlas") / "read.atlas", options),
    }


@pytest.fixture(scope="module")
def atlas(built: tuple[Path, list[str]]) -> paramdex.Atlas:
    return paramdex.open(built[0])


@pytest.fixture(scope="module")
def truths(folders: dict[str, Path]) -> dict[str, oracle.Truth]:
    return {name: oracle.read(folder) for name, folder in folders.items()}


def scores(truths: dict[str, oracle.Truth], name: str, other: str) -> tuple[list[str], list[str], np.ndarray]:
    """Addresses and kinds of all parameters of a model, and their scores (n x S) of the words that another has too."""
    ids = [i for i, token in enumerate(VOCABULARIES[name]) if token in VOCABULARIES[other] and token[0] != "["]
    ids.sort(key=lambda i: VOCABULARIES[name][i])
    every = everything(name, truths[name])
    return every.addresses, every.kinds, every.scores[:, ids]


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As the oracle's; 0 for scores that are all equal, but for what rounding leaves."""
    constant = [np.ptp(each, axis=1) < 1e-12 for each in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = oracle.pearson(a, b)
    found[constant[0]], found[:, constant[1]] = 0, 0
    return found


@pytest.mark.parametrize(("a", "b"), [*NEAR, *((b, a) for a, b in NEAR)])
def test_neighbors_are_the_nearest_on_the_shared_tokens(
    atlas: paramdex.Atlas, truths: dict[str, oracle.Truth], a: str, b: str
) -> None:
    """All parameters', of every kind, and as ``similar`` says of some."""
    (addresses, kinds, own), (others, other_kinds, theirs) = scores(truths, a, b), scores(truths, b, a)
    assert own.shape[1] == SHARED[(a, b) if (a, b) in SHARED else (b, a)]
    S = pearson(own, theirs)
    stored: dict[str, list[dict]] = {}
    for row in atlas.sql(
        "SELECT address, rank, neighbor, similarity FROM neighbors JOIN parameters USING (param_id, address) "
        "WHERE model = ? AND neighbor_model = ? ORDER BY param_id, rank",
        [a, b],
    ):
        stored.setdefault(row["address"], []).append(
            {"rank": row["rank"], "address": row["neighbor"], "similarity": row["similarity"]}
        )
    assert sorted(stored) == sorted(addresses)
    for i, address in enumerate(addresses):
        truth = {others[j]: S[i, j] for j in range(len(others)) if other_kinds[j] == kinds[i]}
        assert_ranking(stored[address], truth, 3)
    for address in [*addresses[::97], *([CONSTANT] if a == "tuned" else [])]:
        asked = atlas.similar(address, 3, model=b)
        found = [{name: row[name] for name in ("rank", "address", "similarity")} for row in asked.to_rows()]
        assert [row["similarity"] for row in found] == pytest.approx(
            [row["similarity"] for row in stored[address]], abs=1e-6
        )
        assert asked.notes[0].startswith(f"{a} and {b} are compared on the {own.shape[1]} tokens whose text both have ")


def test_scores_that_differ_on_added_tokens_alone_are_like_nothing(atlas: paramdex.Atlas) -> None:
    rows = atlas.sql("SELECT similarity, rank FROM neighbors WHERE address = ?", [CONSTANT]).to_rows()
    assert [row["similarity"] for row in rows] == [0.0] * 9
    assert atlas.sql("SELECT std > 0.01 AS varies FROM parameters WHERE address = ?", [CONSTANT]).to_rows() == [
        {"varies": True}
    ]
    for other in ("base", "middle", "pruned", "far"):
        assert [row["similarity"] for row in atlas.similar(CONSTANT, 2, model=other, side="both")] == [0.0, 0.0]
        back = atlas.similar(f"{other}/L0/ff_value/0", 80, model="tuned", side="both").to_rows()
        assert [row["similarity"] for row in back if row["address"] == CONSTANT] == [0.0]


@pytest.mark.parametrize(("a", "b"), NEAR)
def test_layers_align_on_the_shared_tokens(
    atlas: paramdex.Atlas, truths: dict[str, oracle.Truth], a: str, b: str
) -> None:
    """As the mean |Pearson| of all pairs; raw weights where widths agree, and no embedding leaves any of them out."""
    (_, kinds, own), (_, other_kinds, theirs) = scores(truths, a, b), scores(truths, b, a)
    found = atlas.align(a, b)
    n = SHARED[a, b]
    shares = f"{n / len(VOCABULARIES[a]):.0%} of {a}'s, {n / len(VOCABULARIES[b]):.0%} of {b}'s"
    assert list(found.notes) == [f"{a} and {b} are compared on the {n} tokens whose text both have ({shares})"]
    back = atlas.align(b, a)
    assert found.kinds == list(oracle.WEIGHTS)
    for kind in found.kinds:
        S = np.abs(pearson(own[np.array(kinds) == kind], theirs[np.array(other_kinds) == kind]))
        layers = [len(truths[model].rows[kind][0]) for model in (a, b)]
        expected = S.reshape(2, layers[0], 2, layers[1]).mean(axis=(1, 3))
        np.testing.assert_allclose(found.scores(kind), expected, atol=1e-6)
        np.testing.assert_array_equal(back.scores(kind), found.scores(kind).T)
        features = found.scores(kind, feature=True)
        if "middle" in (a, b):
            assert np.isnan(features).all()
            continue
        raw = [[np.abs(oracle.pearson(x, y)).mean() for y in truths[b].rows[kind]] for x in truths[a].rows[kind]]
        np.testing.assert_allclose(features, raw, atol=1e-6)


@pytest.mark.parametrize("reading", ["embedding", "effective"])
@pytest.mark.parametrize(("a", "b"), [("base", "tuned"), ("pruned", "middle")])
def test_what_is_kept_is_what_is_said_without_it(
    near: dict[str, Path], reading: str, a: str, b: str, tmp_path: Path
) -> None:
    """The same answers where all is worked out when it is asked, whatever spaces there are."""
    unrelated = shutil.copytree(near[reading], tmp_path / "x.atlas")
    shutil.rmtree(unrelated / "relations")
    address = f"{a}/L0/ff_key/3"
    questions = {
        "align": lambda atlas: atlas.align(a, b).to_rows(),
        "match": lambda atlas: atlas.match(a, b, "ff_value").to_rows(),
        "similar": lambda atlas: atlas.similar(address, 40, model=b).to_rows(),
        "heads": lambda atlas: atlas.similar(f"{a}/L1/H2", 8, model=b).to_rows(),
    }
    with paramdex.open(near[reading]) as atlas:
        kept = {name: ask(atlas) for name, ask in questions.items()}
    with paramdex.open(unrelated) as atlas:
        assert relations(atlas) == {}
        for name, ask in questions.items():
            asked = ask(atlas)
            assert len(asked) == len(kept[name]) > 0
            for row, other in zip(kept[name], asked, strict=True):
                for column, value in row.items():
                    if isinstance(value, float) and not column.startswith("feature"):
                        assert value == pytest.approx(other[column], abs=1e-6)
                    elif not column.startswith("feature"):
                        assert value == other[column]


def test_models_without_any_are_told_of(built: tuple[Path, list[str]], atlas: paramdex.Atlas) -> None:
    lines = [line for line in built[1] if "compared on" in line or "no neighbors" in line]
    assert lines == [
        "tuned with base: compared on the 58 tokens whose text both have",
        "middle with base: compared on the 58 tokens whose text both have",
        "middle with tuned: compared on the 58 tokens whose text both have",
        "pruned with base: compared on the 56 tokens whose text both have",
        "pruned with tuned: compared on the 56 tokens whose text both have",
        "pruned with middle: compared on the 56 tokens whose text both have",
        f"far: no neighbors or alignments are kept with base, tuned, middle, pruned: {WHY}",
    ]
    assert list(atlas.info().notes) == [
        f"no neighbors or alignments are kept between far and each of base, tuned, middle, pruned: {WHY}"
    ]
    found = atlas.sql("SELECT count(*) AS n FROM neighbors WHERE address LIKE 'far/%' OR neighbor LIKE 'far/%'")
    assert found.to_rows() == [{"n": 0}]
    assert len(atlas.similar("far/L0/ff_key/3", 2, model="base")) == 2


def relations(atlas: paramdex.Atlas) -> dict[tuple[str, str], int]:
    """(earlier model, later model) -> on how many tokens they are compared."""
    contents = atlas.database.contents
    pairs = [(contents.names[a], contents.names[b]) for a, b in contents.related]
    return {pair: contents.about(*pair).n_tokens for pair in pairs}


def test_models_of_one_vocabulary_have_all_of_its_tokens(small_atlas: Path, atlas: paramdex.Atlas) -> None:
    with paramdex.open(small_atlas) as other:
        (note,) = other.info().notes
        gpt2 = "gpt2-a, gpt2-b, gpt2-wide"
        apart = f"llama-gqa and each of {gpt2}; bert and each of {gpt2}, llama-gqa"
        assert note == f"no neighbors or alignments are kept between {apart}: {WHY}"
        rows = other.sql("SELECT DISTINCT model_a, model_b FROM layer_alignments ORDER BY ALL").to_rows()
        assert relations(other) == {(row["model_a"], row["model_b"]): 483 for row in rows}
    assert relations(atlas) == SHARED


def test_the_explorer_has_them_beside_those_of_one_vocabulary(atlas: paramdex.Atlas) -> None:
    card = parameter_card(atlas, atlas.address("tuned/L0/ff_key/3"))
    assert card.elsewhere == ["far"]
    assert [near.model for near in card.nearest] == ["tuned", "base", "middle", "pruned"]
    assert card.nearest[0].note is None
    assert card.nearest[1].note == (
        "tuned and base are compared on the 58 tokens whose text both have (91% of tuned's, 97% of base's)"
    )
    assert [near.rank for near in card.nearest[1].rows] == [1, 2, 3]


@pytest.mark.parametrize(("common", "near"), [(18, True), (17, False)])
def test_near_is_nine_tenths_of_the_texts_of_both(common: int, near: bool, tmp_path: Path) -> None:
    """Of 20 words 18 are enough; special tokens, however many, are no texts."""
    sources = []
    for name, special, tokens in (("a", 0, WORDS[:20]), ("b", 9, [*WORDS[:common], *WORDS[30 : 50 - common]])):
        of = tokenizer(["[UNK]", "[END]", *tokens])
        of.add_special_tokens({"additional_special_tokens": [f"<|{i}|>" for i in range(special)]})
        sources.append(str(models.save(tmp_path / name, models.gpt2(len(of)), of, len(sources))))
    said = Said()
    with paramdex.open(build(sources, tmp_path / "x.atlas", OPTIONS, said)) as atlas:
        assert relations(atlas) == ({("a", "b"): 18} if near else {})
        assert bool(atlas.info().notes) is not near
        assert atlas.sql("SELECT count(*) > 0 AS kept FROM neighbors").to_rows() == [{"kept": near}]


def test_a_displacement_is_near_what_its_base_is_near(folders: dict[str, Path], tmp_path: Path) -> None:
    """It has the base's embedding, whatever tokens the tuned model has beside."""
    atlas = build([str(folders["base"])], tmp_path / "x.atlas", OPTIONS)
    build([f"moved={folders['tuned']}"], atlas, Options(**vars(OPTIONS) | {"base": str(folders["base"])}))
    build([str(folders["tuned"])], atlas, OPTIONS)
    with paramdex.open(atlas) as opened:
        assert relations(opened) == {("base", "moved"): 60, ("base", "tuned"): 58, ("moved", "tuned"): 58}


def test_no_more_than_a_block_of_the_embeddings_is_read(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is kept does not depend on the blocks, but for how sums round."""
    sources = [str(folders[name]) for name in ("base", "pruned")]
    whole = build(sources, tmp_path / "whole.atlas", OPTIONS)
    read: list[int] = []
    gather = transfers._Rows.__getitem__

    def counted(self: transfers._Rows, part: slice) -> torch.Tensor:
        rows = gather(self, part)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(transfers._Rows, "__getitem__", counted)
    monkeypatch.setattr("paramdex_builder.project.space._CHUNK", 7)
    parts = build(sources, tmp_path / "parts.atlas", OPTIONS)
    assert max(read) == 7
    found, expected = (load_file(*each.glob("relations/*/transfer.safetensors")) for each in (parts, whole))
    assert set(found) == {"root/a/output", "root/b/output", "output/output"}
    for side in ("root/a/output", "root/b/output"):
        assert torch.allclose(found[side].T @ found[side], expected[side].T @ expected[side], rtol=1e-10, atol=1e-12)
