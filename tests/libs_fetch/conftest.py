"""A local HTTP server in the shapes of the npm registry and the GitHub release API.

It serves archives that are made here, with libraries that are small ELF files of just the sections
that the fetcher reads.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.libs_fetch import github, http, machine, npm, npmrc

SYMBOLS = ("llama_backend_init", "llama_decode", "llama_model_default_params", "_ZN5llama3fooEv")
CLEARED = ("LLAMA_CFFI_", "npm_config_", "NPM_CONFIG_", "GITHUB_TOKEN", "CUDA_VISIBLE_DEVICES")
REMEMBERED = (
    npm._document,
    npmrc._ask,
    github._release,
    machine._cuda_driver,
    machine._vulkan_loader,
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def elf(
    code: int = 62,
    needed: tuple[str, ...] = (),
    versions: dict[str, tuple[str, ...]] | None = None,
    symbols: tuple[str, ...] = SYMBOLS,
    filler: int = 0,
) -> bytes:
    """Write a 64-bit little-endian ELF file with .dynstr, .dynsym, .dynamic and .gnu.version_r."""
    strings = bytearray(b"\0")

    def name(text: str) -> int:
        at = len(strings)
        strings.extend(text.encode() + b"\0")
        return at

    dynsym = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", name(s), 0x12, 0, 1, 0x1000, 8) for s in symbols
    )
    dynsym += struct.pack("<IBBHQQ", name("malloc"), 0x12, 0, 0, 0, 0)  # undefined
    dynsym += struct.pack("<IBBHQQ", name("hidden"), 0x12, 2, 1, 0x1000, 8)
    asked = versions or {}
    dynamic = b"".join(struct.pack("<qQ", 1, name(n)) for n in (*needed, *asked)) + bytes(16)
    verneed = bytearray()
    for n, (soname, wanted) in enumerate(asked.items()):
        last = n == len(asked) - 1
        step = 16 + 16 * len(wanted)
        verneed += struct.pack("<HHIII", 1, len(wanted), name(soname), 16, 0 if last else step)
        for m, version in enumerate(wanted):
            end = m == len(wanted) - 1
            verneed += struct.pack("<IHHII", 0, 0, 2, name(version), 0 if end else 16)
    bodies = [(3, bytes(strings), 0, 0), (11, dynsym, 1, 1), (6, dynamic, 1, 0)]
    bodies.append((0x6FFFFFFE, bytes(verneed), 1, len(asked)))
    offset, data, headers = 64, b"", bytes(64)
    for kind, body, link, info in bodies:
        headers += struct.pack("<IIQQQQIIQQ", 0, kind, 2, 0, offset, len(body), link, info, 8, 0)
        data += body
        offset += len(body)
    data += os.urandom(filler)
    start = 64 + len(data)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 3, code, 1, 0, 0, start, 0, 64, 0, 0, 64, 5, 0)
    return ident + head + data + headers


def tgz(members: dict[str, bytes | str]) -> bytes:
    """Pack a .tar.gz; a str value makes a symlink to it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(members: dict[str, bytes | str]) -> bytes:
    """Pack a .zip; a str value makes a symlink to it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            link = isinstance(content, str)
            info.external_attr = (0o120777 if link else 0o100644) << 16
            archive.writestr(info, content)
    return out.getvalue()


def npm_files(
    tag: str = "v0.5.0", variant: str = "", code: int = 62, **more: Any
) -> dict[str, Any]:
    """Return the files of a package, in the layout of real ones."""
    infix = f".{variant}" if variant else ""
    folder = f"package/bins/linux-x64{'-' + variant if variant else ''}"
    return {
        "package/LICENSE": b"MIT",
        "package/dist/index.js": b"// js",
        f"{folder}/_nlcBuildMetadata.json": json.dumps(
            {"buildOptions": {"llamaCpp": {"repo": "ggml-org/llama.cpp", "release": tag}}}
        ).encode(),
        f"{folder}/llama-addon.node": elf(code),
        f"{folder}/libggml-base.so": elf(code),
        f"{folder}/libggml{infix}.{tag}.so": elf(code, needed=("libggml-base.so",)),
        f"{folder}/libllama-common.so": elf(code),
        f"{folder}/libllama{infix}.{tag}.so": elf(code, **more),
        "package/package.json": b"{}",
    }


@dataclass
class Answer:
    """The response to one path, and its faults."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    failures: int = 0  # how many requests get a 500 first
    cut: int = 0  # break off after this many bytes, once
    say_length: bool = True
    chunk_s: float = 0.0  # sleep between 64 KiB blocks


