"""The examples in docstrings give what they say they give."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import paramdex
import paramdex_builder
import paramdex_schemas

PACKAGES = [Path(package.__file__).parent for package in (paramdex, paramdex_builder, paramdex_schemas)]
NAMES = [
    ".".join(file.relative_to(package.parent).with_suffix("").parts)
    for package in PACKAGES
    for file in sorted(package.rglob("*.py"))
    if ">>>" in file.read_text("utf-8")
]


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_true(name: str) -> None:
    found = doctest.testmod(import_module(name))
    assert found.attempted
    assert not found.failed
