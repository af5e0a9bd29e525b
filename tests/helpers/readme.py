"""Read and run the README's commands; as a script, write their output into it (``make readme``).

A ```console block holds commands after ``$ ``, each followed by its output. Commands may run over several lines where
a quotation is open. They run in a folder that holds ``demo.atlas`` and ``data``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paramdex_builder.read.families import families

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FAMILIES = re.compile(r"<!-- families -->.*?<!-- /families -->", re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Step:
    """A command of the README and the output that stands below it."""

    command: str
    output: str

    def run(self, folder: Path) -> str:
        """What the command prints now; commands other than paramdex are not run."""
        words = shlex.split(self.command)
        if words[0] != "paramdex":
            return self.output
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "100"},
        )
        if words[1] == "build":  # what it says of its progress goes to standard error, and holds times
            assert done.returncode == 0, done.stderr
            return self.output
        return "\n".join(line.rstrip() for line in (done.stdout + done.stderr).strip("\n").splitlines())


def _closed(command: str) -> bool:
    try:
        shlex.split(command)
    except ValueError:
        return False
    return True


def steps(block: str) -> list[Step]:
    """The commands of one console block."""
    found: list[Step] = []
    command: str | None = None
    for line in block.splitlines():
        if line.startswith("$ ") and (command is None or _closed(command)):
            command = line[2:]
            found.append(Step(command, ""))
        elif command is not None and not _closed(command):
            command += "\n" + line
            found[-1].command = command
        else:
            found[-1].output += line + "\n"
    for step in found:
        step.output = step.output.strip("\n")
    return found


def console_steps(text: str) -> list[Step]:
    """Every command of the README, in order."""
    return [step for match in _CONSOLE.finditer(text) for step in steps(match.group(1))]


def python_blocks(text: str) -> list[str]:
    return _PYTHON.findall(text)


def family_table() -> str:
    """The table of families, from their files."""
    rows = [f"| {', '.join(f'`{t}`' for t in family.model_types)} | {family.about} |" for family in families().values()]
    return "\n".join(
        ["<!-- families -->", "", "| model types | layout |", "| --- | --- |", *rows, "", "<!-- /families -->"]
    )


def workplace(folder: Path, atlas: Path) -> Path:
    """A folder in which the README's commands can run."""
    (folder / "demo.atlas").symlink_to(atlas, target_is_directory=True)
    (folder / "data").symlink_to(ROOT / "data", target_is_directory=True)
    return folder


def rewrite(folder: Path) -> None:
    """Put today's output below every command of the README."""

    def fresh(match: re.Match[str]) -> str:
        parts = [f"$ {step.command}\n{step.run(folder)}".rstrip() for step in steps(match.group(1))]
        return "```console\n" + "\n\n".join(parts) + "\n```"

    text = _CONSOLE.sub(fresh, README.read_text("utf-8"))
    README.write_text(_FAMILIES.sub(lambda _: family_table(), text), "utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        rewrite(workplace(Path(name), ROOT / "demo.atlas"))
