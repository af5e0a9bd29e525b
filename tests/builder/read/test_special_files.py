"""What is no plain file, or claims to be larger than anybody's is: read where that ends, else refused at once."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fuzz_readers
import models
import paramdex
from paramdex.store.words import read_lines
from paramdex.verbs.heads import read_pairs
from paramdex.verbs.user_vectors import user_vectors
from paramdex_builder import build
from paramdex_builder.measure.classifier import read_labelled
from paramdex_builder.measure.evaluate import read_words
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_schemas import AtlasError, CheckpointError, ParamdexError, QueryError, foreign

MOST = 1 << 20
OPTIONAL = ("tokenizer_config.json", "model.safetensors.index.json")
TEXTS: dict[str, Callable[[Path], Any]] = {
    "words": lambda path: read_lines(path, "word list"),
    "pairs": read_pairs,
    "reviews": read_labelled,
    "text": read_words,
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's own path may have 107 characters
    os.close(folder)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


KINDS: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a pipe": pipe,
    "a socket": bound,
    "a sparse file": sparse,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MOST_BYTES", MOST)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", TEXTS)
def test_texts(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "given"
    KINDS[kind](path)
    if (reader, kind) == ("words", "a pipe"):  # that nobody writes to
        assert TEXTS[reader](path) == []
        return
    with pytest.raises(ParamdexError) as caught:
        TEXTS[reader](path)
    assert str(path) in str(caught.value)
    if kind in ("a sparse file", "a device without end"):
        assert "it holds more than 1 MiB" in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*OPTIONAL, "config.json", "tokenizer.json"])
def test_files_of_a_model(tmp_path: Path, name: str, kind: str) -> None:
    """What is no file counts as none: then the model is read without it, or it is refused."""
    folder = tmp_path / "model"
    folder.mkdir()
    (fuzz_readers.in_shards if "index" in name else fuzz_readers.tiny)(folder)
    (folder / name).unlink()
    KINDS[kind](folder / name)

    def read() -> None:
        rows = len(Checkpoint.open(str(folder)).embedding()[0])
        assert len(read_vocabulary(str(folder), folder, rows)) == rows == fuzz_readers.ROWS

    if name in OPTIONAL and kind != "a sparse file":
        read()
        return
    with pytest.raises(CheckpointError) as caught:
        read()
    assert str(folder) in str(caught.value)
    assert ("it holds more than 1 MiB" in str(caught.value)) == (kind == "a sparse file")


@pytest.mark.parametrize("named", ["config.json", "model.safetensors"])
def test_links_of_a_copy_that_lead_nowhere_are_named(tmp_path: Path, named: str) -> None:
    """As in a snapshot of the hub's cache that was copied without what its links lead to."""
    folder = models.save_word_model(tmp_path / "model")
    (folder / named).unlink()
    (folder / named).symlink_to("../../blobs/0123")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(folder))
    says = f"{named} in it is a link that leads nowhere; copy it again with what it links to"
    assert str(caught.value).endswith(says)


def test_a_pipe_that_somebody_writes_to_is_read(tmp_path: Path) -> None:
    """As a shell gives for <(sort words.txt); more than a pipe holds, so that it has to be waited for."""
    words = [f"word{i}" for i in range(20_000)]
    read, write = os.pipe()

    def fill() -> None:
        with os.fdopen(write, "w") as file:
            file.write("\n".join(words))

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        assert read_lines(f"/proc/self/fd/{read}", "word list") == words
    finally:
        thread.join()
        os.close(read)


def test_what_unpacks_to_more_than_is_read_is_refused(tmp_path: Path) -> None:
    text = b"bread and butter " * (MOST // 17)
    (tmp_path / "just.txt.xz").write_bytes(lzma.compress(text))
    assert read_words(tmp_path / "just.txt.xz") == text.decode()
    for name, packed in {
        "one.txt.xz": lzma.compress(text * 2),
        "parts.txt.xz": lzma.compress(text) * 2,
        "zeros.txt.xz": lzma.compress(bytes(100 * MOST)),
    }.items():
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(ParamdexError, match=rf"{name} cannot be read as text: it holds more than 1 MiB"):
            read_words(tmp_path / name)


@pytest.mark.parametrize("number", [2**24, 2**31, 2**32 - 1])
@pytest.mark.timeout(60)
def test_an_id_far_past_the_embedding(tmp_path: Path, number: int) -> None:
    """The tokenizers library writes a tokenizer by counting up to its largest id."""
    folder = models.save_word_model(tmp_path / "model")
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text())
    rows = len(spec["model"]["vocab"])
    spec["model"]["vocab"][max(spec["model"]["vocab"])] = number
    file.write_text(json.dumps(spec))
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(str(folder), folder, rows)
    assert f"the tokenizer has ids up to {number} but the embedding only {rows} rows" in str(caught.value)


def test_a_message_is_one_line_whatever_a_path_is_called(tmp_path: Path) -> None:
    name = "two\nlines\x1b[2J\u202e"
    folder = tmp_path / name
    shown = str(tmp_path / r"two\nlines\x1b[2J\u202e")
    with pytest.raises(AtlasError) as caught:
        paramdex.open(folder)
    assert str(caught.value).startswith(f"{shown} is not an atlas: there is no such folder")
    assert str(caught.value).isprintable()
    with pytest.raises(QueryError) as asked:
        read_lines(folder, "word list")
    assert str(asked.value) == f"the word list {shown} cannot be read: No such file or directory"
    model = models.save_word_model(folder)
    (model / "config.json").write_text('{"model_type": "gpt2", "n_embd": 0}')
    with pytest.raises(ParamdexError) as opened:
        Checkpoint.open(str(model))
    assert str(opened.value).startswith(shown)
    assert str(opened.value).count(shown) == 1
    shutil.rmtree(folder)


def test_what_sql_says_keeps_its_lines() -> None:
    """DuckDB points at what it means in a line of its own."""
    assert str(QueryError("one\n  ^\x1b", but="\n")) == "one\n  ^\\x1b"
    assert str(QueryError("one\ntwo")) == r"one\ntwo"


def test_what_may_not_be_looked_at_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that may not be entered ``Path.is_file`` raises PermissionError; root, too, sees that here."""
    locked = tmp_path / "locked"
    locked.mkdir()
    plain = os.stat

    def refused(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(f"{locked}{os.sep}"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *rest, **options)

    monkeypatch.setattr(os, "stat", refused)
    asked: dict[str, Callable[[Path], Any]] = {
        "x.atlas": paramdex.open,
        "x.npy": lambda path: user_vectors(path, 4, "m"),
        "model": lambda path: Checkpoint.open(str(path)),
        "other": lambda path: build(str(path), tmp_path / "y.atlas"),
    }
    for name, ask in asked.items():
        with pytest.raises(ParamdexError) as caught:
            ask(locked / name)
        assert str(locked / name) in str(caught.value)
        assert str(caught.value).endswith(" cannot be read: Permission denied")
