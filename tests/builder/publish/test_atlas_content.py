"""Every number of an atlas against a float64 brute force over the original weights (tests/helpers/oracle.py).

Samples are drawn anew each run from a seed that a failing test prints; PARAMDEX_SEED=... draws the same ones again.
"""

from __future__ import annotations

import hashlib
import random
from itertools import combinations
from pathlib import Path

import duckdb
import faiss
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import oracle
from paramdex_schemas.contents import read_contents
from query_helpers import GPT2, MODELS, VIEWS

SAMPLE = 150


def owner(kind: str, head: int | None, kv_head: int | None) -> int | None:
    """The number by which a head's vector of this kind is counted."""
    return kv_head if kind in oracle.SHARED else head


def sampled(rows: list[tuple], kind: int, draw: random.Random) -> list[tuple]:
    """SAMPLE rows and, of every kind (in column ``kind``), at least four more or all that there are."""
    kinds = sorted({row[kind] for row in rows})
    of_each = [[row for row in rows if row[kind] == each] for each in kinds]
    few = [row for own in of_each for row in draw.sample(own, min(4, len(own)))]
    return list(dict.fromkeys([*draw.sample(rows, SAMPLE), *few]))


def of_kind(truth: oracle.Truth, kind: str) -> np.ndarray:
    """All vectors of a kind, layer after layer."""
    return np.concatenate(truth.rows[kind])


@pytest.mark.parametrize("view", VIEWS)
def test_view_has_the_documented_columns(db: duckdb.DuckDBPyConnection, view: str) -> None:
    found = [row[0] for row in db.execute(f"DESCRIBE {view}").fetchall()]
    assert [column for column in found if column in VIEWS[view].split()] == VIEWS[view].split()


def test_files_can_be_read_by_clients_from_1_2_on(db: duckdb.DuckDBPyConnection) -> None:
    """Those of the models and of the relations."""
    found = db.execute("SELECT tags FROM duckdb_databases() WHERE path LIKE '%tables.duckdb'").fetchall()
    assert len(found) == len(MODELS) + 3
    assert all(tags["storage_version"].startswith("v1.2.0") for (tags,) in found)


def test_models(db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth]) -> None:
    """Shapes as the weights have them, with the padding rows of the embedding gone."""
    rows = db.execute(
        "SELECT model, n_layers, d_model, n_heads, n_kv_heads, d_head, d_ff, n_experts, d_expert, stacks, "
        "vocabulary_size, embedding_rank, n_parameters, family, dtype, tied, gated, rotary_left_out, fold_norm, top_k, "
        "pair_k, neighbor_k FROM models ORDER BY ALL"
    ).fetchall()
    family = {"bert": "bert", "llama-gqa": "llama"}
    dtype = {"gpt2-b": "float16", "llama-gqa": "bfloat16"}
    expected = [
        (
            name, truth.n_layers, truth.E.shape[1], truth.n_heads, truth.n_kv_heads, truth.d_head,
            len(truth.rows["ff_key"][0]), None, None, None, len(truth.E),
            np.linalg.matrix_rank(truth.E - truth.E.mean(0)), truth.n_parameters, family.get(name, "gpt2"),
            dtype.get(name, "float32"), name != "llama-gqa", name == "llama-gqa", name == "llama-gqa", False, 12, 30, 4,
        )
        for name, truth in sorted(truths.items())
    ]  # fmt: skip
    assert rows == expected
    shared = dict(db.execute("SELECT model, vocabulary FROM models").fetchall())
    assert len({shared[name] for name in GPT2}) == 1
    assert len(set(shared.values())) == 3


