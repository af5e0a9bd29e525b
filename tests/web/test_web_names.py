"""A model whose address would be a page of the server's own is refused as the server starts, in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_serve import refused

from opened import names
from paramdex import QueryError
from paramdex.manage.rename import rename
from web_helpers import data, server


def renamed(atlas: Path, folder: Path, name: str) -> Path:
    """A copy whose first model has another name."""
    copy = folder / "renamed.atlas"
    shutil.copytree(atlas, copy)
    rename(copy, next(iter(names(copy))), name)
    return copy


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "is one of the server's own") for name in
          ("find", "search", "similar", "align", "ask", "sql", "docs", "openapi.json", "sql.csv", "find.json")),
        ("x.json", "would be its data's"),
    ],
)  # fmt: skip
def test_names_of_pages_are_refused(small_atlas: Path, tmp_path: Path, name: str, why: str) -> None:
    atlas = renamed(small_atlas, tmp_path, name)
    with pytest.raises(QueryError) as error, server(atlas):
        pass
    message = f"{atlas} cannot be served: the address of its model {name}, /{name}, {why}"
    assert str(error.value).startswith(message)
    assert str(error.value).endswith(f"give it another one: paramdex rename {atlas} {name} NEWNAME")


@pytest.mark.parametrize("name", ["Find", "finds", "static", "json", "x.json5", "L0", "models", "pairs", "a.csv"])
def test_all_other_names_are_models(small_atlas: Path, tmp_path: Path, name: str) -> None:
    with server(renamed(small_atlas, tmp_path, name)) as client:
        assert data(client, f"/{name}.json")["model"] == name
        assert client.get(f"/{name}").status_code == 200
        assert client.get(f"/align/{name}/gpt2-b").status_code == 200


def test_the_command_says_so(small_atlas: Path, tmp_path: Path) -> None:
    atlas = renamed(small_atlas, tmp_path, "search")
    line = refused(str(atlas), "--port", "0")
    assert line.startswith(f"error: {atlas} cannot be served: the address of its model search, /search, is one")
