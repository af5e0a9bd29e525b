"""Vector files written from a stream: byte for byte what FAISS writes, and read in place."""

from __future__ import annotations

import errno
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from paramdex_builder.files.vectors import open_rows, write_flat_index
from paramdex_schemas import AtlasError, BuildError


def some_rows(n: int, width: int) -> np.ndarray:
    return np.random.default_rng(n + 100 * width).normal(size=(n, width)).astype(np.float32)


def by_faiss(path: Path, rows: np.ndarray) -> bytes:
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    faiss.write_index(index, str(path))
    return path.read_bytes()


@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize("lengths", [[], [0], [1], [5], [0, 1, 0], [3, 1, 7], [100] * 9])
def test_the_file_is_the_one_faiss_writes(tmp_path: Path, width: int, lengths: list[int]) -> None:
    rows = some_rows(sum(lengths), width)
    path = tmp_path / "ours"
    assert write_flat_index(path, width, np.split(rows, np.cumsum(lengths)[:-1]) if lengths else []) == len(rows)
    assert path.read_bytes() == by_faiss(tmp_path / "theirs", rows)
    index = faiss.read_index(str(path))
    assert isinstance(index, faiss.IndexFlatIP)
    np.testing.assert_array_equal(index.reconstruct_n(0, len(rows)), rows)
    found = open_rows(path)
    assert (found.dtype, found.shape) == (np.float32, rows.shape)
    np.testing.assert_array_equal(found, rows)


def test_rows_of_no_width(tmp_path: Path) -> None:
    """An embedding of equal rows has a space of rank 0."""
    rows = np.empty((4, 0), np.float32)
    assert write_flat_index(tmp_path / "ours", 0, [rows]) == 4
    assert (tmp_path / "ours").read_bytes() == by_faiss(tmp_path / "theirs", rows)
    assert open_rows(tmp_path / "ours").shape == (4, 0)


def test_blocks_in_any_memory_layout(tmp_path: Path) -> None:
    rows = some_rows(12, 5)
    write_flat_index(tmp_path / "ours", 5, [np.asfortranarray(rows[:6]), some_rows(12, 10)[::2, ::2]])
    found = open_rows(tmp_path / "ours")
    np.testing.assert_array_equal(found[:6], rows[:6])
    np.testing.assert_array_equal(found[6:], some_rows(12, 10)[::2, ::2])


@pytest.mark.parametrize(
    "block", [np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros((2, 3)), np.zeros((2, 3), np.int32)]
)
def test_a_block_of_another_shape_or_type_is_refused(tmp_path: Path, block: np.ndarray) -> None:
    with pytest.raises(ValueError, match="is not n x 3 float32"):
        write_flat_index(tmp_path / "x", 3, [some_rows(2, 3), block])
    with pytest.raises(AtlasError):
        open_rows(tmp_path / "x")


def test_rows_are_streamed_and_mapped(tmp_path: Path) -> None:
    """64 blocks of 1 MiB pass through less memory than six of them, and opening them takes none."""

    def blocks() -> Iterator[np.ndarray]:
        for i in range(64):
            yield np.full((1024, 256), i, np.float32)

    tracemalloc.start()
    write_flat_index(tmp_path / "x", 256, blocks())
    assert tracemalloc.get_traced_memory()[1] < 6 << 20
    tracemalloc.reset_peak()
    rows = open_rows(tmp_path / "x")
    assert rows[65_000, 7] == 63
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable


def damage(kind: str, file: bytes) -> bytes:
    return {
        "empty": b"",
        "short header": file[:44],
        "last byte gone": file[:-1],
        "a byte more": file + b"\0",
        "another index": b"IxF2" + file[4:],
        "L2": file[:33] + b"\1" + file[34:],
        "more rows": file[:8] + b"\6" + file[9:],
        "negative width": file[:4] + b"\xff\xff\xff\xff" + file[8:],
        "not finished": file[:8] + bytes(8) + file[16:37] + bytes(8) + file[45:],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "empty", "short header", "last byte gone", "a byte more", "another index", "L2", "more rows",
        "negative width", "not finished",
    ],
)  # fmt: skip
def test_a_damaged_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.faiss"
    write_flat_index(path, 3, [some_rows(5, 3)])
    assert path.read_bytes()[8:16] == (5).to_bytes(8, "little")
    path.write_bytes(damage(kind, path.read_bytes()))
    with pytest.raises(AtlasError, match=r"x\.faiss is damaged: it is not a whole FAISS flat index"):
        open_rows(path)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_flat_index(tmp_path / "missing" / "x", 3, [some_rows(5, 3)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("n", [0, 5, 100_000])
def test_a_full_disk_is_an_os_error(n: int) -> None:
    with pytest.raises(OSError) as caught:
        write_flat_index(Path("/dev/full"), 3, [some_rows(n, 3)])
    assert caught.value.errno == errno.ENOSPC


def raises(_: np.ndarray) -> None:
    raise RuntimeError("Index type not recognized")


@pytest.mark.parametrize("reads", [raises, lambda _: faiss.IndexFlatIP(3), lambda _: faiss.IndexFlatL2(3)])
def test_another_format_of_faiss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: object) -> None:
    """Before anything is written."""
    monkeypatch.setattr(faiss, "deserialize_index", reads)
    with pytest.raises(BuildError, match="does not read the indexes that paramdex writes; install another"):
        write_flat_index(tmp_path / "x", 3, [some_rows(5, 3)])
    assert not (tmp_path / "x").exists()
