"""No damaged file ends in anything but an answer or one line that names it: those that once did, and some new ones.

The long run is ``python tests/helpers/fuzz_readers.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz_readers import CORPUS, READERS, damaged, outcome, whole
from paramdex_schemas.foreign import reading

KEPT = sorted(path for path in CORPUS.glob("*/*") if path.is_file())
COUNTS = dict.fromkeys(("npy", "lens_safetensors", "words", "pairs", "reviews", "pickle", "legacy"), 200)
"""How many files of a reader are damaged here; 60 of one that takes longer."""


def folder_of(name: str, root: Path) -> Path:
    """A folder with what a reader reads."""
    folder = root / "model"
    folder.mkdir()
    READERS[name].make(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kept", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_that_were_once_no_error_of_ours(kept: Path, tmp_path: Path) -> None:
    found = outcome(kept.parent.name, folder_of(kept.parent.name, tmp_path), kept.read_bytes())
    assert found in ("read", "refused")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    assert outcome(name, folder, whole(name)) == "read"
    found = Counter(outcome(name, folder, damaged(name, case)) for case in range(COUNTS.get(name, 60)))
    assert set(found) <= {"read", "refused"}
    assert found["refused"] > 0


def test_the_damage_of_a_case_is_the_same_each_time() -> None:
    for name in READERS:
        assert [damaged(name, case) for case in range(20)] == [damaged(name, case) for case in range(20)]
        assert len({damaged(name, case) for case in range(20)}) > 10


def test_what_is_looked_for_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mechanism taken away the same files end in other errors."""

    @contextmanager
    def nothing(*_: object) -> Iterator[None]:
        yield

    folder = folder_of("npy", tmp_path)
    monkeypatch.setattr("paramdex.verbs.user_vectors.reading", nothing)
    found = Counter(outcome("npy", folder, damaged("npy", case)).partition(":")[0] for case in range(50))
    assert found["FAULT"] > 10
    assert reading is not nothing


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_vector_and_no_words(raw: bytes) -> None:
    import tempfile

    for name in ("npy", "lens_safetensors", "words", "pairs", "reviews"):
        with tempfile.TemporaryDirectory() as folder:
            assert outcome(name, Path(folder), raw) in ("read", "refused")
