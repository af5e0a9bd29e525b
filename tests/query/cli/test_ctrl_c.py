"""Ctrl-C at any moment ends the program in a word at most, and with the same exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import paramdex
from paramdex.cli import cli

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(os.name != "posix", reason="needs signals"),
]

ENDLESS = "SELECT count(*) FROM range(10_000_000) AS a, range(10_000_000) AS b"
SCRIPT = "import sys\nfrom paramdex.cli import run\nif __name__ == '__main__':\n    sys.exit(run())\n"
"""What pip makes of the entry point ``paramdex.cli:run``."""
FIRST = ("paramdex/__main__.py", "paramdex/__init__.py", "paramdex/cli/__init__.py", "paramdex/cli/ctrl_c.py")
"""What runs before the program hears Ctrl-C; what runs before that is Python's own."""
AT_IMPORT = """
import os, signal, sys
from importlib.abc import MetaPathFinder

signal.signal(signal.SIGINT, signal.default_int_handler)

class Pressed(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == WHEN:
            os.kill(os.getpid(), signal.SIGINT)

WHEN = sys.argv.pop(1)
sys.meta_path.insert(0, Pressed())
from paramdex.cli import run
run()
"""
"""The program, on which Ctrl-C is pressed when the module that is its first argument is imported."""


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Programs that the test starts hear Ctrl-C; of a run in the background they would not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
@pytest.mark.parametrize("form", ["module", "script"])
def test_at_any_moment(small_atlas: Path, tmp_path: Path, form: str, delay: float) -> None:
    (tmp_path / "paramdex-script").write_text(SCRIPT)
    program = ["-m", "paramdex"] if form == "module" else [str(tmp_path / "paramdex-script")]
    with subprocess.Popen(
        [sys.executable, *program, "sql", str(small_atlas), ENDLESS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert out == ""
    files = re.findall(r'File "([^"]+)"', err)
    ours = [file for file in files if Path(paramdex.__file__).parent in Path(file).parents]
    assert all(file.endswith(FIRST) for file in ours), err
    if not files and err != "KeyboardInterrupt\n":
        assert (process.returncode, err) in [(-signal.SIGINT, ""), (130, ""), (130, "\nerror: interrupted\n")]


@pytest.mark.parametrize(
    "module",
    ["click", "paramdex_schemas", "numpy", "pyarrow", "pyarrow.lib", "duckdb", "_duckdb", "paramdex.cli.program",
     "paramdex.atlas", "paramdex.verbs.align"],
)  # fmt: skip
def test_while_something_is_imported(small_atlas: Path, module: str) -> None:
    command = [sys.executable, "-c", AT_IMPORT, module, "sql", str(small_atlas), ENDLESS]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_it_stays_ignored_where_it_was(small_atlas: Path) -> None:
    """As of a program that a shell has started in the background."""
    program = AT_IMPORT.replace("signal.default_int_handler", "signal.SIG_IGN")
    command = [sys.executable, "-c", program, "duckdb", "sql", str(small_atlas), "SELECT 1 AS x", "--format", "csv"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "x\n1\n", "")


def test_commands_as_functions_leave_it_alone(small_atlas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    cli.main(["info", str(small_atlas)], standalone_mode=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert "gpt2-a" in capsys.readouterr().out