@pytest.mark.parametrize("model", MODELS)
def test_moments_and_norms(
    db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], draw: random.Random, model: str
) -> None:
    """norm, and mean, std and norm of the V scores, of sampled parameters of every kind."""
    truth = truths[model]
    place = "stack, layer, kind, head, kv_head, expert, idx"
    sql = f"SELECT {place}, norm, mean, std, projected_norm FROM parameters WHERE model = ?"
    rows = db.execute(sql, [model]).fetchall()
    assert {row[2] for row in rows} == set(truth.rows)
    for stack, layer, kind, head, kv_head, expert, idx, *numbers in sampled(rows, 2, draw):
        assert (stack, expert) == (None, None)
        assert (layer is None) == (kind in oracle.OF_NO_LAYER)
        w = truth.vector(kind, layer, owner(kind, head, kv_head), idx)
        s = truth.scores(w)
        expected = [np.linalg.norm(w), s.mean(), s.std(), np.linalg.norm(s)]
        np.testing.assert_allclose(numbers, expected, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_tokens_of_parameters(
    db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], draw: random.Random, model: str
) -> None:
    """Both sides of sampled parameters, in the view; the lists of store.parameters say the same."""
    truth = truths[model]
    rows = db.execute(
        "SELECT address, layer, kind, head, kv_head, idx FROM parameters WHERE model = ?", [model]
    ).fetchall()
    chosen = sampled(rows, 2, draw)
    addresses = [row[0] for row in chosen]
    stored: dict[tuple[str, str], list[tuple[int, int, float]]] = {}
    for address, side, *entry in db.execute(
        "SELECT address, side, rank, token_id, score FROM parameter_tokens "
        "WHERE list_contains(?, address) AND rank IS NOT NULL ORDER BY ALL",
        [addresses],
    ).fetchall():
        stored.setdefault((address, side), []).append(tuple(entry))
    lists = {
        address: {"top": top, "bottom": bottom}
        for address, *top, bottom_tokens, bottom_scores in db.execute(
            "SELECT of_model || '/' || path AS address, top_tokens[:12], top_scores[:12], bottom_tokens[:12], "
            "bottom_scores[:12] FROM store.parameters WHERE list_contains(?, address)",
            [addresses],
        ).fetchall()
        for bottom in [[bottom_tokens, bottom_scores]]
    }
    for address, layer, kind, head, kv_head, idx in chosen:
        s = truth.scores(truth.vector(kind, layer, owner(kind, head, kv_head), idx))
        for side in ("top", "bottom"):
            ranks, ids, scores = (list(column) for column in zip(*stored[address, side], strict=True))
            assert ranks == list(range(1, 13))
            assert len(set(ids)) == 12
            oracle.assert_strongest(scores, s[ids], s, side)
            assert lists[address][side] == [ids, scores]


@pytest.mark.parametrize("model", MODELS)
def test_addresses_number_every_parameter_once(
    db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], model: str
) -> None:
    """Ids run on by kind, layer, head and index; a shared vector carries the first head that uses it."""
    expected = [oracle.address(model, *place) for *place, _ in truths[model].parameters()]
    assert len(set(expected)) == truths[model].n_parameters
    rows = db.execute("SELECT address, param_id FROM parameters WHERE model = ? ORDER BY param_id", [model]).fetchall()
    assert [address for address, _ in rows] == expected
    assert [number - rows[0][1] for _, number in rows] == list(range(len(expected)))


def test_layout_says_what_lies_where(db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth]) -> None:
    """One row for all that a layer has of a kind, whose numbers run on within a model; each has 2 ** 32 to itself."""
    rows = db.execute("SELECT * EXCLUDE (space) FROM layout ORDER BY first_param_id").fetchall()
    expected = []
    for i, (model, truth) in enumerate(truths.items()):
        number = i << 32
        for kind, by_layer in truth.rows.items():
            owner = dict.fromkeys(oracle.OF_HEADS, "head") | dict.fromkeys(oracle.SHARED, "kv_head")
            n_owners = {"head": truth.n_heads, "kv_head": truth.n_kv_heads}.get(owner.get(kind), 1)
            for layer, own in enumerate(by_layer):
                place = None if kind in oracle.OF_NO_LAYER else layer
                sizes = (n_owners, len(own) // n_owners, len(own))
                expected.append((model, kind, None, place, owner.get(kind), *sizes, number))
                number += len(own)
    assert rows == expected
    counted = db.execute(
        "SELECT model, kind, layer, min(param_id), count(*), max(param_id) - min(param_id) + 1 FROM parameters "
        "GROUP BY ALL ORDER BY min(param_id)"
    ).fetchall()
    assert counted == [(row[0], row[1], row[3], row[8], row[7], row[7]) for row in rows]


@pytest.mark.parametrize("model", MODELS)
def test_pairs_of_heads(
    db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], draw: random.Random, model: str
) -> None:
    """rank and rank_distinct of both matrices and sides of sampled heads, against the whole V x V matrix."""
    truth = truths[model]
    texts = db.execute(
        "SELECT text FROM tokens JOIN models USING (vocabulary) WHERE model = ? ORDER BY token_id", [model]
    ).fetchall()
    words = np.array([text.strip().casefold() or text for (text,) in texts])
    same = words[:, None] == words[None, :]
    if model in GPT2:
        assert same.sum() > len(words)  # some words are several tokens, or nothing is tested here
    heads = db.execute("SELECT address, layer, head FROM heads WHERE model = ?", [model]).fetchall()
    for address, layer, head in draw.sample(heads, 4):
        for matrix in ("QK", "VO"):
            S = truth.pair_scores(matrix, layer, head)
            for side in ("top", "bottom"):
                stored = db.execute(
                    "SELECT rank, rank_distinct, same_word, source_id, target_id, score FROM head_pairs "
                    "WHERE address = ? AND matrix = ? AND side = ? AND coalesce(rank, rank_distinct) IS NOT NULL",
                    [address, matrix, side],
                ).fetchall()
                assert len({row[3:5] for row in stored}) == len(stored)
                for place, everything in ((0, S), (1, S[~same])):
                    ranked = sorted((row for row in stored if row[place] is not None), key=lambda row: row[place])
                    assert [row[place] for row in ranked] == list(range(1, 31))
                    at = S[[row[3] for row in ranked], [row[4] for row in ranked]]
                    oracle.assert_strongest([row[5] for row in ranked], at, everything, side)
                for rank, distinct, same_word, source, target, _ in stored:
                    assert same_word == same[source, target]
                    assert rank is not None or distinct is not None
                    assert not (same_word and distinct is not None)


