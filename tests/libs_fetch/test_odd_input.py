"""Odd answers, archives, state and libraries: always an error of this package, never a hang."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import FetchError, LibraryLoadError, LibraryNotFoundError, LlamaError
from llama_cffi.libs_fetch import available, elf, ensure, exported_symbols, http, store
from llama_cffi.libs_fetch.archive import extract

pytestmark = pytest.mark.usefixtures("linux")
PACKAGE = "@node-llama-cpp/linux-x64"
RELEASES = "/repos/ggml-org/llama.cpp/releases"
ODD: list[Any] = [None, True, 3, -1, 1.5, "", "x", "http://[", "\0", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("key", ["whole", "versions", "9.9.9", "dist", "integrity", "tarball"])
def test_an_odd_package_document(registry: Any, make: Any, key: str, odd: Any) -> None:
    registry.npm(PACKAGE, "9.9.9", make.npm_files())
    reply = registry.replies[f"/{PACKAGE}"]
    document = json.loads(reply.body)
    entry = document["versions"]["9.9.9"]
    homes = {"versions": document, "9.9.9": document["versions"], "dist": entry}
    if key == "whole":
        document = odd
    else:
        homes.get(key, entry["dist"])[key] = odd
    reply.body = json.dumps(document).encode()
    if key == "tarball" and odd and isinstance(odd, str):
        # The registry's own address is tried first, and the file there has the right hash.
        assert ensure("npm:9.9.9", backend="cpu", progress=False).version == "9.9.9"
        return
    with pytest.raises(FetchError):
        ensure("npm:9.9.9", backend="cpu", progress=False)


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("key", ["whole", "assets", "asset", "name", "size", "digest", "url"])
def test_an_odd_release(registry: Any, make: Any, key: str, odd: Any) -> None:
    name = "llama-b1-bin-ubuntu-x64.tar.gz"
    registry.release("b1", {name: make.tgz({"b/libllama.so": make.elf()})})
    reply = registry.replies[f"{RELEASES}/tags/b1"]
    document = json.loads(reply.body)
    (asset,) = document["assets"]
    if key == "whole":
        document = odd
    elif key == "assets":
        document["assets"] = odd
    elif key == "asset":
        document["assets"] = [odd]
    else:
        asset["browser_download_url" if key == "url" else key] = odd
    reply.body = json.dumps(document).encode()
    with contextlib.suppress(FetchError):
        assert ensure("github:b1", backend="cpu", progress=False).version == "b1"
    registry.replies[f"{RELEASES}?per_page=30"] = registry.Reply(json.dumps(odd).encode())
    with contextlib.suppress(FetchError):
        assert available("github") == []


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"NaN", b"9" * 10_000, b"\0"]
)
def test_an_odd_json_body(registry: Any, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr(http, "RETRIES", 0)
    registry.replies[f"/{PACKAGE}"] = registry.Reply(body)
    with pytest.raises(FetchError):
        ensure("npm:9.9.9", backend="cpu", progress=False)


def odd_archives() -> list[bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("libllama.so", b"x" * 100)
    plain = out.getvalue()
    at = plain.index(b"PK\x01\x02")
    encrypted = bytearray(plain)
    encrypted[6] |= 1
    encrypted[at + 8] |= 1
    method = bytearray(plain)
    method[8] = method[at + 10] = 99
    version = bytearray(plain)
    version[at + 6] = 250
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("x" * 300)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    tar_bytes = bytearray(out.getvalue())
    tar_bytes[124:136] = b"\xff" * 12
    return [
        bytes(encrypted),
        bytes(method),
        bytes(version),
        bytes(tar_bytes),
        b"BZh9",
        b"\xfd7zXZ\0",
    ]


def test_odd_archives(tmp_path: Path, make: Any) -> None:
    rng = random.Random(1)
    bodies = odd_archives()
    for whole in (make.tgz({"a/b": b"x" * 500}), make.zipped({"a/b": b"x" * 500, "c": "a/b"})):
        for _ in range(150):
            body = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            bodies.append(bytes(body))
    n_refused = 0
    for n, body in enumerate(bodies):
        packed, into = tmp_path / f"{n}.bin", tmp_path / str(n)
        packed.write_bytes(body)
        into.mkdir()
        try:
            extract(packed, into, lambda _: lambda path: path)
        except OSError:  # FetchError, or the disk's, such as a name that is too long
            n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_odd_state_is_made_anew(published: Any, cache: Path, odd: Any) -> None:
    build = ensure("npm:3.20.0", backend="cpu", progress=False)
    wrong = [odd, {"use": odd}, {"use": [odd]}, {"use": [{"spec": odd, "backend": odd}]}]
    wrong += [{"latest": odd}, {"latest": {"npm": odd}}, {"chosen": odd}]
    wrong += [{"chosen": {"npm:3.20.0 cpu": odd}}]
    for state in wrong:
        (cache / "state.json").write_text(json.dumps(state))
        assert ensure("npm:3.20.0", backend="cpu", offline=True) == build
        for spec in (None, "latest"):
            with pytest.raises(LlamaError):
                ensure(spec, backend="vulkan", offline=True)


def test_odd_libraries(tmp_path: Path, make: Any) -> None:
    rng = random.Random(2)
    good = make.elf(needed=("libm.so.6",), versions={"libc.so.6": ("GLIBC_2.2.5",)})
    path = tmp_path / "libllama.so"
    bodies = [b"", b"\x7fELF", good[:5] + b"\2" + good[6:], good[:4] + b"\1" + good[5:], good[:80]]
    for _ in range(400):
        body = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            body[rng.randrange(len(body))] = rng.choice((0, 1, 127, 128, 255))
        bodies.append(bytes(body))
    n_refused = 0
    for body in bodies:
        path.write_bytes(body)
        try:
            exported_symbols(path)
            elf.required_versions(path)
            elf.defined_versions(path)
            ensure(str(path))
        except LibraryLoadError:
            n_refused += 1
    assert n_refused > 50


@pytest.mark.skipif(os.name == "nt", reason="makes a FIFO")
@pytest.mark.parametrize("name", ["libllama.so", "libggml-x.so", "libggml-cuda.so"])
def test_a_fifo_is_never_waited_for(tmp_path: Path, make: Any, name: str) -> None:
    (tmp_path / "libllama.so").write_bytes(make.elf())
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    for spec in (str(tmp_path), str(tmp_path / "libllama.so")):
        with pytest.raises((LibraryLoadError, LibraryNotFoundError)):
            ensure(spec)
    with pytest.raises(LibraryLoadError, match="not a regular file"):
        exported_symbols(tmp_path / name)


def test_a_huge_folder_is_not_searched_whole(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_SEARCHED", 50)
    for n in range(100):
        (tmp_path / f"{n:03}").mkdir()
    (tmp_path / "099" / "libllama.so").write_bytes(make.elf())
    with pytest.raises(LibraryNotFoundError, match="among the first 50 files"):
        ensure(str(tmp_path))
    with pytest.raises(LibraryNotFoundError, match=r"llama\.dll; it holds nothing"):
        ensure(str(tmp_path / "001"))
    assert ensure(str(tmp_path / "099")).library.is_file()


@pytest.mark.parametrize("path", ["/" + "x" * 5000, "/proc/self/mem/x", "/dev/null"])
def test_an_odd_path(path: str) -> None:
    with pytest.raises(LibraryNotFoundError):
        ensure(f"path:{path}")
