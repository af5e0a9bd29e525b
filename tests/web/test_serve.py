"""``paramdex serve``: starts, says where, stops; and what it says where it cannot."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from web_helpers import page, server

SERVE = [sys.executable, "-m", "paramdex", "serve"]


@pytest.mark.waits
def test_it_serves_until_interrupted(small_atlas: Path) -> None:
    with subprocess.Popen([*SERVE, str(small_atlas), "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        assert line == f"{small_atlas} is at {url} (Ctrl+C stops)\n"
        with urllib.request.urlopen(f"{url}.json", timeout=30) as answer:
            assert b'"gpt2-a"' in answer.read()
        with urllib.request.urlopen(f"{url}sql.json?q=SELECT+1+AS+x", timeout=30) as answer:
            assert b'"rows":[{"x":1}]' in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)


@pytest.mark.waits
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_whatever_it_is_asked(small_atlas: Path, stop: signal.Signals) -> None:
    """Who waits is told so, nothing is said of it, and no process is left."""
    endless = "sql.json?q=SELECT+count(*)+FROM+range(10000000)+a,range(10000000)+b"
    command = [*SERVE, str(small_atlas), "--port", "0", "--sql-seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = next(word for word in process.stdout.readline().split() if word.startswith("http://127.0.0.1:"))
        urllib.request.urlopen(f"{url}sql.json?q=SELECT+1", timeout=60).close()
        with ThreadPoolExecutor(6) as threads:
            asked = [threads.submit(urllib.request.urlopen, f"{url}{endless}", timeout=60) for _ in range(6)]
            time.sleep(1)  # some are at work, some wait, and processes start
            children = subprocess.run(
                ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True
            ).stdout.split()
            assert len(children) >= 2
            process.send_signal(stop)
            began = time.monotonic()
            _, said = process.communicate(timeout=60)
            for each in asked:
                with pytest.raises(urllib.error.HTTPError) as error:
                    each.result(60)
                assert (error.value.code, "this server is shutting down" in error.value.read().decode()) == (503, True)
        assert said == ""
        assert process.returncode in (0, 130, -stop)
        assert time.monotonic() - began < 15
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_assets_are_asked_for_once(small_atlas: Path) -> None:
    """Every page names them by what they hold, and a browser may keep them."""
    with server(small_atlas) as client:
        found = [link for _, tag in page(client, "/").tags for link in (tag.get("src"), tag.get("href")) if link]
        linked = [link for link in found if link.startswith("/-/static/")]
        assert len(linked) == 4
        for link in linked:
            answer = client.get(link)
            assert hashlib.sha256(answer.content).hexdigest().startswith(link.partition("?v=")[2])
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("path", ["/", "/gpt2-a", "/gpt2-a/L1/H1", "/gpt2-a/L1/ff_value/3", "/gpt2-a/L1/H1.json"])
def test_what_a_browser_has_is_not_made_again(small_atlas: Path, path: str) -> None:
    with server(small_atlas) as client:
        first = client.get(path)
        assert (first.status_code, first.headers["cache-control"]) == (200, "private, no-cache")
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "content-security-policy" in again.headers
        assert client.get(path, headers={"if-none-match": '"another"'}).content == first.content
        assert "etag" not in client.get("/gpt2-a/L99").headers
    with server(small_atlas) as client:  # started anew, perhaps over another atlas
        assert client.get(path, headers={"if-none-match": first.headers["etag"]}).status_code == 200


def test_sql_is_always_asked(small_atlas: Path) -> None:
    with server(small_atlas) as client:
        assert "etag" not in client.get("/sql.json?q=SELECT+now()").headers


def refused(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [*SERVE, *arguments], capture_output=True, text=True, check=False, timeout=60, env=os.environ | environment
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


def test_a_port_that_is_taken(small_atlas: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert refused(str(small_atlas), "--port", port).startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")


def test_no_atlas(tmp_path: Path) -> None:
    assert refused(str(tmp_path / "no.atlas")).startswith(f"error: {tmp_path}/no.atlas is not an atlas")


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "jinja2"])
def test_without_the_extra_it_says_what_to_install(small_atlas: Path, missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['paramdex', 'serve', {str(small_atlas)!r}]"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nfrom paramdex.cli import main; main()"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: serving needs {missing}; install it with: pip install 'paramdex[web]'\n"


def test_the_query_package_needs_none_of_it(small_atlas: Path) -> None:
    program = """
import sys
import paramdex, paramdex.cli
with paramdex.open(sys.argv[1]) as atlas:
    atlas.find("canada")
assert not {"fastapi", "uvicorn", "jinja2", "pydantic", "starlette"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(small_atlas)], check=True, timeout=60)
