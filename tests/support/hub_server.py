"""A server with the API of the Hugging Face hub, for the real client."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


OLD_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Hub:
    """The content of the server, its errors, and the requests it received."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    status: int = 0
    ranges: bool = True
    failures: list[int] = field(default_factory=list)  # statuses of the next answers with a file
    sent: int = 0  # bytes of files
    tokens: list[str] = field(default_factory=list)  # that the place of the files received
    asked: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        if hub.status:
            return self.send(hub.status, {"Retry-After": "0"})
        if self.headers.get("authorization") == "Bearer hf_wrong":
            return self.send(
                401, {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.repository(api[1], api[2] or "main")
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.file(file[1], file[2], file[3])
        if blob := re.fullmatch(r"/cdn/(\w+)", path):
            return self.blob(blob[1])
        return self.send(404, {})

    def missing(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.repos:
            self.send(401, {"X-Error-Message": "Invalid username or password."})
        elif revision not in self.hub.repos[repo]:
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def repository(self, repo: str, revision: str) -> None:
        if self.missing(repo, revision):
            return
        facts = {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "sha": OLD_COMMIT if revision == "old" else COMMIT,
            "private": False,
            "gated": "manual" if repo in self.hub.gated else False,
            "tags": ["gguf"],
            "downloads": 1,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in self.hub.repos[repo][revision]],
        }
        self.send(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def file(self, repo: str, revision: str, name: str) -> None:
        if self.missing(repo, revision):
            return
        commit = OLD_COMMIT if revision == "old" else COMMIT
        if repo in self.hub.gated:
            message = f"Access to model {repo} is restricted."
            return self.send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        data = self.hub.repos[repo][revision].get(name)
        if data is None:
            return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        digest = hashlib.sha256(data).hexdigest()
        return self.send(
            302,
            {
                # On another host, like the real hub: the client follows redirects within one host.
                "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{digest}",
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{digest}"',
                "ETag": f'"{digest}"',
            },
        )

    def blob(self, digest: str) -> None:
        if self.hub.failures:
            return self.send(self.hub.failures.pop(0), {"Retry-After": "0"})
        files = (f for r in self.hub.repos.values() for v in r.values() for f in v.values())
        data = next(f for f in files if hashlib.sha256(f).hexdigest() == digest)
        headers, status = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}, 200
        self.hub.tokens += self.headers.get_all("authorization") or []
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if asked and self.hub.ranges:
            begin, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {begin}-{last}/{len(data)}"
            data, status = data[begin : last + 1], 206
        if self.command == "GET":
            self.hub.sent += len(data)
        return self.send(status, headers, data)

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
