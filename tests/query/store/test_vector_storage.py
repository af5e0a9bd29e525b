"""How vectors are kept and searched: exact whatever the storage, and damage of what is read is found."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from test_damage import flip

import paramdex
from opened import contents_of
from paramdex.store.nearest import Loaded, Rows, nearest
from paramdex.store.vectors import Vectors
from paramdex_builder import build
from paramdex_builder.files.vectors import open_rows, rotation, write_codes, write_flat_index
from paramdex_schemas import AtlasError, BuildError, Layout, atlas_files, isometry, vector_files
from paramdex_schemas.model import Model

HELPERS = Path(__file__).parents[2] / "helpers"

SIDES = {"top": (1,), "bottom": (-1,), "both": (1, -1)}


def some_rows(n: int, width: int, seed: int = 0, *, spread: float = 0.0) -> np.ndarray:
    """Normalized rows; with ``spread`` the sizes of their coordinates differ by that power of their number."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(n, width)) * np.arange(1, width + 1) ** -spread
    return isometry.normalize(rows).astype(np.float32)


def write_kind(atlas: Path, rows: np.ndarray, *, codes: bool) -> Vectors:
    """An atlas of nothing but one kind of one model."""
    folder = atlas_files.model_folder(atlas, "m")
    folder.mkdir(parents=True, exist_ok=True)
    write_flat_index(folder / "k.faiss", rows.shape[1], [rows])
    if codes:
        write_codes(folder, "k", open_rows(folder / "k.faiss"), rotation(rows.shape[1]))
    return Vectors(contents_of(atlas, [Model(0, "m", "v", 10, 0, 0, Layout(()))]))


def truth(
    rows: np.ndarray, query: np.ndarray, k: int, spans: list[tuple[int, int]], side: str
) -> list[tuple[float, int]]:
    """By brute force in float64, rounded once."""
    scores = np.array([np.float32((row.astype(np.float64) * query).sum()) for row in rows])
    ids = sorted({i for span in spans for i in range(*span)})
    strength = {"top": scores, "bottom": -scores, "both": np.abs(scores)}[side]
    return [(float(scores[i]), i) for i in sorted(ids, key=lambda i: (-strength[i], i))[:k]]


@st.composite
def kinds(draw: st.DrawFn) -> np.ndarray:
    """Rows of which many are alike, opposite, zero, or alike but for the last bits."""
    n, width = draw(st.integers(1, 60)), draw(st.integers(1, 20))
    base = some_rows(n, width, draw(st.integers(0, 1000)), spread=draw(st.sampled_from([0.0, 1.0, 3.0])))
    picks = draw(st.lists(st.tuples(st.integers(0, n - 1), st.sampled_from([1, 1, 1, -1, 0])), min_size=n, max_size=n))
    rows = np.array([base[i] * np.float32(sign) for i, sign in picks])
    if draw(st.booleans()):
        rows[::2] *= np.float32(1 + 2**-23)
    return rows


@pytest.mark.parametrize("codes", [False, True])
@given(rows=kinds(), data=st.data())
def test_every_search_is_exact(
    tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray, data: st.DataObject, codes: bool
) -> None:
    """Of any rows, in spans that may touch, be empty or lie apart, on any side, for k up to more than there are."""
    vectors = write_kind(tmp_path_factory.mktemp("atlas") / "x.atlas", rows, codes=codes)
    n, width = rows.shape
    cuts = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=4)))
    spans = data.draw(st.sampled_from([[(0, n)], list(zip(cuts[::2], cuts[1::2], strict=False))]))
    length = data.draw(st.sampled_from([0.0, 1e-3, 0.5, 1.0]))
    query = data.draw(
        st.sampled_from([some_rows(1, width, 5)[0].astype(np.float64) * length, rows[0].astype(np.float64)])
    )
    k, side = data.draw(st.integers(1, n + 3)), data.draw(st.sampled_from(list(SIDES)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paramdex.store.nearest, "_AT_LEAST", data.draw(st.integers(0, 20)))  # or all would be candidates
        found = nearest(vectors.index("m", "k"), query, k, spans, SIDES[side])
    assert found == truth(rows, query, k, spans, side)


@pytest.mark.parametrize("side", list(SIDES))
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("at_least", [40, paramdex.store.nearest._AT_LEAST])
def test_codes_of_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: float, side: str, at_least: int
) -> None:
    """For queries that are rows, and for others; k on both sides of what one pass of the codes asks for."""
    monkeypatch.setattr(paramdex.store.nearest, "_AT_LEAST", at_least)
    rows = some_rows(6000, 64, spread=spread)
    rows[1000:1400] = rows[0]  # more ties than candidates are asked for at first
    index = write_kind(tmp_path, rows, codes=True).index("m", "k")
    for query in (rows[0], rows[17], some_rows(1, 64, 9, spread=spread)[0]):
        for k in (1, 11, 300, 5999):
            for spans in ([(0, 6000)], [(500, 1300)], [(0, 100), (3000, 3500)]):
                q = query.astype(np.float64)
                assert nearest(index, q, k, spans, SIDES[side]) == truth(rows, q, k, spans, side)


