"""Ask the server from many clients at a time, and print how long an answer takes beside the same call in-process; and
how long after a click a browser first paints.

    python benchmarks/serve.py demo.atlas [--clients 32] [--seconds 60] [--loads 15]

The server runs in a process of its own on loopback; every client asks one question after the other, without a pause.
The call in-process is the one that the server makes, on the same atlas, alone. One process answers all clients, so with
n of them an answer waits for about n others: the ratio for one client says what HTTP adds, that for all what waiting
adds. First paints are of chromium, by its own account, from a click to what is first seen, of pages that it has not
seen: other heads, parameters and maps of a model; once more in a browser that has neither style sheet nor scripts. The
server has nothing else to do then.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow as pa

import paramdex
from paramdex.result import Result
from paramdex.web.cards import questions
from paramdex.web.cards.parameter import parameter_card


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def ask_for(
    address: tuple[str, int],
    paths: Callable[[random.Random], str],
    clients: int,
    seconds: float,
) -> list[float]:
    """Milliseconds of every answer that ``clients`` got in ``seconds``. Raises SystemExit where one is no success."""
    took: list[float] = []
    failed: list[str] = []
    end = time.monotonic() + seconds

    def client(seed: int) -> None:
        pick = random.Random(seed)
        connection = HTTPConnection(*address, timeout=60)
        while time.monotonic() < end:
            path = paths(pick)
            started = time.perf_counter()
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
            except OSError as error:
                failed.append(f"{path}: {error}")
                return
            took.append(1000 * (time.perf_counter() - started))
            if answer.status != 200:
                failed.append(f"{path}: {answer.status}")
        connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(took)} failed: {failed[0]}")
    return took


def alone(call: Callable[[random.Random], object], times: int = 60) -> list[float]:
    """Milliseconds of a call in-process, after ten to warm up."""
    pick, took = random.Random(0), []
    for n in range(times + 10):
        started = time.perf_counter()
        call(pick)
        if n >= 10:
            took.append(1000 * (time.perf_counter() - started))
    return took


def first_paints(url: str, paths: dict[str, Callable[[random.Random], str]], loads: int) -> list[dict[str, object]]:
    """Milliseconds to the first contentful paint of each kind of page; no rows where there is no chromium to ask."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if not chromium:
        print("first paints are left out: they need chromium, and pip install playwright")
        return []
    rows: list[dict[str, object]] = []
    paint = """new Promise((done) => new PerformanceObserver((seen) => {
        for (const each of seen.getEntriesByName("first-contentful-paint")) done(each.startTime);
    }).observe({type: "paint", buffered: true}))"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, path in paths.items():
            pick, took, served, new = random.Random(0), [], [], []
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            for n in range(loads + 2):
                page.goto(f"{url}{path(pick)}")
                took.append(page.evaluate(paint))
                served.append(page.evaluate("performance.getEntriesByType('navigation')[0].responseStart"))
                if n % 3 == 2:
                    fresh = browser.new_context(viewport={"width": 1280, "height": 900})
                    first = fresh.new_page()
                    first.goto(f"{url}{path(pick)}")
                    new.append(first.evaluate(paint))
                    fresh.close()
            context.close()
            took, served = took[2:], served[2:]
            rows.append(
                {
                    "page": name,
                    "first byte median ms": statistics.median(served),
                    "first paint median ms": statistics.median(took),
                    "first paint p95 ms": percentile(took, 0.95),
                    "with nothing cached": statistics.median(new),
                }
            )
        browser.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("atlas", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="for each of the three questions")
    parser.add_argument("--loads", type=int, default=15, help="of each page in a browser")
    options = parser.parse_args()
    atlas = paramdex.open(options.atlas)
    model = atlas.models.get("minilm") or next(iter(atlas.models.values()))
    query = (
        "SELECT text FROM tokens "
        "WHERE vocabulary = ? AND is_alnum AND is_word_start AND NOT is_special AND len(text) > 3"
    )
    words = [row["text"] for row in atlas.sql(query, [model.vocabulary])]
    runs, kinds = model.layout.of("ff_value"), model.layout.kinds

    def address(pick: random.Random) -> str:
        run = pick.choice(runs)
        return f"{model.name}/L{run.layer}/ff_value/{pick.randrange(run.size)}"

    asked: dict[str, tuple[Callable[[random.Random], str], Callable[[random.Random], object]]] = {
        "/MODEL/L3/ff_value/N.json": (
            lambda pick: f"/{address(pick)}.json",
            lambda pick: parameter_card(atlas, atlas.address(address(pick))).model_dump_json(),
        ),
        "/find.json": (
            lambda pick: f"/find.json?q={quote(pick.choice(words))}&model={model.name}",
            lambda pick: questions.find(atlas, pick.choice(words), model=model.name).model_dump_json(),
        ),
        "/search.json": (
            lambda pick: f"/search.json?q={quote(pick.choice(words))}&model={model.name}",
            lambda pick: questions.search(atlas, pick.choice(words), model=model.name).model_dump_json(),
        ),
    }
    pages: dict[str, Callable[[random.Random], str]] = {
        "/": lambda pick: f"/?{pick.random()}",
        "/MODEL": lambda pick: f"/{model.name}?kind={pick.choice(kinds)}&{pick.random()}",
        "/MODEL/L3/H5": lambda pick: "/" + address(pick).partition("/ff")[0] + f"/H{pick.randrange(n_heads)}",
        "/MODEL/L3/ff_value/N": lambda pick: f"/{address(pick)}",
    }
    n_heads = model.layout.heads(model.layout.attention_places[0]).n_owners
    rows, paints = [], []
    command = [sys.executable, "-m", "paramdex", "serve", str(options.atlas), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = urlsplit(next(word for word in server.stdout.readline().split() if word.startswith("http")))
            where = (str(url.hostname), int(url.port or 80))
            paints = first_paints(url.geturl().rstrip("/"), pages, options.loads)
            for name, (paths, call) in asked.items():
                base = alone(call)
                ask_for(where, paths, 2, 2)
                one = ask_for(where, paths, 1, min(5, options.seconds))
                many = ask_for(where, paths, options.clients, options.seconds)
                p95 = percentile(base, 0.95)
                rows.append(
                    {
                        "question": name,
                        "in-process median ms": statistics.median(base),
                        "in-process p95 ms": p95,
                        "1 client p95 ms": percentile(one, 0.95),
                        "ratio": percentile(one, 0.95) / p95,
                        f"{options.clients} clients p95 ms": percentile(many, 0.95),
                        f"ratio of {options.clients}": percentile(many, 0.95) / p95,
                        "answers/s": len(many) / options.seconds,
                        "errors": 0,
                    }
                )
        finally:
            server.terminate()
    for found in (paints, rows):
        if found:
            print(Result(pa.Table.from_pylist(found)))


if __name__ == "__main__":
    main()
