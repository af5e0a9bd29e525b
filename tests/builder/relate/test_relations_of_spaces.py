"""Models whose vectors lie in several spaces: transfers, neighbors and alignments against float64 on whole scores.

The models are made up: spaces X (V x d) and vectors w at random, and files written as a build writes them. A vector
that reads beyond layer 0 is scored by ``reading`` after a random map; the truth is the correlation of V scores, each in
the vector's own space.
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import oracle
from paramdex_builder import Progress
from paramdex_builder.files.tensors import write_space
from paramdex_builder.files.vectors import write_flat_index
from paramdex_builder.project.space import Space, make_space
from paramdex_builder.relate import transfers
from paramdex_builder.relate.models import Pair, Related, Shared
from paramdex_builder.relate.rows import passes, relation_rows
from paramdex_builder.relate.transfers import write_own_transfers, write_transfers
from paramdex_schemas import Layout, atlas_files, isometry, vector_files
from paramdex_schemas.layout import Run
from paramdex_schemas.model import Model

CPU = torch.device("cpu")
V, K = 40, 4
SPACES = {
    "plain": {"output": ["output", "output", "output"]},
    "tied": {"input": ["input", "reading", "reading"]},
    "untied": {"output": ["input", "reading", "reading"]},
    "mixed": {"output": ["output", "reading", "output", "input", "reading"]},
}
"""Shape of a model -> its main space, and the space of what reads in each layer."""
PAIRS = [*product(SPACES, ["plain", "untied"]), ("untied", "tied"), ("mixed", "mixed"), ("plain", "mixed")]


class MadeUp:
    """A model: its spaces, its vectors by kind, and the V scores of each (n x V), in its own space."""

    def __init__(self, root: Path, name: str, shape: str, first: int, d: int, V: int = V, rank: int = 9) -> None:
        """``rank`` bounds that of what is no main space."""
        draw = np.random.default_rng([first, d])
        ((self.main, of_layers),) = SPACES[shape].items()
        runs = [Run("ff_key", None, n, None, 1, 5 + n, 1, space=space) for n, space in enumerate(of_layers)]
        runs += [Run("ff_value", None, n, None, 1, 7, 1, space=self.main) for n in range(len(of_layers))]
        runs += [Run("attn_query_bias", None, n, "head", 2, 1, 1, space=space) for n, space in enumerate(of_layers)]
        layout = Layout.number(runs)
        self.model = Model(first // 100, name, "v", V, first, 0, layout, self.main)
        self.folder = root / "models" / name
        self.folder.mkdir(parents=True)
        self.X = {space: draw.normal(size=(V, d)).astype(np.float32) for space in self.model.spaces}
        for space in self.model.spaces[1:]:
            self.X[space][:, rank:] = self.X[space][:, :1]
        self.spaces: dict[str, Space] = {space: make_space(torch.from_numpy(X), CPU) for space, X in self.X.items()}
        for space, made in self.spaces.items():
            write_space(self.folder / atlas_files.space(None if space == self.main else space), made)
        self.scores: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        for kind in layout.kinds:
            self._write(kind, draw)

    def _write(self, kind: str, draw: np.random.Generator) -> None:
        """The files of a kind: all w by the main space, and what is scored in other spaces there."""
        d = next(iter(self.X.values())).shape[1]
        scores, weights = [], []
        files: dict[str | None, list[np.ndarray]] = {None: []}
        for run in self.model.layout.of(kind):
            w = draw.normal(size=(run.n_rows, d))
            r = w @ draw.normal(size=(d, d)) if run.space == "reading" else w
            weights.append(w)
            scores.append(r @ self.X[run.space].T.astype(np.float64))
            files[None].append(w @ self.spaces[self.main].root.root.T)
            if run.space != self.main:
                files.setdefault(run.space, []).append(r @ self.spaces[run.space].root.root.T)
        self.scores[kind], self.weights[kind] = np.concatenate(scores), np.concatenate(weights)
        for space, rows in files.items():
            path = self.folder / vector_files.index_name(vector_files.stem(kind, space))
            write_flat_index(
                path,
                self.spaces[space or self.main].root.rank,
                [isometry.normalize(np.concatenate(rows)).astype(np.float32)],
            )

    def related(self) -> Related:
        return Related(f"uid-of-{self.model.name}", self.model, self.folder)


def pair_of(a: MadeUp, b: MadeUp, n_tokens: int = V, shared: Shared | None = None) -> Pair:
    return Pair(a.related(), b.related(), n_tokens, shared)


def written(pair: Pair, root: Path) -> Path:
    """The folder of a relation, with its transfers."""
    folder = root / "relation"
    folder.mkdir(exist_ok=True)
    write_transfers(pair, folder, CPU, Progress())
    assert [path.name for path in folder.iterdir()] == [atlas_files.TRANSFER]
    return folder


def check(earlier: MadeUp, new: MadeUp, ids: tuple[np.ndarray, np.ndarray], pair: Pair, folder: Path) -> None:
    """All rows that are kept of two models, by their scores of the tokens ``ids`` of each."""
    told: list[int] = []
    found: dict[str, list[dict]] = {"neighbors": [], "layer_alignments": []}
    for table, rows in relation_rows(pair, folder, K, CPU, told.append):
        found[table] += rows.to_pylist()
    assert sum(told) == passes(pair)
    neighbors = {(row["of_a"], row["param_id"], row["rank"]): row for row in found["neighbors"]}
    alignments = {(row["kind"], row["layer_a"], row["layer_b"]): row for row in found["layer_alignments"]}
    n_layers = [len(each.model.layout.places("ff_key")) for each in (earlier, new)]
    assert len(alignments) == len(found["layer_alignments"]) == 2 * n_layers[0] * n_layers[1]
    for kind in ("ff_key", "ff_value", "attn_query_bias"):
        a, b = earlier.scores[kind][:, ids[0]], new.scores[kind][:, ids[1]]
        S = np.corrcoef(a, b)[: len(a), len(a) :]
        for of_a, of, among, truth in ((True, earlier, new, S), (False, new, earlier, S.T)):
            first, first_there = (each.model.layout.blocks[kind].first for each in (of, among))
            for i, row in enumerate(truth):
                near = [neighbors.pop((of_a, first + i, rank)) for rank in range(1, K + 1)]
                similarities = [each["similarity"] for each in near]
                np.testing.assert_allclose(similarities, np.sort(row)[::-1][:K], atol=2e-6)
                chosen = [each["neighbor_id"] - first_there for each in near]
                np.testing.assert_allclose(similarities, row[chosen], atol=2e-6)
                assert len(set(chosen)) == K
        if kind == "attn_query_bias":
            continue
        places = [[*each.model.layout.places(kind).items()] for each in (earlier, new)]
        raw = features(earlier.weights[kind], new.weights[kind])
        for ((_, x), cut_x), ((_, y), cut_y) in product(*places):
            row, here = alignments[kind, x, y], (slice(*cut_x), slice(*cut_y))
            assert row["score"] == pytest.approx(np.abs(S[here]).mean(), abs=1e-6)
            if raw is not None:
                assert row["feature_score"] == pytest.approx(np.abs(raw[here]).mean(), abs=1e-5)
            else:
                assert "feature_score" not in row
    assert not neighbors


def features(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The correlations of weights themselves, whatever space scores them."""
    return oracle.pearson(a, b) if a.shape[1] == b.shape[1] else None


