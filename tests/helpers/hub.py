"""An imitation of the Hugging Face hub on this machine: of what huggingface_hub asks for, just that.

with Hub({"owner/model": {"main": folder, "step1000": other}}) as hub:
    hub.url         # what to give huggingface_hub as its endpoint
    hub.fetched     # the files of which the contents were asked for, in order
    hub.fault       # called before each answer with the request; true where it has answered
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit


def commit_of(folder: Path) -> str:
    """The commit that a folder is served as."""
    return hashlib.sha1(str(folder).encode()).hexdigest()  # as git has it


class Hub:
    """Serves repositories, each a dict of revisions and the folders that they stand for, while it is open."""

    def __init__(self, repositories: dict[str, dict[str, Path]]) -> None:
        self.repositories = repositories
        self.fetched: list[str] = []
        self.fault: Callable[[BaseHTTPRequestHandler], bool] = lambda _: False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if self.fault(request):
            return None
        parts = unquote(urlsplit(request.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        revisions = self.repositories.get("/".join(parts[:2]))
        if revisions is None:
            return send(request, 404, {"X-Error-Code": "RepoNotFound"})
        folders = {**revisions, **{commit_of(folder): folder for folder in revisions.values()}}
        what, revision, *rest = parts[2:] if len(parts) > 3 else ("revision", "main")
        folder = folders.get(revision)
        if folder is None:
            return send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if api and what == "revision":
            about = {"id": "/".join(parts[:2]), "sha": commit_of(folder), "siblings": [{"rfilename": n} for n in names]}
            return send(request, 200, {"Content-Type": "application/json"}, json.dumps(about).encode())
        if api and what == "tree":
            tree = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in zip(names, files, strict=True)
            ]
            return send(request, 200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        name = "/".join(rest)
        if api or what != "resolve" or name not in names:
            return send(request, 404, {"X-Error-Code": "EntryNotFound"})
        if request.command == "GET":
            self.fetched.append(name)
        body = (folder / name).read_bytes()
        return send(request, 200, {"ETag": f'"{_etag(folder / name)}"', "X-Repo-Commit": commit_of(folder)}, body)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()  # as git has it


def send(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
    request.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(body))}).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
