"""Fixtures of the tests that ask the shared atlas.

Nothing of them may be changed: they are made once for all modules.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import oracle
import paramdex
import reading_oracle
from opened import opened
from query_helpers import Everything, everything, random_source


@pytest.fixture
def draw() -> random.Random:
    """A random source; its seed shows in the captured output of a failing test."""
    return random_source()


@pytest.fixture(scope="session")
def atlas(small_atlas: Path) -> Iterator[paramdex.Atlas]:
    """The shared atlas, opened."""
    with paramdex.open(small_atlas) as atlas:
        yield atlas


@pytest.fixture(scope="session")
def db(small_atlas: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Its database in DuckDB alone: no extension, nothing attached, nothing of paramdex."""
    with opened(small_atlas) as connection:
        yield connection


@pytest.fixture(scope="session")
def truths(model_folders: dict[str, Path]) -> dict[str, oracle.Truth]:
    """Model -> its numbers, straight from its files."""
    return {name: oracle.read(folder) for name, folder in model_folders.items()}


@pytest.fixture(scope="session")
def wholes(truths: dict[str, oracle.Truth]) -> dict[str, Everything]:
    """Model -> all its parameters with all their scores."""
    return {name: everything(name, truth) for name, truth in truths.items()}


@pytest.fixture(scope="session")
def reading_atlas(reading_folder: Path) -> Iterator[paramdex.Atlas]:
    """The atlas of models whose readers are scored in spaces of their own, opened."""
    with paramdex.open(reading_folder) as atlas:
        yield atlas


@pytest.fixture(scope="session")
def reading_wholes(
    model_folders: dict[str, Path], truths: dict[str, oracle.Truth], wholes: dict[str, Everything], reading_folder: Path
) -> dict[str, Everything]:
    """Its models -> all their parameters with all their scores, each in its own space."""
    found = {
        name: reading_oracle.everything_read(name, truths[name], model_folders[name], reading_folder)
        for name in ("gpt2-a", "gpt2-wide", "llama-gqa")
    }
    return {**found, "bert": wholes["bert"]}