def every_pair(T: dict[str, np.ndarray], a: MadeUp, b: MadeUp) -> None:
    """Each tensor is the Gram matrix of orthonormal bases of centred scores."""
    for x, y in product(a.spaces, b.spaces):
        bases = [
            (each.X[space] - each.X[space].mean(0, dtype=np.float64)) @ each.spaces[space].root.inverse
            for each, space in ((a, x), (b, y))
        ]
        np.testing.assert_allclose(T[atlas_files.transfer(x, y)], bases[1].T @ bases[0], atol=1e-10)


@pytest.mark.parametrize(("shape_a", "shape_b"), PAIRS)
@pytest.mark.parametrize("d", [6, 9])
def test_models_of_one_vocabulary(shape_a: str, shape_b: str, d: int, tmp_path: Path) -> None:
    a, b = MadeUp(tmp_path, "a", shape_a, 0, 6), MadeUp(tmp_path, "b", shape_b, 100, d)
    pair = pair_of(a, b)
    folder = written(pair, tmp_path)
    found = load_file(folder / atlas_files.TRANSFER)
    every_pair(found, a, b)
    assert sorted(found) == sorted(f"{x}/{y}" for x, y in product(a.spaces, b.spaces))
    check(a, b, (np.arange(V), np.arange(V)), pair, folder)
    assert [path.name for path in folder.iterdir()] == [atlas_files.TRANSFER]


