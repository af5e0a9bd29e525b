"""A build killed at any moment, run again, ends with the same content; adding a model touches nothing of the others.

Builds run in forks of a helper process (tests/helpers/killed_builds.py) that die by SIGKILL at named points; one test
kills a build from outside instead, when it sees a file appear.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch
from filelock import FileLock

import models
import paramdex
from killed_builds import OPTIONS, POINTS
from opened import names, opened, tables_file
from paramdex_builder import Options, Progress, build
from paramdex_builder.files.units import Units
from paramdex_schemas import BuildError, atlas_files
from paramdex_schemas.contents import Manifest, Relation, read_contents
from paramdex_schemas.everything import script

build_module = import_module("paramdex_builder.build")  # the package's own name for it is the function
HELPERS = Path(__file__).parents[2] / "helpers"

Runner = Callable[..., dict[str, Any]]
N_PARAMETERS = 2 * (96 + 96 + 4 * 24 + 2 + 2 * 3) + 32
"""Of a model of 60 words: two layers of weights, each with two biases and three for each of two heads; 32 positions."""


@pytest.fixture(scope="module")
def run() -> Iterator[Runner]:
    """A function that runs a build in a fork of the helper process, which dies at ``kill`` where that is given."""
    helper = HELPERS / "killed_builds.py"
    with subprocess.Popen(
        [sys.executable, helper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def one(sources: list[Path], output: Path, kill: tuple[str, int] | None = None) -> dict[str, Any]:
            job = {"sources": [str(source) for source in sources], "output": str(output), "kill": kill}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield one
        process.stdin.close()
        process.wait(30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of 60 words, of one vocabulary and width."""
    root = tmp_path_factory.mktemp("word-models")
    return [models.save_word_model(root / name, seed) for name, seed in (("first", 1), ("second", 2))]


