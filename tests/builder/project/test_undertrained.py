"""Under-trained tokens: rows planted in made-up embeddings, the demo models, MiniLM, and the columns in an atlas."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import models
import paramdex
from paramdex.tour import PUBLISHED, demo_sources
from paramdex_builder import Options, build
from paramdex_builder.project.undertrained import LEAST, TokenEmbeddings, first_component, token_embeddings
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_schemas import isometry

ROOT = Path(__file__).parents[3]
FOLDERS = {name: Path(folder) for name, _, folder in (s.partition("=") for s in demo_sources(ROOT / "data" / "models"))}


def found_in(E: np.ndarray) -> TokenEmbeddings:
    means, root = of_centred(E)
    return token_embeddings(torch.from_numpy(np.ascontiguousarray(E)), means, root)


def of_centred(E: np.ndarray) -> tuple[np.ndarray, isometry.Root]:
    """The column means of E, and the root of the Gram matrix of what is left without them."""
    wide = E.astype(np.float64)
    means = wide.mean(axis=0)
    return means, isometry.gram_root((wide - means).T @ (wide - means), len(E))


@settings(max_examples=200)
@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 1e3]),
    st.sampled_from([1e-20, 1.0, 1e15]),
    st.booleans(),
    st.booleans(),
)
def test_the_first_component_is_that_of_the_whole(
    V: int, d: int, seed: int, mean: float, size: float, flat: bool, across: bool
) -> None:
    """Whatever the mean is beside the spread, in a space of lower rank, and at right angles to the first direction."""
    draw = np.random.default_rng(seed)
    E = draw.normal(size=(V, d)) * np.arange(d, 0, -1) ** 2.0
    E -= E.mean(axis=0)
    E[:, -(d // 2) :] *= not flat or d == 1
    m = mean * draw.normal(size=d)
    if across:
        m[0] = 0
        E[:, 0] = 0
        E[: V // 2 * 2, 0] = 50 * np.tile([1, -1], V // 2)
    E = (E + m) * size
    first, (values, _) = first_component(*of_centred(E), len(E)), np.linalg.eigh(E.T @ E)
    if not E.any():
        assert not first.any()
        return
    assert np.linalg.norm(first) == pytest.approx(1)
    # its quotient is the largest eigenvalue: where that is one of several, so is every vector of theirs
    assert np.square(E @ first).sum() == pytest.approx(values[-1], rel=1e-12)
    assert np.linalg.norm(E.T @ (E @ first) - values[-1] * first) <= 1e-10 * values[-1]


def test_the_first_component_of_nothing_is_nothing() -> None:
    assert not first_component(*of_centred(np.zeros((9, 4))), 9).any()
    assert np.allclose(abs(first_component(*of_centred(np.ones((9, 4))), 9)), 0.5)


def planted(V: int, d: int, n: int, seed: int, size: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """A trained-looking E with a common component, and n rows among them that hardly left one direction; which."""
    draw = np.random.default_rng(seed)
    E = draw.normal(size=(V, d)) * draw.uniform(0.8, 1.2, (V, 1)) / d**0.5
    way = draw.normal(size=d)
    rows = np.sort(draw.choice(V, n, replace=False))
    E[rows] = size * (way / np.linalg.norm(way) + 0.3 * draw.normal(size=(n, d)) / d**0.5)
    return (E + 2 * draw.normal(size=d) / d**0.5).astype(np.float32), rows


@pytest.mark.parametrize(("V", "d", "n"), [(2000, 64, 20), (2000, 64, 400), (5000, 24, 60), (9000, 128, 16)])
def test_planted_rows_are_found_and_no_others(V: int, d: int, n: int) -> None:
    for seed in range(3):
        E, rows = planted(V, d, n, seed)
        assert np.flatnonzero(found_in(E).undertrained).tolist() == rows.tolist()


def test_scores_are_the_papers_cosine() -> None:
    """Against the paper's formula with the mean of the found rows as its unused ones: the same order, and close."""
    E, rows = planted(3000, 48, 100, 7)
    found = found_in(E)
    first = np.linalg.svd(E.astype(np.float64))[2][0]
    U = E - np.outer(E @ first, first)
    unused = U[rows].mean(axis=0)
    cosines = U @ unused / np.linalg.norm(U, axis=1) / np.linalg.norm(unused)
    assert found.score is not None
    np.testing.assert_allclose(found.score, cosines, atol=2e-3)
    np.testing.assert_allclose(found.norm, np.linalg.norm(E, axis=1), rtol=1e-6)
    assert (found.undertrained == (found.score >= np.float32(LEAST))).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_scale_of_an_embedding_does_not_matter(scale: float) -> None:
    E, rows = planted(2000, 64, 30, 1)
    assert np.flatnonzero(found_in((E * scale).astype(np.float32)).undertrained).tolist() == rows.tolist()