@pytest.mark.parametrize("model", MODELS)
def test_heads(db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], model: str) -> None:
    """Norms of the d x d matrices and moments of the V x V ones, of every head."""
    truth = truths[model]
    rows = db.execute(
        "SELECT layer, head, kv_head, qk_norm, vo_norm, qk_mean, qk_std, vo_mean, vo_std, address FROM heads "
        "WHERE model = ? ORDER BY head_id",
        [model],
    ).fetchall()
    assert [row[:2] for row in rows] == [(l, h) for l in range(truth.n_layers) for h in range(truth.n_heads)]
    for layer, head, kv_head, *numbers, address in rows:
        assert address == f"{model}/L{layer}/H{head}"
        assert kv_head == head * truth.n_kv_heads // truth.n_heads
        norms = [np.linalg.norm(left @ right.T) for left, right in (truth.head(m, layer, head) for m in ("QK", "VO"))]
        moments = [f(truth.pair_scores(m, layer, head)) for m in ("QK", "VO") for f in (np.mean, np.std)]
        np.testing.assert_allclose(numbers, norms + moments, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_index_rows_are_pearson_coordinates(
    db: duckdb.DuckDBPyConnection, small_atlas: Path, truths: dict[str, oracle.Truth], draw: random.Random, model: str
) -> None:
    """Row i of a kind's index is its i-th parameter, and inner products are the full V-long Pearson correlations."""
    truth = truths[model]
    for kind in truth.rows:
        index = faiss.read_index(str(small_atlas / "models" / model / f"{kind}.faiss"))
        addresses = db.execute(
            "SELECT layer, head, kv_head, idx FROM parameters WHERE model = ? AND kind = ? ORDER BY param_id",
            [model, kind],
        ).fetchall()
        assert index.ntotal == len(addresses)
        assert index.metric_type == faiss.METRIC_INNER_PRODUCT
        rows = index.reconstruct_n(0, index.ntotal)
        chosen = draw.sample(range(len(rows)), min(40, len(rows)))
        vectors = []
        for i in chosen:
            layer, head, kv_head, idx = addresses[i]
            vectors.append(truth.vector(kind, layer, owner(kind, head, kv_head), idx))
        full = np.array(vectors) @ truth.E.T  # n x V
        error = np.abs(rows[chosen] @ rows[chosen].T - oracle.pearson(full, full)).max()
        assert error < 1e-5


def test_neighbors(db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], draw: random.Random) -> None:
    """Sampled parameters' nearest in each other model of the vocabulary, by full Pearson; none across vocabularies."""
    found = db.execute(
        "SELECT DISTINCT m.model, n.neighbor_model FROM neighbors AS n JOIN parameters AS m USING (param_id) "
        "ORDER BY ALL"
    ).fetchall()
    assert found == [(a, b) for a in GPT2 for b in GPT2 if a != b]
    for a, b in found:
        for kind in truths[a].rows:
            similarity = oracle.pearson(
                of_kind(truths[a], kind) @ truths[a].E.T, of_kind(truths[b], kind) @ truths[b].E.T
            )
            (first,) = db.execute(
                "SELECT min(param_id) FROM parameters WHERE model = ? AND kind = ?", [b, kind]
            ).fetchall()[0]
            mine = db.execute(
                "SELECT param_id FROM parameters WHERE model = ? AND kind = ? ORDER BY 1", [a, kind]
            ).fetchall()
            chosen = draw.sample(range(len(mine)), min(25, len(mine)))
            k = min(4, similarity.shape[1])
            every: dict[int, list[tuple]] = {}
            for number, *entry in db.execute(
                "SELECT n.param_id, n.rank, n.neighbor_id, n.similarity, n.neighbor, q.address FROM neighbors AS n "
                "JOIN parameters AS q ON q.param_id = n.neighbor_id "
                "WHERE list_contains(?, n.param_id) AND n.neighbor_model = ? ORDER BY ALL",
                [[mine[i][0] for i in chosen], b],
            ).fetchall():
                every.setdefault(number, []).append(tuple(entry))
            for i in chosen:
                stored = every[mine[i][0]]
                assert [row[0] for row in stored] == list(range(1, k + 1))
                assert all(neighbor == address for *_, neighbor, address in stored)
                ids = [row[1] - first for row in stored]
                assert len(set(ids)) == k
                values = np.array([row[2] for row in stored])
                np.testing.assert_allclose(values, similarity[i, ids], atol=1e-5)
                np.testing.assert_allclose(values, np.sort(similarity[i])[::-1][:k], atol=1e-5)


