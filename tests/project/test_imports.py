"""What is imported when: the query package needs no torch, look-ups load nothing slow, and what is missing is named."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "paramdex_schemas": ROOT / "schemas" / "paramdex_schemas",
    "paramdex": ROOT / "query" / "paramdex",
    "paramdex_builder": ROOT / "builder" / "paramdex_builder",
}
HEAVY = {"torch", "transformers", "tokenizers", "paramdex_builder"}
EVERY_VERB = """
import sys
import paramdex
from paramdex import cli
with paramdex.open(sys.argv[1]) as atlas:
    answers = [
        atlas.info(), atlas.show("bert/L0/H1"), atlas.show("bert/L0/ff_key/3"), atlas.find("canada"),
        atlas.search("canada"), atlas.similar("bert/L0/ff_key/3", model="all"), atlas.align("bert", "gpt2-a"),
        atlas.align("gpt2-a", "gpt2-b"), atlas.sql("SELECT 1"), atlas.check(),
    ]
    print([len(answer) > 0 for answer in answers])
    [(str(answer), answer.to_json(), answer.to_csv(), answer.to_pandas()) for answer in answers]
    answers[6].plot(sys.argv[2])
"""


def python(program: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess:
    """Run a program in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=check,
        env=os.environ | {"PYTHONWARNINGS": "error::ImportWarning"},
    )


def imported_names(path: Path) -> set[str]:
    """The first parts of the names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("arguments", [("show", "bert/L0/ff_key/3"), ("find", "canada")])
def test_look_ups_from_the_shell_import_nothing_slow(small_atlas: Path, arguments: tuple[str, str]) -> None:
    """Each of these takes as long to import as an atlas to open, or longer."""
    program = """
import sys
from paramdex.cli import main
main()
print(sorted({"pandas", "pyarrow.compute", "matplotlib", "scipy", "faiss"} & {*sys.modules}))
"""
    verb, asked = arguments
    ran = python(f"import sys; sys.argv[1:] = {[verb, str(small_atlas), asked]!r}\n{program}")
    assert ran.stdout.splitlines()[-1] == "[]"


def test_using_every_verb_imports_no_builder_and_no_torch(small_atlas: Path, tmp_path: Path) -> None:
    program = EVERY_VERB + "\nimport json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    verbs, modules = python(program, small_atlas, tmp_path / "heat.png").stdout.splitlines()
    assert verbs == str([True] * 10)
    loaded = set(json.loads(modules))
    assert {"paramdex", "paramdex_schemas", "duckdb", "faiss", "safetensors"} <= loaded
    assert loaded & HEAVY == set()


def test_import_alone_is_light() -> None:
    """No vector search, plotting or data frames before they are asked for."""
    program = "import sys, json, paramdex; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    loaded = set(json.loads(python(program).stdout))
    assert loaded & (HEAVY | {"faiss", "matplotlib", "pandas", "scipy"}) == set()


def test_commands_import_no_pandas(small_atlas: Path) -> None:
    """pyarrow would, for any list that becomes an array; it takes longer than the rest of a command."""
    pytest.importorskip("pandas")
    ask = "import sys; from paramdex.cli import main; sys.argv = ['paramdex', 'show', sys.argv[1], 'bert/L0/H1']"
    printed = python(f"{ask}; main(); print('pandas' in sys.modules)", small_atlas).stdout
    assert "QK pairs" in printed
    assert printed.endswith("False\n")


def test_schemas_and_query_name_no_heavy_module() -> None:
    for package in ("paramdex_schemas", "paramdex"):
        for path in PACKAGES[package].rglob("*.py"):
            assert imported_names(path) & {"torch", "transformers", "tokenizers"} == set(), path


def test_without_faiss_the_rest_works_and_search_says_what_to_install(small_atlas: Path) -> None:
    program = """
import sys
sys.modules["faiss"] = None
import paramdex
with paramdex.open(sys.argv[1]) as atlas:
    answers = [atlas.info(), atlas.show("bert/L0/H1"), atlas.find("canada"), atlas.align("gpt2-a", "gpt2-b")]
    answers.append(atlas.check())
    print([len(answer) > 0 for answer in answers])
    for verb, arguments in (("search", ["canada"]), ("similar", ["bert/L0/ff_key/3"]), ("align", ["bert", "gpt2-a"])):
        try:
            getattr(atlas, verb)(*arguments)
        except paramdex.QueryError as error:
            print(error)
"""
    message = "vector search needs faiss; install it with: pip install 'paramdex[cpu]' (or 'paramdex[gpu]')"
    assert python(program, small_atlas).stdout.splitlines() == [str([True] * 5), message, message, message]


def test_without_matplotlib_plot_says_what_to_install(small_atlas: Path, tmp_path: Path) -> None:
    program = """
import sys
sys.modules["matplotlib"] = None
import paramdex
with paramdex.open(sys.argv[1]) as atlas:
    try:
        atlas.align("gpt2-a", "gpt2-b").plot(sys.argv[2])
    except paramdex.QueryError as error:
        print(error)
"""
    path = tmp_path / "heat.png"
    assert (
        python(program, small_atlas, path).stdout
        == "pictures need matplotlib; install it with: pip install 'paramdex[plot]'\n"
    )
    assert not path.exists()


@pytest.mark.parametrize("missing", ["torch", "transformers", "filelock", "faiss"])
def test_without_the_builders_needs_build_says_what_to_install(word_model: Path, tmp_path: Path, missing: str) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv[0] = 'paramdex'; from paramdex.cli import main; main()"
    )
    done = python(program, "build", word_model, "-o", tmp_path / "x.atlas", check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: building needs {missing}; install it with: pip install 'paramdex[build,cpu]'")
    assert done.stdout == ""
    assert not (tmp_path / "x.atlas").exists()
