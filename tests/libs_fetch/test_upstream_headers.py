from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import FetchError, LibraryNotFoundError
from llama_cffi.libs_fetch import InstalledBuild, ensure, headers, npm, store

pytestmark = pytest.mark.usefixtures("linux")
SOURCE = {
    "include/llama.h": "// llama",
    "include/llama-cpp.h": "// c++",
    "ggml/include/ggml.h": "// ggml",
    "ggml/include/ggml-backend.h": "// backend",
    "ggml/include/gguf.h": "// gguf",
    "tools/mtmd/mtmd.h": "// mtmd",
    "tools/mtmd/mtmd-helper.h": "// helper",
    "tools/mtmd/clip.h": "// internal",
    "src/llama-hparams.h": "// internal",
    "README.md": "text",
}
NAMES = {
    "llama.h",
    "ggml.h",
    "ggml-backend.h",
    "gguf.h",
    "mtmd.h",
    "mtmd-helper.h",
}


@pytest.fixture
def bundle(tmp_path: Path) -> bytes:
    """Make a git bundle like the one in the npm package."""
    tree = tmp_path / "tree"
    for name, text in SOURCE.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.invalid"]
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        [*identity, "commit", "-q", "-m", "source"],
        ["bundle", "create", "-q", str(tmp_path / "b"), "HEAD"],
    ):
        subprocess.run(["git", *command], cwd=tree, env=env, check=True)
    return (tmp_path / "b").read_bytes()


@pytest.fixture
def published(registry: Any, bundle: bytes) -> Any:
    registry.npm("node-llama-cpp", "3.17.1", {"package/llama/gitRelease.bundle": bundle})
    return registry


def test_headers_from_the_bundle_in_the_npm_package(published: Any, cache: Path) -> None:
    folder = headers("b8179", progress=False)
    assert folder == cache / "headers" / "b8179"
    assert {path.name for path in folder.iterdir()} == {*NAMES, store.RECEIPT}
    assert (folder / "llama.h").read_text() == "// llama"
    seen = len(published.seen)
    assert headers("b8179") == headers("npm:3.17.1") == headers("github:b8179") == folder
    assert len(published.seen) == seen
    assert list((cache / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "no receipt", "empty"])
def test_damaged_headers_are_fetched_again(published: Any, damage: str) -> None:
    folder = headers("b8179", progress=False)
    if damage == "changed":
        (folder / "llama.h").write_text("// lla")
    elif damage == "removed":
        (folder / "ggml.h").unlink()
    elif damage == "added":
        (folder / "other.h").write_text("")
    elif damage == "no receipt":
        (folder / store.RECEIPT).unlink()
    else:
        (folder / store.RECEIPT).write_text("{}")
    assert headers("b8179", progress=False) == folder
    assert {path.name for path in folder.iterdir()} == {*NAMES, store.RECEIPT}
    assert (folder / "llama.h").read_text() == "// llama"


def test_headers_of_an_installed_build(published: Any, make: Any) -> None:
    published.npm("@node-llama-cpp/linux-x64", "3.17.1", make.npm_files("b8179"))
    build = ensure("npm:3.17.1", progress=False)
    assert (headers(build, progress=False) / "ggml.h").is_file()


def test_headers_from_the_source_archive(registry: Any, make: Any, cache: Path) -> None:
    path = "/ggml-org/llama.cpp/archive/refs/tags/b11549.tar.gz"
    files = {f"llama.cpp-b11549/{name}": text.encode() for name, text in SOURCE.items()}
    registry.replies[path] = registry.Reply(make.tgz(files))
    folder = headers("b11549", progress=False)
    assert {path.name for path in folder.iterdir()} == {*NAMES, store.RECEIPT}
    registry.replies[path.replace("b11549", "b7")] = registry.Reply(make.tgz({"x/README": b""}))
    with pytest.raises(FetchError, match=r"no include/llama\.h"):
        headers("b7", progress=False)
    registry.replies[path.replace("b11549", "b8")] = registry.Reply(b"no archive")
    with pytest.raises(FetchError, match="is damaged"):
        headers("b8", progress=False)


def test_github_is_tried_where_git_is_missing(
    published: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match=r"git is not installed.*LLAMA_CFFI_HEADERS"):
        headers("b8179", progress=False)
    path = "/ggml-org/llama.cpp/archive/refs/tags/b8179.tar.gz"
    files = {f"llama.cpp-b8179/{name}": text.encode() for name, text in SOURCE.items()}
    published.replies[path] = published.Reply(make.tgz(files))
    assert (headers("b8179", progress=False) / "llama.h").is_file()


def test_a_damaged_bundle_is_named(registry: Any, cache: Path) -> None:
    registry.npm("node-llama-cpp", "3.17.1", {"package/llama/gitRelease.bundle": b"nonsense"})
    with pytest.raises(FetchError, match=r"`git clone` on the bundled source ended with"):
        headers("b8179", progress=False)
    registry.npm("node-llama-cpp", "3.16.2", {"package/other": b""})
    npm._document.cache_clear()
    with pytest.raises(FetchError, match=r"holds no package/llama/gitRelease\.bundle"):
        headers("b8121", progress=False)
    assert not (cache / "headers").exists()


def test_headers_from_llama_cffi_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Any
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_HEADERS", str(tmp_path))
    with pytest.raises(LibraryNotFoundError, match=r"LLAMA_CFFI_HEADERS=.* holds no llama\.h"):
        headers("b8179")
    (tmp_path / "llama.h").write_text("")
    assert headers("b8179") == tmp_path


def test_offline_and_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Any
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_OFFLINE", "1")
    with pytest.raises(FetchError, match="LLAMA_CFFI_OFFLINE is set"):
        headers("b8179")
    build = InstalledBuild("path", "", "cpu", None, tmp_path / "l", tmp_path, "", None)
    with pytest.raises(FetchError, match=r"tag of .* is unknown"):
        headers(build)


def test_git_is_installed() -> None:
    assert shutil.which("git"), "these tests need git"