class Server:
    """The local server: replies by path, and a record of the requests."""

    Reply = Answer

    def __init__(self) -> None:
        self.replies: dict[str, Answer] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """Ignore clients that a test has killed."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def asked(self, path: str) -> list[dict[str, str]]:
        return [headers for seen, headers in self.seen if seen == path]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.replace("%2f", "/").replace("%2F", "/")
        self.seen.append((path, dict(request.headers)))
        reply = self.replies.get(path, Answer(b"no such thing", 404))
        body, status, headers = reply.body, reply.status, dict(reply.headers)
        if reply.failures:
            reply.failures -= 1
            body, status = b"sorry", 500
        wanted = request.headers.get("Range")
        if wanted and reply.ranges and status == 200:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                body, status = b"", 416
            else:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body, status = body[start:], 206
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if reply.say_length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if reply.cut and status in (200, 206):
            body, reply.cut = body[: reply.cut], 0
        for at in range(0, len(body), 1 << 16):
            request.wfile.write(body[at : at + (1 << 16)])
            if reply.chunk_s:
                time.sleep(reply.chunk_s)

    def npm(
        self, package: str, version: str, files: dict[str, Any], *, integrity: str | None = None
    ) -> Answer:
        """Publish a package; return the tarball's reply, so that a test can add faults."""
        short = package.rpartition("/")[2]
        path = f"/{package}/-/{short}-{version}.tgz"
        reply = self.replies[path] = Answer(tgz(files))
        digest = base64.b64encode(hashlib.sha512(reply.body).digest()).decode()
        known = self.replies.get(f"/{package}")
        document: dict[str, Any] = {"name": package, "versions": {}}
        if known:
            document = json.loads(known.body)
        document["versions"][version] = {
            "name": package,
            "version": version,
            "dist": {"integrity": integrity or f"sha512-{digest}", "tarball": self.url + path},
        }
        document["dist-tags"] = {"latest": version}
        self.replies[f"/{package}"] = Answer(json.dumps(document).encode())
        return reply

    def release(self, tag: str, assets: dict[str, bytes], *, digests: bool = True) -> None:
        """Publish a GitHub release, in the shape of the API."""
        listed = []
        for name, body in assets.items():
            path = f"/ggml-org/llama.cpp/releases/download/{tag}/{name}"
            self.replies[path] = Answer(body)
            listed.append(
                {
                    "name": name,
                    "size": len(body),
                    "digest": f"sha256:{hashlib.sha256(body).hexdigest()}" if digests else None,
                    "browser_download_url": f"https://github.com{path}",
                }
            )
        document = json.dumps({"tag_name": tag, "assets": listed}).encode()
        api = "/repos/ggml-org/llama.cpp/releases"
        self.replies[f"{api}/tags/{tag}"] = Answer(document)
        self.replies[f"{api}/latest"] = Answer(document)
        self.replies[f"{api}?per_page=30"] = Answer(json.dumps([{"tag_name": tag}]).encode())


@pytest.fixture
def make() -> Any:
    """Return the functions that make archives: elf, tgz, zipped, npm_files."""

    class Make:
        elf = staticmethod(elf)
        tgz = staticmethod(tgz)
        zipped = staticmethod(zipped)
        npm_files = staticmethod(npm_files)

    return Make


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every test its own cache, home and environment, and no delay between retries."""
    for name in list(os.environ):
        if name.startswith(CLEARED) or name.lower() in PROXIES:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    folder = tmp_path / "cache"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LLAMA_CFFI_CACHE", str(folder))
    monkeypatch.chdir(home)
    monkeypatch.setattr(http, "BACKOFF_S", 0.01)
    forget()
    yield folder
    forget()


def forget() -> None:
    """Clear what the process caches about servers and drivers."""
    for remembered in REMEMBERED:
        remembered.cache_clear()


@pytest.fixture
def server() -> Iterator[Server]:
    """Start the local server."""
    made = Server()
    yield made
    made.close()


@pytest.fixture
def registry(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Make the local server the npm registry and the GitHub mirror."""
    monkeypatch.setenv("LLAMA_CFFI_NPM_REGISTRY", server.url)
    monkeypatch.setenv("LLAMA_CFFI_GITHUB", server.url)
    return server


@pytest.fixture
def published(registry: Server) -> Server:
    """Publish three builds for Linux x64."""
    registry.npm("@node-llama-cpp/linux-x64", "3.20.0", npm_files("b10361", filler=200_000))
    registry.npm("@node-llama-cpp/linux-x64", "3.19.1", npm_files("b10068"))
    registry.npm("@node-llama-cpp/linux-x64", "3.19.0", npm_files("b9842"))
    return registry


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that this is a Linux x64 machine with glibc 2.36 and without a GPU."""
    monkeypatch.setattr(machine, "os_name", lambda: "linux")
    monkeypatch.setattr(machine, "arch_name", lambda: "x64")
    monkeypatch.setattr(machine, "glibc", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(machine, "_cuda_driver", lambda: (None, "no NVIDIA driver"))
    monkeypatch.setattr(machine, "_vulkan_loader", lambda: "no Vulkan loader")


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -c code` in this test's environment; killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *before: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*before, sys.executable, "-W", "error", "-c", code],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