_FORKED = """
import os, sys
from pathlib import Path

from paramdex.store.nearest import nearest
from test_vector_storage import some_rows, write_kind

rows = some_rows(3000, 64)
index = write_kind(Path(sys.argv[1]), rows, codes=True).index("m", "k")
ask = lambda: nearest(index, rows[3].astype(float), 5, [(0, 3000)])
first = ask()
child = os.fork()
if not child:
    os._exit(ask() != first)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.waits
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_child_process_searches_too(tmp_path: Path) -> None:
    """It has none of the threads in which its parent searched."""
    here = os.environ | {"PYTHONPATH": f"{HELPERS}{os.pathsep}{Path(__file__).parent}"}
    subprocess.run([sys.executable, "-c", _FORKED, str(tmp_path)], check=True, timeout=120, env=here)


@pytest.mark.waits
def test_searches_of_many_threads(tmp_path: Path) -> None:
    rows = some_rows(3000, 64)
    index = write_kind(tmp_path, rows, codes=True).index("m", "k")
    ask = lambda i: nearest(index, rows[i].astype(np.float64), 5, [(0, 3000)])  # noqa: E731
    alone = [ask(i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(40))) == alone


def test_few_rows_are_candidates(tmp_path: Path) -> None:
    """What makes codes worth having: of 6,000 rows a few dozen are read."""
    rows = some_rows(6000, 256, spread=0.25)
    index = write_kind(tmp_path, rows, codes=True).index("m", "k")
    for i in range(20):
        assert len(index.candidates(rows[i].astype(np.float64), 11, (0, 6000))) < 150
    assert len(Loaded(rows).candidates(rows[3].astype(np.float64), 11, (0, 6000))) < 15


@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize("n", [0, 1, 50])
def test_code_files(tmp_path: Path, n: int, width: int) -> None:
    """The codes are the file FAISS writes of them; they mean the rows to the error; each row has its checksum."""
    rows = some_rows(n, width, spread=1.0)
    if n > 3:
        rows[3] = 0
    write_kind(tmp_path, rows, codes=True)
    folder = atlas_files.model_folder(tmp_path, "m")
    index = faiss.read_index(str(folder / "k.codes.faiss"))
    codes = (index.reconstruct_n(0, n) if n else np.empty((0, width))).astype(np.float64)
    whole = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
    whole.add(codes.astype(np.float32))
    assert (folder / "k.codes.faiss").read_bytes() == faiss.serialize_index(whole).tobytes()
    scale = load_file(folder / "k.codes.safetensors")
    steps, P = (scale[name].astype(np.float64) for name in ("steps", "rotation"))
    np.testing.assert_allclose(P @ P.T, np.eye(width), atol=1e-5)
    assert (np.abs(rows @ P.T - codes * steps) <= steps * (0.5 + 1e-4)).all()
    furthest = np.linalg.norm(rows - (codes * steps) @ P, axis=1).max(initial=0)
    assert furthest <= scale["error"][0] <= furthest + 1e-5
    assert scale["longest"][0] == pytest.approx(np.linalg.norm(codes, axis=1).max(initial=0), rel=1e-9)
    assert scale["crc32"].tolist() == [zlib.crc32(row.tobytes()) for row in rows]


def test_codes_are_written_in_little_memory(tmp_path: Path) -> None:
    rows = some_rows(1000, 64)

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(100):
            yield rows

    write_flat_index(tmp_path / "k.faiss", 64, blocks())
    tracemalloc.start()
    write_codes(tmp_path, "k", open_rows(tmp_path / "k.faiss"), rotation(64))
    assert tracemalloc.get_traced_memory()[1] < 60 << 20  # a few blocks of 2^20 numbers in float64, and the checksums
    tracemalloc.stop()


def test_another_format_of_faiss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "deserialize_index", lambda _: faiss.IndexFlatIP(3))
    with pytest.raises(BuildError, match="does not read the indexes that paramdex writes"):
        write_codes(tmp_path, "k", some_rows(5, 3), rotation(3))
    assert not (tmp_path / "k.codes.faiss").exists()


@pytest.mark.parametrize("name", ["k.codes.faiss", "k.codes.safetensors"])
def test_damaged_codes_are_found_when_opened(tmp_path: Path, name: str) -> None:
    vectors = write_kind(tmp_path, some_rows(50, 8), codes=True)
    path = atlas_files.model_folder(tmp_path, "m") / name
    for offset in (0, path.stat().st_size // 2, path.stat().st_size - 1):
        flip(path, offset, 3)
        with pytest.raises(AtlasError, match=f"models/m/{name} is not what was written"):
            vectors.index("m", "k")
        flip(path, offset, 3)
    assert vectors.index("m", "k").ntotal == 50


def test_damaged_rows_are_found_when_read(tmp_path: Path) -> None:
    """One that is no candidate changes no answer; ``check`` finds it all the same (test_damage)."""
    rows = some_rows(5000, 8)
    query = rows[17].astype(np.float64)
    path = atlas_files.model_folder(tmp_path, "m") / "k.faiss"
    vectors = write_kind(tmp_path, rows, codes=True)
    far = int(np.argmin(rows @ rows[17]))
    flip(path, vector_files.OFFSET + 4 * 8 * far + 5, 1)
    index = vectors.index("m", "k")
    assert nearest(index, query, 3, [(0, 5000)]) == truth(rows, query, 3, [(0, 5000)], "top")
    message = f"{tmp_path} is damaged: models/m/k.faiss is not what was written; copy the atlas again or rebuild it"
    for read in (
        lambda: nearest(index, query, 3, [(0, 5000)], (-1,)),
        lambda: index.reconstruct_n(far, 1),
        lambda: vectors.rows("m", "k"),
    ):
        with pytest.raises(AtlasError) as caught:
            read()
        assert str(caught.value) == message


@pytest.mark.parametrize("damage", ["missing", "shorter", "header"])
def test_rows_that_are_not_whole(tmp_path: Path, damage: str) -> None:
    vectors = write_kind(tmp_path, some_rows(50, 8), codes=True)
    path = atlas_files.model_folder(tmp_path, "m") / "k.faiss"
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "shorter" else b"x" + data[1:])
    with pytest.raises(AtlasError, match="is damaged: "):
        vectors.index("m", "k")


def test_a_build_with_codes_answers_as_one_without(
    tmp_path: Path, model_folders: dict[str, Path], small_atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of at least 8 KiB coded: the same answers, and every bit of the new files is checked."""
    monkeypatch.setattr(vector_files, "CODED_BYTES", 8192)
    with paramdex.open(small_atlas) as plain:
        row = plain.sql("SELECT top_k, pair_k, neighbor_k FROM models WHERE model = 'gpt2-a'").to_rows()[0]
        from paramdex_builder import Options

        names = ["gpt2-a", "bert"]
        build([str(model_folders[name]) for name in names], tmp_path / "x.atlas", Options(**row, device="cpu"))
        with paramdex.open(tmp_path / "x.atlas") as coded:
            listed = coded.database.contents.manifests["gpt2-a"].files
            assert "ff_key.codes.faiss" in listed
            assert "ff_key.codes.safetensors" in listed
            assert "ff_bias.codes.faiss" not in listed
            coded.check()
            for side in SIDES:
                for address in ("gpt2-a/L1/ff_value/9", "bert/L0/H1/attn_key/3"):
                    other = names[address.startswith("gpt2-a")]
                    for options in ({}, {"layer": 1}, {"kind": "ff_key"}, {"model": other}, {"k": 1000}):
                        asked = {"side": side, **options}
                        assert coded.similar(address, **asked).to_rows() == plain.similar(address, **asked).to_rows()
                for name in names:
                    asked = {"model": name, "side": side, "k": 20}
                    assert coded.search("canada", **asked).to_rows() == plain.search("canada", **asked).to_rows()


def test_an_empty_kind_has_nothing_near() -> None:
    empty: Rows = Loaded(np.empty((0, 4), np.float32))
    assert nearest(empty, np.ones(4), 3, [(0, 0)]) == []