@pytest.mark.parametrize(("shape_a", "shape_b"), PAIRS)
def test_models_of_nearly_one_vocabulary(shape_a: str, shape_b: str, tmp_path: Path) -> None:
    """Compared by the scores of 37 tokens, which have other ids in the one than in the other."""
    a, b = MadeUp(tmp_path, "a", shape_a, 0, 6, V + 2), MadeUp(tmp_path, "b", shape_b, 100, 6)
    draw = np.random.default_rng(7)
    ids = (np.sort(draw.permutation(V + 2)[:37]), draw.permutation(V)[:37])
    pair = pair_of(a, b, 37, Shared(*(torch.from_numpy(each) for each in ids)))
    folder = written(pair, tmp_path)
    found = load_file(folder / atlas_files.TRANSFER)
    pairs = [*product(a.spaces, b.spaces)]
    roots = {f"root/a/{x}": a.X[x][ids[0]] for x in a.spaces} | {f"root/b/{y}": b.X[y][ids[1]] for y in b.spaces}
    assert sorted(found) == sorted([*roots, *(f"{x}/{y}" for x, y in pairs)])
    centred = {name: rows - rows.mean(0, dtype=np.float64) for name, rows in roots.items()}
    for name, rows in centred.items():
        np.testing.assert_allclose(found[name].T @ found[name], rows.T @ rows, rtol=1e-10, atol=1e-10)
    for x, y in pairs:
        bases = [centred[name] @ isometry.Root(found[name]).inverse for name in (f"root/a/{x}", f"root/b/{y}")]
        np.testing.assert_allclose(found[f"{x}/{y}"], bases[1].T @ bases[0], atol=1e-10)
    check(a, b, ids, pair, folder)
    assert [path.name for path in folder.iterdir()] == [atlas_files.TRANSFER]


@pytest.mark.parametrize("shape", SPACES)
def test_the_spaces_of_one_model(shape: str, tmp_path: Path) -> None:
    """In its own folder, whatever other models there are; each is stored one way, the model's own first."""
    made = MadeUp(tmp_path, "a", shape, 0, 6)
    write_own_transfers("a", made.spaces, made.folder, Progress())
    file = made.folder / atlas_files.TRANSFER
    if len(made.spaces) == 1:
        assert not file.exists()
        return
    found = load_file(file)
    assert [*made.spaces] == made.model.spaces
    assert sorted(found) == sorted("/".join(pair) for pair in combinations(made.spaces, 2))
    for x, y in combinations(made.spaces, 2):
        a, b = (made.X[space] - made.X[space].mean(0, dtype=np.float64) for space in (x, y))
        T = (b @ made.spaces[y].root.inverse).T @ (a @ made.spaces[x].root.inverse)
        np.testing.assert_allclose(found[f"{x}/{y}"], T, atol=1e-10)


def test_spaces_of_lower_rank_than_width(tmp_path: Path) -> None:
    """They have fewer coordinates."""
    a, b = MadeUp(tmp_path, "a", "untied", 0, 6, rank=5), MadeUp(tmp_path, "b", "untied", 100, 7, rank=4)
    assert [space.root.rank for space in (*a.spaces.values(), *b.spaces.values())] == [6, 5, 5, 7, 4, 4]
    pair = pair_of(a, b)
    folder = written(pair, tmp_path)
    every_pair(load_file(folder / atlas_files.TRANSFER), a, b)
    check(a, b, (np.arange(V), np.arange(V)), pair, folder)


def test_of_files_no_more_is_read_than_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both models. And what is written does not depend on it, but for how sums round."""
    a, b = MadeUp(tmp_path, "a", "untied", 0, 6), MadeUp(tmp_path, "b", "untied", 100, 9)
    pair = pair_of(a, b)
    expected = load_file(written(pair, tmp_path) / atlas_files.TRANSFER)
    read, sizes, files = transfers._Stored.__getitem__, [], set()

    def counted(self: transfers._Stored, part: slice) -> torch.Tensor:
        found = read(self, part)
        if part != slice(None):
            sizes.append(len(found))
        files.add(self.file)
        return found

    monkeypatch.setattr(transfers._Stored, "__getitem__", counted)
    monkeypatch.setattr(transfers, "_ROOT_ROWS", 5)
    monkeypatch.setattr("paramdex_builder.project.space._CHUNK", 7)
    found = load_file(written(pair, tmp_path) / atlas_files.TRANSFER)
    assert max(sizes) == 7
    assert files == {*a.folder.glob("*.safetensors"), *b.folder.glob("*.safetensors")}
    assert len(found) == len(expected) == 9
    for name, T in expected.items():
        np.testing.assert_allclose(found[name], T, rtol=1e-10, atol=1e-12)
