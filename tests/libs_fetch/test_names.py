"""Names from outside become one plain path component of the cache, or are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import FetchError, LlamaError
from llama_cffi.libs_fetch import available, cache_state, ensure, headers, installed, store
from llama_cffi.libs_fetch.local import tag_of
from llama_cffi.libs_fetch.specs import plain_name

pytestmark = pytest.mark.usefixtures("linux")
PACKAGE = "@node-llama-cpp/linux-x64"
RELEASES = "/repos/ggml-org/llama.cpp/releases"

BAD = [
    "../../../victim",
    "..",
    ".",
    "",
    "/victim",
    "a/../../../victim",
    "a/b",
    "a\\b",
    "C:victim",
    ".hidden",
    "-rf",
    "x\0",
    "\x1b[2J",
    "v" * 65,
    "é",
    3,
    None,
    True,
    ["9.9.9"],
    {"9.9.9": 1},
]


@pytest.fixture
def victim(cache: Path) -> Path:
    """Make a folder beside the cache."""
    folder = cache.parent / "victim" / "cpu"
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("x")
    return folder


def written_outside(cache: Path) -> list[str]:
    """List the files below the cache's parent that are not where the store keeps its own."""
    found = [
        os.path.relpath(os.path.join(root, name), cache.parent)
        for root, _, names in os.walk(cache.parent)
        for name in names
    ]
    own = tuple(f"cache/{name}" for name in ("locks/", "builds/npm/", "tmp/", "state.json"))
    return [name for name in found if not name.startswith((*own, "victim/cpu/precious.txt"))]


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_a_registrys_latest_never_leaves_the_cache(
    registry: Any, make: Any, cache: Path, victim: Path, name: object
) -> None:
    registry.npm(PACKAGE, "9.9.9", make.npm_files())
    reply = registry.replies[f"/{PACKAGE}"]
    document = json.loads(reply.body)
    document["versions"][str(name)] = document["versions"]["9.9.9"]
    document["dist-tags"] = {"latest": name}
    reply.body = json.dumps(document).encode()
    if name is None:  # the document names no latest version: the newest is taken
        assert ensure("npm:latest", backend="cpu", progress=False).version == "9.9.9"
    else:
        with pytest.raises(FetchError, match=r"the registry's latest version .* is refused"):
            ensure("npm:latest", backend="cpu", progress=False)
    assert os.listdir(victim) == ["precious.txt"]
    assert written_outside(cache) == []
    assert cache_state.latest("npm") in (None, "9.9.9")


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_a_releases_tag_never_leaves_the_cache(
    registry: Any, cache: Path, victim: Path, name: object
) -> None:
    document = json.dumps({"tag_name": name, "assets": []}).encode()
    registry.replies[f"{RELEASES}/latest"] = registry.Reply(document)
    with pytest.raises(FetchError):
        ensure("github:latest", backend="cpu", progress=False)
    assert os.listdir(victim) == ["precious.txt"]
    assert written_outside(cache) == []
    assert cache_state.latest("github") is None


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_the_store_takes_plain_names_only(cache: Path, name: Any) -> None:
    for names in ((name, "1.0", "cpu"), ("npm", name, "cpu"), ("npm", "1.0", name)):
        with pytest.raises(FetchError, match="is refused: a name is"):
            store.build_folder(*names)
    with pytest.raises(FetchError, match="is refused"):
        plain_name(name, "the tag")


def test_only_plain_versions_are_listed(registry: Any, make: Any) -> None:
    registry.npm(PACKAGE, "9.9.9", make.npm_files())
    for name in ("../x", "\x1b[2J"):
        registry.npm(PACKAGE, name, make.npm_files())
    assert [spec.version for spec in available("npm")] == ["9.9.9"]
    listed = json.dumps([{"tag_name": name} for name in ("b1", *BAD)]).encode()
    registry.replies[f"{RELEASES}?per_page=30"] = registry.Reply(listed)
    assert [spec.version for spec in available("github")] == ["b1"]


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_a_tag_in_a_package_is_plain_or_unknown(
    registry: Any, make: Any, cache: Path, name: Any
) -> None:
    files = make.npm_files("b1")
    metadata = {"buildOptions": {"llamaCpp": {"release": name}}}
    files["package/bins/linux-x64/_nlcBuildMetadata.json"] = json.dumps(metadata).encode()
    registry.npm(PACKAGE, "9.9.9", files)
    build = ensure("npm:9.9.9", backend="cpu", progress=False)
    assert build.tag is None
    assert tag_of(build.folder) == "b1"  # from libllama's file name
    with pytest.raises(FetchError):
        headers(build, progress=False)
    assert not (cache / "headers").exists()


@pytest.mark.parametrize("name", [n for n in BAD if isinstance(n, str) and n], ids=repr)
def test_names_in_the_caches_own_files_are_checked_too(
    published: Any, cache: Path, victim: Path, name: str
) -> None:
    build = ensure("npm:3.20.0", backend="cpu", progress=False)
    state = json.loads((cache / "state.json").read_text())
    for entry in state["chosen"].values():
        entry["variant"] = name
    state["latest"] = {"npm": name}
    (cache / "state.json").write_text(json.dumps(state))
    assert ensure("npm:3.20.0", backend="cpu", offline=True) == build
    with pytest.raises(LlamaError, match="npm:latest"):
        ensure("npm:latest", backend="cpu", offline=True)
    receipt = build.folder / "receipt.json"
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "tag": name}))
    assert installed()[0].tag is None
    assert os.listdir(victim) == ["precious.txt"]