@pytest.mark.parametrize(("a", "b"), list(combinations(GPT2, 2)))
def test_layer_alignments(db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], a: str, b: str) -> None:
    """Mean |Pearson| of every pair of layers and the best assignment; in feature space only where widths agree."""
    pair = "model_a = ? AND model_b = ? AND stack_a IS NULL AND stack_b IS NULL"
    kinds = db.execute(f"SELECT DISTINCT kind FROM layer_alignments WHERE {pair}", [a, b]).fetchall()
    assert {kind for (kind,) in kinds} == set(truths[a].rows) & set(oracle.WEIGHTS)  # biases are too few to tell layers
    for (kind,) in kinds:
        rows = db.execute(
            "SELECT layer_a, layer_b, score, matched, feature_score, feature_matched FROM layer_alignments "
            f"WHERE {pair} AND kind = ? ORDER BY layer_a, layer_b",
            [a, b, kind],
        ).fetchall()
        layers = [(len(t.rows[kind]), t.rows[kind], t.E) for t in (truths[a], truths[b])]
        (n_a, rows_a, E_a), (n_b, rows_b, E_b) = layers
        assert [row[:2] for row in rows] == [(i, j) for i in range(n_a) for j in range(n_b)]
        scores = np.array([[np.abs(oracle.pearson(x @ E_a.T, y @ E_b.T)).mean() for y in rows_b] for x in rows_a])
        assert_aligned(scores, [row[2] for row in rows], [row[3] for row in rows])
        if E_a.shape[1] != E_b.shape[1]:
            assert [row[4:] for row in rows] == [(None, None)] * (n_a * n_b)
            continue
        features = np.array([[np.abs(oracle.pearson(x, y)).mean() for y in rows_b] for x in rows_a])
        assert_aligned(features, [row[4] for row in rows], [row[5] for row in rows])


def assert_aligned(scores: np.ndarray, stored: list[float], matched: list[bool]) -> None:
    """Scores within 1e-6; as many layers matched as there can be, each once, with the largest sum there is."""
    np.testing.assert_allclose(np.reshape(stored, scores.shape), scores, atol=1e-6)
    mask = np.reshape(matched, scores.shape)
    assert mask.sum() == min(scores.shape)
    assert mask.sum(0).max() == mask.sum(1).max() == 1
    assert scores[mask].sum() == pytest.approx(scores[linear_sum_assignment(scores, maximize=True)].sum(), abs=1e-6)


def test_alignments_and_neighbors_are_of_one_vocabulary_only(db: duckdb.DuckDBPyConnection) -> None:
    found = db.execute("SELECT DISTINCT model_a, model_b FROM layer_alignments ORDER BY ALL").fetchall()
    assert found == list(combinations(GPT2, 2))


def test_every_file_is_recorded_with_its_hash(small_atlas: Path) -> None:
    contents = read_contents(small_atlas)
    folders = {contents.folder(name): manifest.files for name, manifest in contents.manifests.items()}
    for a, b in contents.related:
        about = contents.about(contents.names[a], contents.names[b])
        folders[Path("relations") / about.folder] = about.files
    assert len(folders) == len(MODELS) + 3
    for folder, recorded in folders.items():
        files = [path for path in (small_atlas / folder).iterdir() if path.name != "manifest.json"]
        assert dict(recorded) == {
            path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files
        }
    assert sorted(path.name for path in small_atlas.iterdir()) == ["atlas.json", "attach.sql", "models", "relations"]
    assert {*small_atlas.glob("*/*")} == {small_atlas / folder for folder in folders}


def test_manifests_say_what_tables_have(db: duckdb.DuckDBPyConnection, small_atlas: Path) -> None:
    """How many rows, and the row of models."""
    contents = read_contents(small_atlas)
    rows = db.sql("SELECT * EXCLUDE (of_model) FROM store.models").to_arrow_table().to_pylist()
    assert [row["model"] for row in rows] == list(contents.manifests)
    for row, (name, manifest) in zip(rows, contents.manifests.items(), strict=True):
        assert {column: value for column, value in row.items() if value is not None} == {
            column: value for column, value in manifest.row.items() if value is not None
        }
        for table, n_rows in manifest.tables.items():
            found = db.execute(f"SELECT count(*) FROM store.{table} WHERE of_model = ?", [name]).fetchall()
            assert found == [(n_rows,)]
