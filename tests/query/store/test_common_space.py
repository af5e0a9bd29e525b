"""Vectors in several spaces, of made-up models: rows are found in their files, and compare as their scores do."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_vector_storage import truth as nearest_truth

from opened import contents_of
from paramdex.store.common_space import Common, Half
from paramdex.store.nearest import Loaded, Rows, nearest
from paramdex.store.spaces import SharedSpaces
from paramdex.store.vectors import OPENERS, Vectors
from paramdex_builder.files.vectors import open_rows, rotation, write_codes, write_flat_index
from paramdex_schemas import Layout, Run, atlas_files, isometry, vector_files
from paramdex_schemas.contents import Relation, listed
from paramdex_schemas.layout import SPACES
from paramdex_schemas.model import Model

KIND = "ff_key"


@dataclass
class MadeUp:
    """A model of one kind with its spaces X by name (V x d), and the vectors (n x d) as they are scored."""

    model: Model
    X: dict[str, np.ndarray]
    vectors: np.ndarray

    @property
    def roots(self) -> dict[str, isometry.Root]:
        return {name: _root(X) for name, X in self.X.items()}

    def space(self, row: int) -> str:
        return next(part.space for part in self.model.layout.parts(KIND) if part.start <= row < part.end)

    def scores(self) -> np.ndarray:
        """All V scores (n x V)."""
        return np.array([self.X[self.space(i)] @ w for i, w in enumerate(self.vectors)])

    def coordinates(self, space: str) -> np.ndarray:
        return isometry.normalize(self.vectors @ self.roots[space].root.T).astype(np.float32)


def _root(X: np.ndarray) -> isometry.Root:
    centred = X - X.mean(axis=0)
    return isometry.gram_root(centred.T @ centred, len(X))


def made_up(name: str, number: int, V: int, layers: list[str], size: int, draw: np.random.Generator) -> MadeUp:
    """A model whose layers, of ``size`` vectors each, are scored in the given spaces; the first one is its own."""
    layout = Layout.number([Run(KIND, None, i, None, 1, size, 1, space=space) for i, space in enumerate(layers)])
    width = int(draw.integers(1, 7))
    model = Model(number, name, "v", V, 100 * number, 0, layout, layers[0])
    X = {space: draw.normal(size=(V, width)) for space in model.spaces}
    return MadeUp(model, X, draw.normal(size=(len(layers) * size, width)))


def write(atlas: Path, models: list[MadeUp], *, codes: bool = False, related: bool = True) -> Vectors:
    """The files that an atlas would have of the models."""
    earlier: list[MadeUp] = []
    for one in models:
        folder = atlas_files.model_folder(atlas, one.model.name)
        folder.mkdir(parents=True)
        for space in one.model.spaces:
            other = None if space == one.model.embedding else space
            root = one.roots[space]
            tensors = {"embedding": one.X[space], "means": one.X[space].mean(axis=0), "root": root.root}
            save_file(tensors, folder / atlas_files.space(other))
            rows = one.coordinates(space)
            if other:
                rows = rows[[one.space(i) == space for i in range(len(rows))]]
            stem = vector_files.stem(KIND, other)
            write_flat_index(folder / vector_files.index_name(stem), rows.shape[1], [rows])
            if codes:
                path = folder / vector_files.index_name(stem)
                write_codes(folder, stem, open_rows(path), rotation(rows.shape[1]))
        transfers = {
            atlas_files.transfer(source, into): _transfer(one, source, one, into)
            for source, into in itertools.combinations(one.model.spaces, 2)
        }
        if transfers:
            save_file(transfers, folder / atlas_files.TRANSFER)
        for each in earlier if related else []:
            between = atlas_files.relation_folder(atlas, each.model.name, one.model.name)
            between.mkdir(parents=True)
            transfers = {
                atlas_files.transfer(source, into): _transfer(each, source, one, into)
                for source, into in itertools.product(each.model.spaces, one.model.spaces)
            }
            save_file(transfers, between / atlas_files.TRANSFER)
            found = Relation(
                each.model.name, one.model.name, one.model.vocabulary_size, shared=False,
                files=listed(between, [atlas_files.TRANSFER]), tables={},
            )  # fmt: skip
            (between / atlas_files.MANIFEST).write_text(found.text(), "utf-8")
        earlier.append(one)
    return Vectors(contents_of(atlas, [one.model for one in models]))


def _transfer(a: MadeUp, source: str, b: MadeUp, into: str) -> np.ndarray:
    left, right = (X - X.mean(axis=0) for X in (a.X[source], b.X[into]))
    return isometry.transfer(right.T @ left, a.roots[source], b.roots[into])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[MadeUp, MadeUp, np.random.Generator]:
    """Two models of one vocabulary, each with layers in any spaces, in any order."""
    numbers = np.random.default_rng(draw(st.integers(0, 10_000)))
    V, size = draw(st.integers(12, 30)), draw(st.integers(1, 4))
    layers = [draw(st.lists(st.sampled_from(SPACES), min_size=1, max_size=5)) for _ in range(2)]
    one, other = (made_up(f"m{i}", i, V, own, size, numbers) for i, own in enumerate(layers))
    return one, other, numbers


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.corrcoef(a, b)[: len(a), len(a) :]


@given(pairs(), st.data())
def test_rows_in_common_coordinates_are_correlations(
    tmp_path_factory: pytest.TempPathFactory,
    two: tuple[MadeUp, MadeUp, np.random.Generator],
    data: st.DataObject,
) -> None:
    """Of any spans, whichever model comes first; on all tokens, or as for two vocabularies on some of them."""
    one, other, numbers = two
    vectors = write(tmp_path_factory.mktemp("spaces") / "x.atlas", [one, other])
    a, b = data.draw(st.permutations([one, other]))
    ids, shared = np.arange(one.model.vocabulary_size), None
    if data.draw(st.booleans()):
        ids = np.sort(numbers.choice(ids, data.draw(st.integers(9, len(ids))), replace=False))
        X = {each.model.name: each.X for each in two[:2]}
        shared = SharedSpaces(one.model.name, len(ids), lambda model, space: X[model][space][ids])
    spans = []
    for each in (a, b):
        ends = sorted(data.draw(st.lists(st.integers(0, len(each.vectors)), min_size=2, max_size=2, unique=True)))
        spans.append(data.draw(st.sampled_from([None, (ends[0], ends[1])])))
    both = Common(Half(vectors, a.model, b.model, shared), Half(vectors, b.model, a.model, shared), [])
    left, right = both.rows(KIND, spans[:1], spans[1:])
    of_a, of_b = (each.scores()[:, ids][slice(*(span or (None,)))] for each, span in zip((a, b), spans, strict=True))
    assert left.dtype == right.dtype == np.float32
    np.testing.assert_allclose(left @ right.T, correlations(of_a, of_b), atol=2e-5)
    if shared is not None:
        for piece in vectors.pieces(b.model, KIND):
            (query,) = both.moved(a.coordinates(a.space(0))[:1].astype(np.float64), a.space(0), [piece.space])
            found = both.right.similarities(KIND, piece, query)
            expected = correlations(a.scores()[:1, ids], b.scores()[piece.start : piece.end, ids])[0]
            np.testing.assert_allclose(found, expected, atol=2e-5)


@given(pairs(), st.data())
def test_transfers_between_any_two_spaces(
    tmp_path_factory: pytest.TempPathFactory, two: tuple[MadeUp, MadeUp, np.random.Generator], data: st.DataObject
) -> None:
    """Of one model or of two, related or not, and back again."""
    vectors = write(tmp_path_factory.mktemp("spaces") / "x.atlas", list(two[:2]), related=data.draw(st.booleans()))
    a, b = (data.draw(st.sampled_from(two[:2])) for _ in range(2))
    source, into = (data.draw(st.sampled_from(each.model.spaces)) for each in (a, b))
    T = vectors.transfer(a.model, source, b.model, into)
    np.testing.assert_allclose(T, _transfer(a, source, b, into), atol=1e-12)
    np.testing.assert_array_equal(vectors.transfer(b.model, into, a.model, source), T.T)
    for c in a.coordinates(source):
        moved = vectors.moved(c, a.model, source, b.model, into)
        np.testing.assert_allclose(moved, T @ c.astype(np.float64), atol=1e-12)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("layers", [["output", "reading", "output", "reading"], ["input", "reading", "input"]])
def test_pieces_have_the_rows_of_their_spans(tmp_path: Path, layers: list[str], codes: bool) -> None:
    """Also where the model's own space comes again: its file has all rows, those of others only their own."""
    one = made_up("m", 0, 20, layers, 3, np.random.default_rng(0))
    vectors = write(tmp_path / "x.atlas", [one], codes=codes)
    n = len(one.vectors)
    for span in [None, *itertools.combinations(range(n + 1), 2)]:
        first, end = span or (0, n)
        pieces = list(vectors.pieces(one.model, KIND, span))
        assert [i for piece in pieces for i in range(piece.start, piece.end)] == list(range(first, end))
        for piece in pieces:
            expected = one.coordinates(piece.space)[piece.start : piece.end]
            assert {one.space(i) for i in range(piece.start, piece.end)} == {piece.space}
            np.testing.assert_array_equal(piece.stored(), expected)
            query = expected[0].astype(np.float64)
            found = nearest(piece.rows, query, 2, [piece.span])
            shifted = nearest_truth(expected, query, 2, [(0, len(expected))], "top")
            assert found == [(similarity, row + piece.at) for similarity, row in shifted]


