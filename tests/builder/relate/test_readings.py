"""Relations of models whose layers are read in spaces of their own, against float64 on all scores.

Every vector has its V scores here, in its own space (see ``reading_oracle``). What an atlas keeps is the correlation of
such scores, whatever spaces they are in, between models that are read in one way or in several.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import models
import oracle
from opened import opened
from paramdex_builder import Options, build
from paramdex_schemas import atlas_files
from paramdex_schemas.contents import read_contents
from query_helpers import Everything, everything
from reading_oracle import everything_read

K = 3
ERROR = 2e-6
MODELS: dict[str, tuple[str, int, Callable[[int], Any]]] = {
    "paper": ("embedding", 60, partial(models.gpt2, layers=3)),
    "gpt": ("effective", 60, partial(models.gpt2, layers=3)),
    "wide": ("expected", 60, partial(models.gpt2, width=32)),
    "llama": ("effective", 60, partial(models.llama, num_hidden_layers=3)),
    "tuned": ("expected", 64, models.llama),
}
"""Name -> reading, words, and shape; the last has four words that the others do not have."""
SPACES = {
    "paper": ["output"],
    "gpt": ["output", "entering", "reading"],
    "wide": ["output", "entering", "reading"],
    "llama": ["output", "entering", "reading"],
    "tuned": ["output", "entering", "reading"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("readings")
    return {
        name: models.save(root / name, make(n_words), models.word_tokenizer(n_words), seed)
        for seed, (name, (_, n_words, make)) in enumerate(MODELS.items())
    }


@pytest.fixture(scope="module")
def atlas(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("atlas") / "x.atlas"
    for name, (reading, *_) in MODELS.items():
        build([str(folders[name])], found, Options(5, 5, K, reading=reading, device="cpu"))
    return found


@pytest.fixture(scope="module")
def wholes(folders: dict[str, Path], atlas: Path) -> dict[str, Everything]:
    truths = {name: oracle.read(folder) for name, folder in folders.items()}
    return {
        name: everything(name, truth)
        if MODELS[name][0] == "embedding"
        else everything_read(name, truth, folders[name], atlas)
        for name, truth in truths.items()
    }


def asked(atlas: Path, sql: str, values: list[str]) -> list[tuple]:
    with opened(atlas) as db:
        return db.execute(sql, values).fetchall()


def of_both(wholes: dict[str, Everything], a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two models: of all tokens, or of the words that both have."""
    x, y = wholes[a].scores, wholes[b].scores
    shared = slice(None) if x.shape[1] == y.shape[1] else slice(2, min(x.shape[1], y.shape[1]))
    return x[:, shared], y[:, shared]


@pytest.mark.parametrize(("a", "b"), [*permutations(MODELS, 2)])
def test_neighbors_are_the_nearest_by_scores_in_their_own_spaces(
    atlas: Path, wholes: dict[str, Everything], a: str, b: str
) -> None:
    S = oracle.pearson(*of_both(wholes, a, b))
    rows = asked(
        atlas,
        "SELECT address, rank, neighbor, similarity FROM neighbors JOIN parameters USING (param_id, address) "
        "WHERE model = ? AND neighbor_model = ? ORDER BY param_id, rank",
        [a, b],
    )
    own, theirs = wholes[a], wholes[b]
    number = {address: i for i, address in enumerate(theirs.addresses)}
    stored: dict[str, list[tuple[int, str, float]]] = {}
    for address, *row in rows:
        stored.setdefault(address, []).append(tuple(row))
    assert sorted(stored) == sorted(
        address for address, kind in zip(own.addresses, own.kinds, strict=True) if kind in theirs.kinds
    )
    for address, found in stored.items():
        i = own.addresses.index(address)
        same = np.array([kind == own.kinds[i] for kind in theirs.kinds])
        ranks, nearest, similarities = zip(*found, strict=True)
        assert ranks == tuple(range(1, min(K, same.sum()) + 1))
        assert len(set(nearest)) == len(nearest)
        chosen = [number[each] for each in nearest]
        assert same[chosen].all()
        np.testing.assert_allclose(similarities, S[i, chosen], atol=ERROR)
        np.testing.assert_allclose(similarities, np.sort(S[i, same])[::-1][: len(ranks)], atol=ERROR)


@pytest.mark.parametrize(("a", "b"), [("paper", "gpt"), ("gpt", "wide"), ("gpt", "llama"), ("llama", "tuned")])
def test_layers_align_by_scores_in_their_own_spaces(
    atlas: Path, wholes: dict[str, Everything], folders: dict[str, Path], a: str, b: str
) -> None:
    """And by raw weights as ever, whatever space scores them."""
    S = np.abs(oracle.pearson(*of_both(wholes, a, b)))
    rows = asked(
        atlas,
        "SELECT kind, layer_a, layer_b, score, feature_score FROM layer_alignments WHERE model_a = ? AND model_b = ?",
        [a, b],
    )
    own, theirs = wholes[a], wholes[b]
    kinds = {kind for kind in own.kinds if kind in theirs.kinds and kind in oracle.WEIGHTS}
    assert {row[0] for row in rows} == kinds
    raw = [oracle.read(folders[name]) for name in (a, b)]
    for kind, x, y, score, feature_score in rows:
        here = [
            [i for i, at in enumerate(zip(each.kinds, each.layers, strict=True)) if at == (kind, layer)]
            for each, layer in ((own, x), (theirs, y))
        ]
        assert score == pytest.approx(S[np.ix_(*here)].mean(), abs=ERROR)
        weights = [truth.rows[kind][layer] for truth, layer in zip(raw, (x, y), strict=True)]
        if weights[0].shape[1] == weights[1].shape[1]:
            assert feature_score == pytest.approx(np.abs(oracle.pearson(*weights)).mean(), abs=ERROR)
        else:
            assert feature_score is None


@pytest.mark.parametrize("name", MODELS)
def test_every_way_between_the_spaces_of_a_model_is_there(atlas: Path, name: str) -> None:
    file = atlas / read_contents(atlas).folder(name) / atlas_files.TRANSFER
    assert sorted(load_file(file) if file.exists() else {}) == sorted(map("/".join, combinations(SPACES[name], 2)))


@pytest.mark.parametrize(("a", "b"), [*combinations(MODELS, 2)])
def test_every_way_between_the_spaces_of_two_models_is_there(atlas: Path, a: str, b: str) -> None:
    """From those of the first; of nearly the same vocabulary with the roots of both on the shared tokens."""
    folder = read_contents(atlas).relation(b, a)
    assert folder is not None
    roots = [f"root/{side}/{space}" for side, of in (("a", a), ("b", b)) for space in SPACES[of] if b == "tuned"]
    ways = map("/".join, product(SPACES[a], SPACES[b]))
    assert sorted(load_file(atlas / folder / atlas_files.TRANSFER)) == sorted([*ways, *roots])
