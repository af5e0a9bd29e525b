"""What grows with the models of an atlas: adding, removing and renaming one, opening, and questions to one and to all.

    python benchmarks/growth.py [N...]

The models are one demo model under many names: its files are linked, so that an atlas of 200 takes little room. Every
number is the median of several runs; ``ratio`` is beside the smallest atlas. Run it on an idle machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

import paramdex
from paramdex.manage.merge import merge
from paramdex.manage.remove import remove
from paramdex.manage.rename import rename
from paramdex.result import Result
from paramdex_builder import Options, build
from paramdex_schemas import atlas_files
from paramdex_schemas.commit import commit
from paramdex_schemas.contents import Contents, Index, Manifest, read_contents

ROOT = Path(__file__).parents[1]
SIZES = (1, 10, 40, 200, 1000)
NAME = "m{:04}"


def alike(source: Path, n: int, target: Path) -> Path:
    """An atlas of n models, each the one of ``source``, related to none."""
    (manifest,) = read_contents(source).manifests.values()
    folder = source / next(iter(read_contents(source).index.models.values()))
    folder = atlas_files.model_folder(source, folder.name)
    work, manifests = target.with_name("work"), dict[str, Manifest]()
    for number in range(n):
        name = NAME.format(number)
        own = atlas_files.model_folder(work, name)
        own.mkdir(parents=True)
        for file in manifest.files:
            os.link(folder / file, own / file)
        manifests[name] = replace(manifest, uid=secrets.token_hex(8), row={**manifest.row, "model": name})
        (own / atlas_files.MANIFEST).write_text(manifests[name].text(), "utf-8")
    commit(Contents(target, Index({name: name for name in manifests}), manifests), work)
    return target


def median_ms(call: Callable[[], object], times: int = 5) -> float:
    took = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - started))
    return statistics.median(took)


def measured(atlas: Path, one: Path) -> dict[str, float]:
    """Milliseconds of each change and question; the atlas ends as it began."""
    found: dict[str, list[float]] = {"add": [], "rename": [], "remove": []}
    for _ in range(3):
        found["add"].append(median_ms(lambda: merge([one], atlas), 1))
        found["rename"].append(median_ms(lambda: rename(atlas, "added", "other"), 1))
        found["remove"].append(median_ms(lambda: remove(atlas, ["other"]), 1))
    result = {name: statistics.median(took) for name, took in found.items()}
    result["open"] = median_ms(lambda: paramdex.open(atlas).close())
    with paramdex.open(atlas) as opened:
        address, name = f"{NAME.format(0)}/L1/ff_value/7", NAME.format(0)
        opened.show(address)
        opened.find("canada", model=name)
        result["show"] = median_ms(lambda: opened.show(address), 20)
        result["find in one"] = median_ms(lambda: opened.find("canada", model=name), 20)
        if len(opened.models) <= 200:
            result["find in all, first"] = median_ms(lambda: opened.find("canada"), 1)
            result["find in all"] = median_ms(lambda: opened.find("canada"), 3)
            result["sql, first"] = median_ms(lambda: opened.sql("SELECT count(*) FROM models"), 1)
            result["sql in one"] = median_ms(
                lambda: opened.sql("SELECT count(*) FROM parameters WHERE model = ?", [name]), 3
            )
            result["sql in all"] = median_ms(lambda: opened.sql("SELECT count(*) FROM parameters"), 3)
    return result


def main() -> None:
    sizes = [int(each) for each in sys.argv[1:]] or list(SIZES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = Options(top_k=10, pair_k=10, neighbor_k=1, directions_k=0, reading="embedding", device="cpu")
        one = build([f"added={ROOT / 'data' / 'models' / 'tiny-a'}"], folder / "one.atlas", options)
        every = {}
        for n in sizes:
            every[n] = measured(alike(one, n, folder / "x.atlas"), one)
            shutil.rmtree(folder / "x.atlas")
            print(f"{n} models: done", file=sys.stderr)
    rows = []
    for what in max(every.values(), key=len):
        row: dict[str, str] = {"milliseconds": what}
        for n in sizes:
            took, least = every[n].get(what), every[sizes[0]].get(what)
            row[f"{n:,}"] = "" if took is None else f"{took:,.1f}"
            row[f"ratio {n:,}"] = "" if took is None or not least else f"{took / least:.2f}"
        rows.append({key: value for key, value in row.items() if key != f"ratio {sizes[0]:,}"})
    print(Result(pa.Table.from_pylist(rows), "An atlas of so many models"))


if __name__ == "__main__":
    main()