@pytest.fixture(scope="module")
def whole(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of an atlas of both models that nobody interrupted."""
    atlas = build([str(folder) for folder in folders], tmp_path_factory.mktemp("whole") / "x.atlas", OPTIONS)
    return content(atlas)


def content(atlas: Path) -> dict[str, dict[str, Any]]:
    """All that an atlas holds of each model, and of each two models that are related (A~B): every row of every table,
    every file's hash, and what the manifest says. Without what differs in every build: uids and built_at, and with it
    the bytes of DuckDB's files. Files are compared with their records on the way.
    """
    contents = read_contents(atlas)
    assert (atlas / atlas_files.ATTACH).read_text("utf-8") == script(contents)
    found = {name: _folder(atlas, contents.folder(name), each) for name, each in contents.manifests.items()}
    for name, manifest in contents.manifests.items():
        row = {column: value for column, value in manifest.row.items() if column != "built_at"}
        found[name] |= {"row": row, "layout": manifest.layout.runs}
    for a, b in contents.related:
        one, other = contents.names[a], contents.names[b]
        about, folder = contents.about(one, other), contents.relation(one, other)
        found[f"{one}~{other}"] = _folder(atlas, folder, about) | {"tokens": (about.n_tokens, about.shared)}
    return found


def _folder(atlas: Path, folder: Path, about: Manifest | Relation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with duckdb.connect(str(atlas / folder / atlas_files.TABLES), read_only=True) as connection:
        for table, n_rows in about.tables.items():
            columns = "* EXCLUDE (built_at)" if table == "models" else "*"
            found[table] = connection.execute(f"SELECT {columns} FROM store.{table} ORDER BY ALL").fetchall()
            assert len(found[table]) == n_rows
    files = {path.name for path in (atlas / folder).iterdir()}
    assert files == {*about.files, atlas_files.MANIFEST}
    for name, (size, digest) in about.files.items():
        atlas_files.check(atlas, (folder / name).as_posix(), size, digest)
        if name != atlas_files.TABLES:
            found[name] = digest
    return found


def assert_swept(atlas: Path) -> None:
    """Nothing is in an atlas or beside it but what its index names."""
    contents = read_contents(atlas)
    assert sorted(path.name for path in atlas.parent.iterdir()) == [atlas.name]
    assert {path.name for path in atlas.iterdir()} <= {"atlas.json", "attach.sql", "models", "relations"}
    assert {path.name for path in (atlas / "models").iterdir()} == set(contents.index.models.values())
    relations = atlas / "relations"
    there = {path.name for path in relations.iterdir()} if relations.exists() else set()
    assert there == {f"{a}~{b}" for a, b in contents.related}


def resume(folders: list[Path], atlas: Path) -> None:
    """The same command again, here."""
    build([str(folder) for folder in folders], atlas, OPTIONS)


def staging(atlas: Path) -> Path:
    return atlas.with_name(atlas.name + ".building")


def test_content_sees_what_it_should(whole: dict[str, Any]) -> None:
    """The comparison below compares something: all tables have rows, and both models all their files."""
    assert list(whole) == ["first", "second", "first~second"]
    for each in whole.values():
        assert {name for name, rows in each.items() if not rows} == set()
    for name in ("first", "second"):
        assert sum(file.endswith(".faiss") for file in whole[name]) == 12
        assert {"space.safetensors", "parameters", "postings", "pairs", "layout"} <= set(whole[name])
    assert {"neighbors", "layer_alignments", "transfer.safetensors"} <= set(whole["first~second"])


@pytest.mark.parametrize("n_threads", [2, 5])
def test_content_does_not_depend_on_threads(
    folders: list[Path], whole: dict[str, Any], tmp_path: Path, n_threads: int
) -> None:
    """As many units and heads at a time as there are threads, and the same atlas to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        assert content(build([str(folder) for folder in folders], tmp_path / "x.atlas", OPTIONS)) == whole
    finally:
        torch.set_num_threads(before)


# A model of two layers writes 53 files: its plan, 23 parameter units (one of them positions) of two files each and 2
# head units of three.
KILLS = [
    ("before unit", 1), ("before unit", 3), ("after unit", 2), ("half a unit", 5), ("after unit", 52),
    ("before unit", 77),
    ("before publishing", 1), ("model row inserted", 1), ("model written", 1), ("before flushing", 1),
    ("atlas made", 1), ("after the renames", 1),
    ("vectors written", 2), ("parameters inserted", 2), ("model written", 2), ("neighbors inserted", 1),
    ("neighbors inserted", 5), ("relation written", 1), ("before flushing", 2), ("before the first rename", 2),
    ("relations in place", 1), ("a model's folder in place", 1), ("models in place", 1), ("attach.sql in place", 1),
    ("index in place", 1), ("after the renames", 2),
]  # fmt: skip


@pytest.mark.parametrize("kill", KILLS, ids=[f"{point}, {n}" for point, n in KILLS])
def test_killed_build_resumes(
    run: Runner, folders: list[Path], whole: dict[str, Any], tmp_path: Path, kill: tuple[str, int]
) -> None:
    atlas = tmp_path / "x.atlas"
    assert run(folders, atlas, kill)["status"] == -signal.SIGKILL
    if atlas.exists():  # what a reader finds in between is an atlas, of the models that are done
        done = names(atlas)
        assert done == ["first", "second"][: 2 if kill in DONE else 1]
        assert_readable(atlas)
    resume(folders, atlas)
    assert content(atlas) == whole
    assert_swept(atlas)


DONE = [("index in place", 1), ("after the renames", 2)]
"""Where both models are in the atlas."""


def assert_readable(atlas: Path) -> None:
    """paramdex opens the models that the index names, and DuckDB alone those or all that are in their place."""
    with paramdex.open(atlas) as reader:
        assert list(reader.models) == names(atlas)
        assert reader.sql("SELECT count(*) AS n FROM parameters").to_rows() == [{"n": N_PARAMETERS * len(names(atlas))}]
    with opened(atlas) as connection:
        found = connection.execute("SELECT model, count(*) FROM parameters GROUP BY ALL ORDER BY ALL").fetchall()
    assert found in ([("first", N_PARAMETERS)], [("first", N_PARAMETERS), ("second", N_PARAMETERS)])


def test_killed_while_it_sweeps(run: Runner, folders: list[Path], whole: dict[str, Any], tmp_path: Path) -> None:
    """What one killed build left is swept by others, of which the first is killed at it."""
    atlas = tmp_path / "x.atlas"
    assert run(folders, atlas, ("attach.sql in place", 1))["status"] == -signal.SIGKILL
    assert len([*(atlas / "models").iterdir(), *(atlas / "relations").iterdir()]) == 3
    for left in (2, 1):
        assert run(folders, atlas, SWEEPING)["status"] == -signal.SIGKILL
        assert len([*(atlas / "models").iterdir(), *(atlas / "relations").iterdir()]) == left
        assert names(atlas) == ["first"]
    resume(folders, atlas)
    assert content(atlas) == whole
    assert_swept(atlas)


SWEEPING = ("a leftover swept", 1)


def test_every_point_is_tested() -> None:
    assert {point for point, _ in [*KILLS, SWEEPING]} == set(POINTS)


def test_killed_again_and_again(run: Runner, folders: list[Path], whole: dict[str, Any], tmp_path: Path) -> None:
    """Each run dies at its twelfth file, having added eleven of 102 (a half unit is made whole again)."""
    atlas = tmp_path / "x.atlas"
    statuses = []
    while 0 not in statuses and len(statuses) < 20:
        statuses.append(run(folders, atlas, ("before unit", 12))["status"])
    assert set(statuses[:-1]) == {-signal.SIGKILL}
    assert statuses[-1] == 0
    assert 8 <= len(statuses) <= 14
    assert content(atlas) == whole


def test_what_comes_of_running_a_model_is_not_made_again(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that ends while it projects goes on with the spaces and maps that it has."""
    options = replace(OPTIONS, reading="expected")
    build([str(folders[0])], tmp_path / "whole.atlas", options)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "parameter_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build([str(folders[0])], tmp_path / "x.atlas", options)
    kept = staging(tmp_path / "x.atlas") / "first" / "reading.safetensors"
    assert kept.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_reading", interrupted)
        build([str(folders[0])], tmp_path / "x.atlas", options)
    assert content(tmp_path / "x.atlas") == content(tmp_path / "whole.atlas")


def test_a_damaged_reading_is_made_again(tmp_path: Path) -> None:
    units, written = Units(tmp_path / "units", {}), []

    def write(path: Path) -> None:
        written.append(path)
        path.write_bytes(b"what was made")

    file = units.file("reading.safetensors", write)
    assert units.file("reading.safetensors", write) == file
    assert len(written) == 1
    file.write_bytes(b"what was bent")
    assert units.file("reading.safetensors", write).read_bytes() == b"what was made"
    assert len(written) == 2


@pytest.mark.waits
def test_killed_from_outside(folders: list[Path], whole: dict[str, Any], run: Runner, tmp_path: Path) -> None:
    """SIGKILL from another process, when the first unit of the second kind appears."""
    atlas = tmp_path / "x.atlas"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from killed_builds import OPTIONS; from paramdex_builder import "
        "build; from paramdex_builder.files import units; import time; w = units.write_whole\n"
        "units.write_whole = lambda *a: (w(*a), time.sleep(0.05))\n"
        "build(sys.argv[3:], sys.argv[2], OPTIONS)"
    )
    arguments = [sys.executable, "-c", code, str(HELPERS), str(atlas), *map(str, folders)]
    with subprocess.Popen(arguments) as process:
        wanted = staging(atlas) / "first" / "ff_value-00000.parquet"
        deadline = time.monotonic() + 120
        while not wanted.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not atlas.exists()
    resume(folders, atlas)
    assert content(atlas) == whole


def test_finished_units_are_not_made_again(
    run: Runner, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build killed before publishing has only publishing left to do."""
    atlas = tmp_path / "x.atlas"
    assert run(folders[:1], atlas, ("before publishing", 1))["status"] == -signal.SIGKILL
    made = []
    monkeypatch.setattr(Units, "write", lambda *args: made.append(args[1:3]))
    build([str(folders[0])], atlas, OPTIONS)
    assert made == []


@pytest.fixture(scope="module")
def unpublished(run: Runner, folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The staging folder of a build killed with all units of its first model done."""
    atlas = tmp_path_factory.mktemp("unpublished") / "x.atlas"
    assert run(folders, atlas, ("before publishing", 1))["status"] == -signal.SIGKILL
    return staging(atlas)


@pytest.mark.parametrize(
    "file",
    [
        "ff_key-00001.parquet",
        "ff_value-00000.npy",
        "position-00000.npy",
        "pairs-00001.parquet",
        "heads-00000.parquet",
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_damaged_unit_is_made_again(
    unpublished: Path, folders: list[Path], whole: dict[str, Any], tmp_path: Path, file: str, damage: str
) -> None:
    atlas = tmp_path / "x.atlas"
    shutil.copytree(unpublished, staging(atlas))
    unit = staging(atlas) / "first" / file
    data = unit.read_bytes()
    unit.unlink()
    if damage != "missing":
        unit.write_bytes(data[: len(data) * 2 // 3] if damage == "truncated" else b"")
    resume(folders[:1], atlas)
    assert_first(atlas, whole)


def test_flipped_byte_in_a_table_of_a_unit(
    unpublished: Path, folders: list[Path], whole: dict[str, Any], tmp_path: Path
) -> None:
    atlas = tmp_path / "x.atlas"
    shutil.copytree(unpublished, staging(atlas))
    unit = staging(atlas) / "first" / "ff_key-00000.parquet"
    data = bytearray(unit.read_bytes())
    data[len(data) // 2] ^= 1
    unit.write_bytes(data)
    resume(folders[:1], atlas)
    assert_first(atlas, whole)


def assert_first(atlas: Path, whole: dict[str, Any]) -> None:
    """An atlas of the first model alone holds what the whole one has of it."""
    assert content(atlas) == {"first": whole["first"]}
    assert (len(whole["first"]["parameters"]), len(whole["first"]["heads"])) == (N_PARAMETERS, 4)


def test_units_of_other_weights_are_not_used(
    run: Runner, folders: list[Path], whole: dict[str, Any], tmp_path: Path
) -> None:
    """A model changed under its name between the two runs: nothing of the first is kept."""
    atlas, folder = tmp_path / "x.atlas", tmp_path / "first"
    shutil.copytree(folders[1], folder)
    assert run([folder, folders[1]], atlas, ("before publishing", 1))["status"] == -signal.SIGKILL
    shutil.rmtree(folder)
    shutil.copytree(folders[0], folder)
    resume([folder, folders[1]], atlas)
    found = content(atlas)
    for name in ("parameters", "pairs", "space.safetensors", "ff_key.faiss"):
        assert found["first"][name] == whole["first"][name]
    assert found["first~second"] == whole["first~second"]


@pytest.fixture
def of_first(folders: list[Path], tmp_path: Path) -> Path:
    """An atlas of the first model alone."""
    return build([str(folders[0])], tmp_path / "x.atlas", OPTIONS)


def test_one_by_one_is_all_at_once(of_first: Path, folders: list[Path], whole: dict[str, Any]) -> None:
    build([str(folders[1])], of_first, OPTIONS)
    assert content(of_first) == whole


def test_adding_a_model_leaves_the_others_as_they_are(of_first: Path, folders: list[Path]) -> None:
    """To the byte and the minute: no file of a model or of its relations is written again, nor moved."""

    def files() -> dict[Path, tuple[int, int, bytes]]:
        paths = [path for path in of_first.rglob("*/*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in paths}

    written = files()
    assert len(written) == 12 + 3
    for name in ("second", "third"):
        build([f"{name}={folders[1]}"], of_first, OPTIONS)
        found = files()
        assert {path: found[path] for path in written} == written
        written = found
    assert len(content(of_first)) == 3 + 3


def test_building_again_changes_nothing(of_first: Path, folders: list[Path], tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in of_first.rglob("*")}
    said: list[str] = []
    progress = Progress()
    progress.say = said.append
    build([str(folders[0])], of_first, OPTIONS, progress)
    assert said == [f"first: already in {of_first}"]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in of_first.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.atlas"]


@pytest.mark.parametrize(
    ("source", "options"),
    [
        pytest.param(1, OPTIONS, id="other weights"),
        pytest.param(0, Options(top_k=7, pair_k=8, neighbor_k=3, device="cpu"), id="other options"),
    ],
)
def test_same_name_for_something_else_is_refused(
    of_first: Path, folders: list[Path], tmp_path: Path, source: int, options: Options
) -> None:
    before = content(of_first)
    with pytest.raises(BuildError, match=r"already has a model first, .* give this one another name: NEWNAME="):
        build([f"first={folders[source]}"], of_first, options)
    assert content(of_first) == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.atlas"]


def test_other_name_for_the_same_weights(of_first: Path, folders: list[Path]) -> None:
    """The copy's vectors are the original's, and each finds itself there with correlation 1."""
    build([f"copy={folders[0]}"], of_first, OPTIONS)
    with opened(of_first) as connection:
        rows = connection.execute(
            "SELECT address, neighbor, similarity FROM neighbors WHERE rank = 1 AND neighbor_model = 'copy'"
        ).fetchall()
    assert len(rows) == N_PARAMETERS
    assert all(neighbor == address.replace("first/", "copy/") for address, neighbor, _ in rows)
    assert min(similarity for *_, similarity in rows) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["publish", "lock", "models", "relations", "plan.json", "atlas.json", "duckdb-temp"])
def test_any_name_will_do(folders: list[Path], whole: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Names that the builder itself might use for files and folders."""
    atlas = build([f"{name}={folders[0]}", str(folders[1])], tmp_path / "x.atlas", OPTIONS)
    found = content(atlas)
    assert list(found) == [name, "second", f"{name}~second"]
    assert found[name]["postings"] == whole["first"]["postings"]
    assert found[f"{name}~second"] == whole["first~second"]
    assert_swept(atlas)


@pytest.mark.waits
def test_two_builds_at_once(run: Runner, folders: list[Path], tmp_path: Path) -> None:
    """The second is told so and leaves the first alone."""
    atlas = tmp_path / "x.atlas"
    staging(atlas).mkdir()
    with FileLock(staging(atlas) / ".lock"):
        answer = run(folders, atlas)
        assert answer["status"] == 1
        assert (
            answer["said"]
            == f"BuildError: another build is writing to {atlas}; wait for it to end, then run this again"
        )
        assert staging(atlas).is_dir()
    assert not atlas.exists()


def test_reader_keeps_what_it_opened(of_first: Path, folders: list[Path], tmp_path: Path) -> None:
    """In this very process too, with settings of its own: the build goes by the files, not by what the reader sees.
    The third model is of another vocabulary, for which the tables of the others are read.
    """
    third = models.save(tmp_path / "third", models.gpt2(40), models.word_tokenizer(40), 3)
    parts = ("parameters", "parameter_tokens", "models")
    count = "SELECT " + ", ".join(f"(SELECT count(*) FROM {part})" for part in parts)
    count = count.replace("count(*) FROM parameter_tokens", "count(rank) FROM parameter_tokens")
    first = [(N_PARAMETERS, N_PARAMETERS * 12, 1)]
    file, config = str(tables_file(of_first, "first")), {"enable_external_access": "false"}
    with (
        duckdb.connect(file, read_only=True, config=config) as reader,
        opened(of_first) as every,
        paramdex.open(of_first) as atlas,
    ):
        for source in (folders[1], third, folders[1]):  # the last is there already
            build([str(source)], of_first, OPTIONS)
            assert reader.execute(count).fetchall() == first
            assert every.execute(count).fetchall() == first
            assert [*atlas.sql(count).to_rows()[0].values()] == list(first[0])
        assert every.execute("SELECT DISTINCT model FROM parameters").fetchall() == [("first",)]
    with opened(of_first) as reader:
        ((n, *_, n_models),) = reader.execute(count + " FROM models WHERE model = 'first'").fetchall()
        assert n > 2 * N_PARAMETERS
        assert n_models == 3


def test_another_models_unfinished_work_is_kept(word_model: Path, tmp_path: Path) -> None:
    """A build that succeeds leaves the units of another one that was interrupted."""
    kept = tmp_path / "x.atlas.building" / "other"
    kept.mkdir(parents=True)
    (kept / "ff_key-00000.parquet").write_bytes(b"units")
    build([f"mine={word_model}"], tmp_path / "x.atlas", Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu"))
    assert (kept / "ff_key-00000.parquet").read_bytes() == b"units"
    assert [path.name for path in (tmp_path / "x.atlas.building").iterdir() if path.name != ".lock"] == ["other"]


def test_a_flipped_byte_in_staged_coordinates_is_noticed(tmp_path: Path) -> None:
    units = Units(tmp_path / "units", {})
    units.write_coordinates("ff_key", 0, np.eye(8, dtype=np.float32))
    units.write("ff_key", 0, pa.table({"row": [1, 2]}), ["ff_key"])
    assert units.has("ff_key", 0)
    file = tmp_path / "units" / "ff_key-00000.npy"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert not units.has("ff_key", 0)


def test_attach_sql_never_names_what_is_not_there(
    run: Runner, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build killed between its last two renames, and another after it that ends once it has swept."""
    atlas = tmp_path / "x.atlas"
    assert run(folders, atlas, ("attach.sql in place", 1))["status"] == -signal.SIGKILL
    publish = import_module("paramdex_builder.publish.publish")
    monkeypatch.setattr(publish, "write_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build([f"other={folders[1]}"], atlas, OPTIONS)
    assert sorted(path.name for path in (atlas / "models").iterdir()) == ["first"]
    with opened(atlas) as connection:
        assert connection.execute("SELECT model FROM models").fetchall() == [("first",)]


def test_what_others_put_into_the_groups_stays(of_first: Path, folders: list[Path], tmp_path: Path) -> None:
    """Files, as systems write them, and links are no leftovers."""
    (of_first / "models" / ".DS_Store").write_text("x")
    (of_first / "models" / "link").symlink_to(tmp_path)
    build([str(folders[1])], of_first, OPTIONS)
    assert names(of_first) == ["first", "second"]
    assert (of_first / "models" / ".DS_Store").read_text() == "x"
    assert (of_first / "models" / "link").is_symlink()
