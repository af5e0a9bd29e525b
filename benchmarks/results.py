"""Run benchmarks and write what they print into benchmarks/RESULTS.md.

    python benchmarks/results.py [SECTION...]

Without a section, all of them: two hours. A section's text is replaced, the others stay. Run it on a machine
that does nothing else; the ratios say more than the times.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
SECTIONS = {
    "build": ("Building, and asking in-process", "run.py"),
    "kernels": ("The two kernels, on one core", "kernels.py"),
    "neighbors": ("Relating two models", "neighbors.py"),
    "lookups": ("Look-ups in a large atlas", "lookups.py"),
    "memory": ("Memory of a build at the width of an 8B model", "memory.py 2"),
    "serve": ("The explorer under load", "serve.py demo.atlas"),
}
HEAD = """# Measured

Each table was printed by the command above it. Where a machine's speed decides, a baseline stands beside a measure,
taken in the same run; ratios carry over to other machines, times do not. Nothing was measured on a GPU yet:
`python benchmarks/gpu.py` prints those tables where there is one.
"""


def machine() -> str:
    """The processor, memory and versions, in one line."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "duckdb", "faiss-cpu"))
    processor = models[0] if models else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {libraries}"


def section(name: str) -> str:
    """What a benchmark prints, below its name, the machine and the date."""
    title, command = SECTIONS[name]
    environment = os.environ | {"COLUMNS": "118"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    done = subprocess.run(
        [sys.executable, *str(HERE / command).split(" ")], stdout=subprocess.PIPE, text=True, check=True,
        cwd=HERE.parent, env=environment,
    )  # fmt: skip
    today = dt.datetime.now(dt.UTC).date()
    text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    return f"## {title}\n\n{today}, {machine()}\n\n```console\n$ python benchmarks/{command}\n{text}\n```\n"


def main() -> None:
    names = sys.argv[1:] or list(SECTIONS)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise SystemExit(f"error: there is no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    for name in names:
        made = section(name)
        known = re.split(r"^(?=## )", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:] if PAGE.exists() else []
        by_title = {text[3:].partition("\n")[0]: text.strip() + "\n" for text in known} | {SECTIONS[name][0]: made}
        ordered = [by_title[title] for title, _ in SECTIONS.values() if title in by_title]
        PAGE.write_text("\n".join([HEAD, *ordered]), "utf-8")


if __name__ == "__main__":
    main()
