"""The picture in ARCHITECTURE.md holds: every import points down its floors, none runs in a circle, and what is to be
read in one go is short enough for it.

Imports are counted wherever they stand: inside functions and under TYPE_CHECKING too, where circles hide.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "paramdex_schemas": ROOT / "schemas" / "paramdex_schemas",
    "paramdex": ROOT / "query" / "paramdex",
    "paramdex_builder": ROOT / "builder" / "paramdex_builder",
}
FLOORS = {
    "paramdex_schemas": [
        "errors folding",
        "checks foreign kinds progress",
        "arguments atlas_files",
        "addresses isometry vector_files place",
        "layout",
        "model",
        "contents",
        "everything",
        "commit",
        "",
    ],
    "paramdex": [
        "text plain picture",
        "result",
        "store",
        "verbs manage",
        "atlas measures",
        "tour",
        "",
        "web",
        "cli",
        "__main__",
    ],
    "paramdex.web": ["load", "cards", "html", "sql", "pool lookup_worker errors", "routes", "app", "serve"],
    "paramdex_builder": [
        "work",
        "read",
        "stream",
        "project",
        "files",
        "relate",
        "publish",
        "options",
        "estimates plan",
        "measure build",
        "",
    ],
}
"""Package -> its rooms, ground floor first: folders, and modules beside them; "" is the package's own __init__. A room
imports rooms below its floor, and modules within itself.
"""
BETWEEN = {"paramdex_schemas": set(), "paramdex": {"paramdex_schemas"}, "paramdex_builder": {"paramdex_schemas"}}
LOADS_THE_BUILDER = "paramdex.cli.building"
"""The commands that need models; they load the builder when they are given."""
LINES, FUNCTION_LINES, ARGUMENTS = 450, 60, 8


def module_name(path: Path, package: str) -> str:
    parts = [package, *path.relative_to(PACKAGES[package]).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path, package): path for package, root in PACKAGES.items() for path in root.rglob("*.py")}


@cache
def imports() -> dict[str, set[str]]:
    """Module -> the project's modules that it imports, wherever in it."""
    return {name: set(_imported(path)) - {name} for name, path in modules().items()}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports have full names here"
            if node.module not in modules():
                continue
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else node.module


def room(module: str, package: str) -> str:
    """The first part of a module's name below a package."""
    return module.removeprefix(package).lstrip(".").split(".")[0]


def test_there_are_modules_and_imports() -> None:
    assert len(modules()) > 100
    assert sum(map(len, imports().values())) > 300


@pytest.mark.parametrize("package", FLOORS)
def test_every_import_points_down(package: str) -> None:
    floor = {name: i for i, names in enumerate(FLOORS[package]) for name in names.split() or [""]}
    inside = [name for name in modules() if name == package or name.startswith(f"{package}.")]
    rooms = {room(name, package) for name in inside}
    if package == "paramdex.web":
        rooms -= {""}  # its __init__ says what the package is, and hands nothing on
    assert rooms == set(floor), "every folder, and every module beside one, has its floor"
    wrong = [
        f"{name} imports {other}"
        for name in inside
        for other in imports()[name]
        if other in inside
        and room(other, package) != room(name, package)
        and floor[room(other, package)] >= floor[room(name, package)]
    ]
    assert wrong == []


def test_no_imports_run_in_a_circle() -> None:
    left = {name: set(others) for name, others in imports().items()}
    while free := {name for name, others in left.items() if not others}:
        left = {name: others - free for name, others in left.items() if name not in free}
    assert sorted(left) == [], "these, or what they import, import each other"


@pytest.mark.parametrize("package", PACKAGES)
def test_between_packages_there_are_two_arrows(package: str) -> None:
    """Of the query package to the schemas and of the builder to them; but for the commands that need models."""
    for name, path in modules().items():
        if name.split(".")[0] == package:
            found = {other.split(".")[0] for other in imports()[name]} - {package}
            allowed = BETWEEN[package] | ({"paramdex_builder"} if name == LOADS_THE_BUILDER else set())
            assert found <= allowed, path


def test_the_builder_is_loaded_inside_functions() -> None:
    tree = ast.parse(modules()[LOADS_THE_BUILDER].read_text("utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("paramdex_b")]
    assert loads
    assert all(id(node) in inside for node in loads)


def _code_lines(text: str) -> set[int]:
    """The numbers of the lines that hold code: no comment alone, no blank line."""
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank:
            found |= set(range(token.start[0], token.end[0] + 1))
    return found


def _too_large(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    lines, code = text.splitlines(), _code_lines(text)
    if len(lines) > LINES:
        yield f"{path.name} has {len(lines)} lines"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        size = sum(i in code for i in range(body[0].lineno, (node.end_lineno or 0) + 1)) if body else 0
        a = node.args
        given = sum(each.arg not in ("self", "cls") for each in (*a.posonlyargs, *a.args, *a.kwonlyargs))
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        above = lines[first - 2].lstrip()
        explained = above.startswith("#") and "----" not in above  # which heads a part of the module
        if (size > FUNCTION_LINES or given > ARGUMENTS) and not explained:
            yield f"{path.name}:{node.lineno}: {node.name} has {size} lines of code and {given} arguments"


def test_modules_and_functions_can_be_read_in_one_go() -> None:
    """A comment above a function that is longer, or takes more, says why."""
    assert [line for path in modules().values() for line in _too_large(path)] == []
