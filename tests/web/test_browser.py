"""In a real browser: the way through the pages, at both widths and in both themes, by keyboard, with nothing amiss.

Debian's chromium is used; where it is missing and cannot be installed, the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import paramdex
from paramdex.web.app import make_app

SIZES = [(400, 800), (1280, 900)]
LOOKS = [(size, theme) for size in SIZES for theme in ("light", "dark")]
PAGES = [
    "/", "/tiny-a", "/tiny-a/L2", "/tiny-a/L2/H1?k=10&alnum=true&contains=a", "/minilm/L3/ff_value/7?ascii=true",
    "/find?q=tax", "/search?q=tax&side=both", "/ask?q=tax%20budget", "/align", "/align/tiny-a/tiny-wide",
    "/similar?address=tiny-a/L3/ff_value/9&model=tiny-b", "/similar?address=tiny-a/L1/H2&model=minilm", "/docs",
    "/sql?q=SELECT%20*%20FROM%20neighbors%20LIMIT%203",
    "/align/tiny-a/tiny-b/pairs?kind=ff_value&layer_a=L1&layer_b=L1&k=5", "/minilm/L99/ff_value/1", "/find?q=zzzzzz",
    "/sql?q=SELECT%20nope%20FROM%20heads",
]  # fmt: skip
"""One of each kind."""


@pytest.fixture(scope="module")
def chromium() -> str:
    def found() -> str | None:
        return shutil.which("chromium") or shutil.which("chromium-browser")

    if not found() and os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(command, capture_output=True, check=False, timeout=600)
    path = found()
    if path is None:
        pytest.skip("there is no chromium; install it with: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def url(demo_atlas: Path) -> Iterator[str]:
    """The demo atlas, served on a port of this machine."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()  # connections wait until the server takes them
        server = uvicorn.Server(uvicorn.Config(make_app(paramdex.open(demo_atlas)), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page of a browser, and what went wrong on it."""

    def __init__(self, browser: Any, url: str, size: tuple[int, int], theme: str) -> None:
        self.url = url
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, accept_downloads=True
        )
        self.context.set_default_timeout(20_000)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(url) else self.wrong.append(f"asked {r.url}"))

    def check(self) -> None:
        """Nothing wider than the window, and nothing amiss."""
        assert not self.page.evaluate("document.documentElement.scrollWidth > innerWidth"), self.page.url
        assert self.wrong == [], self.page.url

    def check_faults(self, *rules: str) -> None:
        """axe finds no serious fault; without rules by all of its own."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
        found = Axe().run(self.page, options=options).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == [], self.page.url


@pytest.fixture
def watched(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Watched]:
    size, theme = getattr(request, "param", (SIZES[1], "light"))
    one = Watched(browser, url, size, theme)
    yield one
    one.context.close()


@pytest.mark.parametrize("watched", LOOKS, indirect=True)
def test_the_way_through(watched: Watched) -> None:
    """Home, a word, a parameter, its neighbour in another model, its head, two models compared, SQL, a download."""
    page = watched.page
    page.goto(watched.url)
    watched.check()
    page.get_by_label("Words, a token or an address").last.fill("tax budget")
    page.get_by_label("Ask the atlas").get_by_role("button", name="Ask").click()
    page.get_by_role("heading", name="Has these tokens among its strongest").wait_for()
    watched.check()

    page.locator("table.list a.address[href^='/tiny-'][href*='/ff_']").first.click()
    page.get_by_role("heading", name="Top tokens").wait_for()
    watched.check()
    before = page.url
    own = before.removeprefix(watched.url).split("/")[1]
    other = page.locator(
        f"section[aria-label^='Nearest in tiny-']:not([aria-label='Nearest in {own}']) a.address"
    ).first
    other.click()
    page.wait_for_url(lambda there: there != before)
    page.go_back()
    assert page.url == before

    page.goto(f"{watched.url}/minilm/L3/H1/attn_query/5")
    page.locator("[data-load]").first.scroll_into_view_if_needed()
    page.locator("section[aria-label='Nearest in tiny-a'] a.address").first.wait_for()  # fetched when it came into view
    page.get_by_label("Where this is").get_by_role("link", name="minilm/L3/H1", exact=True).click()
    page.get_by_role("heading", name="Its vectors").wait_for()
    watched.check()
    page.get_by_label("all", exact=True).check()
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**/minilm/L3/H1?words=all*")

    page.goto(f"{watched.url}/align")
    page.locator("select[name=b]").select_option("tiny-c")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/align/tiny-a/tiny-c")
    watched.check()
    page.get_by_role("link", name="L2 of tiny-a, L2 of tiny-c", exact=False).first.click()
    page.get_by_text("The most similar pairs of ff_key vectors").first.wait_for()
    watched.check()

    page.goto(f"{watched.url}/sql")
    watched.check()
    page.get_by_label("Query").fill("SELECT address, vo_norm FROM heads ORDER BY vo_norm DESC LIMIT 3")
    page.keyboard.press("Control+Enter")
    page.get_by_text("3 rows in").wait_for()
    watched.check()
    for name, beginning in (("CSV", b"address,vo_norm"), ("JSON", b"{"), ("Parquet", b"PAR1")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name, exact=True).click()
        assert Path(download.value.path()).read_bytes().startswith(beginning)
    page.locator("table.rows a.address").first.click()
    page.get_by_role("heading", name="Its vectors").wait_for()
    page.go_back()
    assert page.get_by_label("Query").input_value().startswith("SELECT address")
    watched.check()


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("watched", [(SIZES[0], "dark"), (SIZES[1], "light")], indirect=True)
def test_no_page_has_a_serious_fault(watched: Watched, path: str) -> None:
    """At both widths and in both themes; colours are what the other theme changes."""
    status = watched.page.goto(watched.url + path).status
    if status != 200:
        assert 400 <= status < 500
        assert "the server responded with a status of" in watched.wrong.pop()  # the browser's own word for it
    watched.check()
    watched.check_faults()
    dark = watched.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    watched.page.emulate_media(color_scheme="light" if dark else "dark")
    watched.check_faults("color-contrast", "link-in-text-block")


def test_errors_are_pages_too(watched: Watched) -> None:
    watched.page.goto(f"{watched.url}/minilm/L99/ff_value/1")
    watched.page.get_by_role("link", name="minilm/L5/ff_value/1", exact=True).click()
    watched.page.get_by_role("heading", name="Top tokens").wait_for()


@pytest.mark.parametrize("watched", [(SIZES[0], "light"), (SIZES[1], "dark")], indirect=True)
def test_what_is_chosen_stands_in_the_address(watched: Watched) -> None:
    """And nothing that was left as it was; back leads to what was chosen before."""
    page = watched.page
    page.goto(f"{watched.url}/minilm/L3/H1")
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("letters and digits").check()
    page.get_by_label("with the text").fill("limit")
    page.keyboard.press("Enter")
    page.wait_for_url("**/minilm/L3/H1?words=different&k=20&alnum=true&contains=limit")
    chips = page.locator("section[aria-label='QK top'] tbody th")
    page.get_by_role("link", name="Reset").wait_for()
    assert 0 < chips.count() < 20
    assert all("limit" in chip for chip in chips.all_text_contents())
    page.get_by_label("with the text").fill("")
    page.get_by_label("at least").fill("9.8")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url("**/minilm/L3/H1?words=different&k=20&alnum=true&min_z=9.8")
    page.go_back()
    page.wait_for_url("**&contains=limit")
    assert page.get_by_label("with the text").input_value() == "limit"
    assert page.get_by_label("letters and digits").is_checked()
    page.get_by_role("link", name="Reset").click()
    page.wait_for_url("**/minilm/L3/H1")
    page.get_by_text("Filters", exact=True).wait_for()
    assert chips.count() == 20


def test_copy_buttons_copy(watched: Watched) -> None:
    page = watched.page
    watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{watched.url}/minilm/L3/ff_value/7")
    copied = lambda: page.evaluate("navigator.clipboard.readText()")  # noqa: E731
    page.get_by_role("button", name="Copy address").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert copied() == "minilm/L3/ff_value/7"
    page.get_by_role("button", name="Copy SQL").click()
    page.get_by_role("button", name="Copied").last.wait_for()
    assert copied().startswith("SELECT side, rank, text, score\nFROM parameter_tokens")
    page.goto(f"{watched.url}/sql")
    page.get_by_label("Query").fill(copied())
    page.keyboard.press("Control+Enter")
    page.get_by_text("40 rows in").wait_for()


def test_by_keyboard_alone(watched: Watched) -> None:
    """Past the skip link to the search box, and through a map with the arrows."""
    page = watched.page
    page.goto(f"{watched.url}/tiny-a")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    cells = page.locator("table.heat a[aria-label]")
    cells.first.focus()
    for key in ("ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("tiny-a/L1/H1: vo_norm")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tiny-a/L1/H1")
    page.get_by_label("Words, a token or an address").focus()
    page.keyboard.type("tiny-b/L0/ff_value/5")
    page.keyboard.press("Enter")
    page.get_by_text("Understood as an address").wait_for()


def test_the_theme_is_kept(watched: Watched) -> None:
    page = watched.page
    page.goto(watched.url)
    page.get_by_role("button", name="Switch between light and dark").click()
    page.goto(f"{watched.url}/tiny-a")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    watched.check()


def test_what_is_slow_says_so(watched: Watched) -> None:
    """The bar shows while a slow query runs, which the page that follows is told by what the page before wrote down."""
    page = watched.page
    page.goto(f"{watched.url}/sql")
    page.evaluate(
        "new MutationObserver(() => sessionStorage.setItem('shown', !document.getElementById('loading').hidden))"
        ".observe(document.getElementById('loading'), {attributes: true})"
    )
    page.get_by_label("Query").fill("SELECT count(*) FROM range(100000000) AS a WHERE hash(a.range) % 7 = 3")
    page.get_by_role("button", name="Run").click()
    page.get_by_text("1 row in").wait_for()
    assert page.evaluate("sessionStorage.getItem('shown')") == "true"
    assert page.locator("#loading").is_hidden()
