"""Run benchmarks and write what they print into benchmarks/RESULTS.md.

    python benchmarks/results.py [SECTION...]

Without a section, all of them: two hours. What this kind of processor printed before is replaced; other sections, and
what other processors printed, stay. Run it on a machine that does nothing else; the ratios say more than the times.
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

import torch

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
SECTIONS = {
    "build": ("Building, and asking in-process", "run.py"),
    "kernels": ("The two kernels, on one core", "kernels.py"),
    "neighbors": ("Relating two models", "neighbors.py"),
    "growth": ("An atlas that grows", "growth.py"),
    "lookups": ("Look-ups in a large atlas", "lookups.py"),
    "memory": ("Memory of a build", "memory.py"),
    "serve": ("The explorer under load", "serve.py demo.atlas"),
}
HEAD = """# Measured

Each table was printed by the command above it. Where a machine's speed decides, a baseline stands beside a measure,
taken in the same run; ratios carry over to other machines, times do not. Nothing was measured on a GPU yet:
`python benchmarks/gpu.py` prints those tables where there is one.
"""


def processor() -> str:
    """Its name, and the vector instructions that PyTorch takes."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    said = dict(reversed([tuple(re.split(r"\s*: ", line, maxsplit=1)) for line in lines if ": " in line]))
    capability = torch.backends.cpu.get_cpu_capability() + ", AMX" * ("amx_bf16" in said.get("flags", ""))
    return f"{said.get('model name', platform.machine())} ({capability})"


def machine() -> str:
    """The cores, memory and versions, in one line."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "duckdb", "faiss-cpu"))
    return f"{os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}, {libraries}"


def printed(command: str) -> str:
    """What a benchmark prints, below the date and the machine."""
    environment = os.environ | {"COLUMNS": "118"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    done = subprocess.run(
        [sys.executable, *str(HERE / command).split(" ")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=HERE.parent,
        env=environment,
    )
    today = dt.datetime.now(dt.UTC).date()
    text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
    return f"{today}, {machine()}\n\n```console\n$ python benchmarks/{command}\n{text}\n```\n"


def parts(text: str, mark: str) -> dict[str, str]:
    """What stands below every heading of a level."""
    found = re.split(rf"^{mark} (.*)\n\n", text, flags=re.MULTILINE)[1:]
    return {heading: body.strip() + "\n" for heading, body in zip(found[::2], found[1::2], strict=True)}


def main() -> None:
    names = sys.argv[1:] or list(SECTIONS)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise SystemExit(f"error: there is no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    for name in names:
        heading, command = SECTIONS[name]
        made = printed(command)
        page = {title: parts(body, "###") for title, body in parts(PAGE.read_text("utf-8"), "##").items()}
        page.setdefault(heading, {})[processor()] = made
        sections = [
            f"## {title}\n\n" + "\n".join(f"### {where}\n\n{what}" for where, what in page[title].items())
            for title, _ in SECTIONS.values()
            if title in page
        ]
        PAGE.write_text("\n".join([HEAD, *sections]), "utf-8")


if __name__ == "__main__":
    main()