@pytest.mark.parametrize(("V", "d"), [(60, 24), (300, 24), (2000, 24), (2000, 200)])
def test_random_rows_have_none(V: int, d: int) -> None:
    for seed in range(5):
        E, _ = planted(V, d, 0, seed)
        found = found_in(E)
        assert found.score is None
        assert not found.undertrained.any()


def test_zeros_and_equal_rows_are_no_trouble() -> None:
    assert not found_in(np.zeros((100, 8), np.float32)).undertrained.any()
    assert not found_in(np.ones((100, 8), np.float32)).undertrained.any()
    E, rows = planted(2000, 64, 30, 2)
    E[0] = 0
    found = found_in(E)
    assert found.score is not None
    assert found.score[0] == 0
    assert set(np.flatnonzero(found.undertrained)) == set(rows) - {0}


@pytest.mark.parametrize("name", ["tiny-a", "tiny-b", "tiny-c", "tiny-wide"])
def test_demo_models_have_none(name: str) -> None:
    """Their vocabulary was pruned to words that occur at least 33 times."""
    E = load_file(FOLDERS[name] / "model.safetensors")["transformer.wte.weight"].numpy()
    assert found_in(E).score is None


@pytest.mark.skipif(PUBLISHED[0] not in FOLDERS, reason="all-MiniLM-L6-v2 is not installed")
def test_minilm_against_its_unused_entries() -> None:
    """993 of the 994 [unusedN] are found: recall 0.999. They are 993 of 1,683: precision 0.59, since BERT has others
    that its training never saw: of the 690, 687 are not ASCII or are continuations that its tokenizer cannot make.
    """
    E = load_file(FOLDERS["minilm"] / "model.safetensors")["embeddings.word_embeddings.weight"].numpy()
    vocabulary = read_vocabulary("minilm", FOLDERS["minilm"], len(E))
    found = found_in(E).undertrained
    unused = np.array([token.startswith("[unused") for token in vocabulary.tokens])
    precision, recall = (found & unused).sum() / found.sum(), (found & unused).sum() / unused.sum()
    print(f"precision {precision:.3f}, recall {recall:.3f}, {found.sum()} found")
    assert recall == pytest.approx(0.999, abs=0.002)
    assert precision == pytest.approx(0.590, abs=0.01)
    others = [vocabulary.tokens[i] for i in np.flatnonzero(found & ~unused)]
    never = [token for token in others if not token.isascii() or unmakeable(token)]
    assert (len(others), len(never)) == (pytest.approx(690, abs=15), pytest.approx(687, abs=15))
    assert len(others) - len(never) <= 5


def unmakeable(token: str) -> bool:
    """Whether BERT's tokenizer, which splits at punctuation and symbols, cannot make a continuation."""
    return token.startswith("##") and all(unicodedata.category(c)[0] in "PS" for c in token[2:])


def test_an_atlas_tells_them_by_model_and_by_vocabulary(tmp_path: Path) -> None:
    """A token is under-trained in the table ``tokens`` where it is so in every model of the vocabulary."""
    options, expected = Options(top_k=5, pair_k=5, neighbor_k=1, device="cpu"), set(range(60, 120))
    for number, rows in enumerate([range(100, 120), range(95, 115), range(0)]):
        name = f"m{number}"
        models.save_planted(tmp_path / name, rows, number)
        build([str(tmp_path / name)], tmp_path / "x.atlas", options)
        expected &= set(rows)
        with paramdex.open(tmp_path / "x.atlas") as atlas:
            own = atlas.sql("SELECT * FROM token_embeddings WHERE model = ? ORDER BY token_id", [name]).to_rows()
            assert [row["token_id"] for row in own] == list(range(120))
            assert {row["token_id"] for row in own if row["is_undertrained"]} == set(rows)
            scored = [row["undertrained"] for row in own]
            assert scored == [None] * 120 if not rows else all(-1 <= score <= 1 for score in scored)
            all_models = atlas.sql("SELECT token_id FROM tokens WHERE is_undertrained").to_rows()
            assert {row["token_id"] for row in all_models} == expected
        E = load_file(tmp_path / name / "model.safetensors")["transformer.wte.weight"].numpy()
        np.testing.assert_allclose([row["norm"] for row in own], np.linalg.norm(E, axis=1), rtol=1e-6)
