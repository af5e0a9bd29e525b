"""The server under load answers its pages: a small form of ``benchmarks/load.py``, which measures it."""

from __future__ import annotations

import statistics
from importlib import util
from pathlib import Path

import pytest

pytestmark = pytest.mark.waits
LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"


@pytest.mark.skipif(not LOAD.is_file(), reason="the benchmarks are not here")
def test_pages_are_answered_under_load(small_atlas: Path) -> None:
    spec = util.spec_from_file_location("load", LOAD)
    assert spec is not None
    assert spec.loader is not None
    load = util.module_from_spec(spec)
    spec.loader.exec_module(load)
    pages = ["/", "/gpt2-a", "/gpt2-a/L0/ff_value/3", "/gpt2-a/L0/H1.json"]
    lookups = [f"/similar?address=gpt2-a/L0/ff_value/{n}&model=all&k=200" for n in range(8)]
    with load.served(small_atlas) as where:
        for page in pages:
            assert load.get(where, page) == 200
        took, said = load.pages_under_load(where, pages, load.FREEZING, lookups, 8)
    seconds = [each for found in took.values() for each in found]
    assert len(seconds) > 20
    assert statistics.median(seconds) < 0.5
    assert statistics.quantiles(seconds, n=20)[-1] < 2  # one second on a machine that has nothing else to do
    assert set(said["look-ups"]) <= {"200", "429", "503"}
    assert set(said["SQL"]) <= {"200", "400"}