def test_every_space_is_opened_by_its_name_and_the_own_one_by_none(tmp_path: Path) -> None:
    one = made_up("m", 0, 20, ["output", "reading"], 3, np.random.default_rng(0))
    vectors = write(tmp_path / "x.atlas", [one])
    assert vectors.space("m") is vectors.space("m", "output")
    assert vectors.index("m", KIND) is vectors.index("m", KIND, "output")
    assert [vectors.rows("m", KIND, space).shape[0] for space in (None, "output", "reading")] == [6, 6, 3]
    np.testing.assert_array_equal(vectors.space("m", "reading").rows([3]), one.X["reading"][[3]])


def test_an_opener_is_given_kind_and_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector store of one's own may have the vectors of one space, and leave the others where they are."""
    one = made_up("m", 0, 20, ["output", "reading"], 3, np.random.default_rng(0))
    vectors = write(tmp_path / "x.atlas", [one])
    seen: list[str] = []

    def open_npy(_: Vectors, __: str, stem: str) -> Rows:
        seen.append(stem)
        return Loaded(one.coordinates("reading")[3:])

    monkeypatch.setitem(OPENERS, ".npy", open_npy)
    manifest = vectors.contents.manifests["m"]
    more = replace(manifest, files={**manifest.files, f"{KIND}.reading.npy": (0, "")})
    vectors = replace(vectors, contents=replace(vectors.contents, manifests={"m": more}))
    found = np.concatenate([piece.stored() for piece in vectors.pieces(one.model, KIND, (3, 6))])
    np.testing.assert_array_equal(found, one.coordinates("reading")[3:])
    assert vectors.rows("m", KIND).shape[0] == 6
    assert seen == [f"{KIND}.reading"]
