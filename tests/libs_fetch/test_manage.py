from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import (
    FetchError,
    LibraryLoadError,
    LibraryNotFoundError,
    ValidationError,
)
from llama_cffi.libs_fetch import (
    cache_state,
    ensure,
    installed,
    manage,
    prune,
    remove,
    rollback,
    store,
    use,
)

pytestmark = pytest.mark.usefixtures("linux")


def get(spec: str = "npm:3.20.0") -> store.InstalledBuild:
    return ensure(spec, backend="cpu", progress=False)


def test_use_and_rollback(published: Any) -> None:
    with pytest.raises(ValidationError, match="nothing to roll back"):
        rollback()
    use("npm:3.20.0", backend="cpu", progress=False)
    use("b10068", backend="cpu", progress=False)
    assert ensure(offline=True).version == "3.19.1"
    use("npm:3.19.0", backend="cpu", progress=False)
    use("npm:3.19.0", backend="cpu", progress=False)  # the same choice again changes nothing
    assert ensure(offline=True).version == "3.19.0"
    assert rollback().version == "3.19.1"
    assert rollback().version == "3.20.0"
    assert ensure(offline=True).version == "3.20.0"


def test_use_latest_keeps_its_version(published: Any, make: Any) -> None:
    assert use("npm:latest", backend="cpu", progress=False).version == "3.19.0"
    published.npm("@node-llama-cpp/linux-x64", "3.30.0", make.npm_files())
    assert ensure(offline=True).version == "3.19.0"
    assert cache_state.history() == [{"spec": "npm:3.19.0", "backend": "cpu"}]


def test_a_choice_that_cannot_be_fetched_changes_nothing(published: Any) -> None:
    use("npm:3.20.0", backend="cpu", progress=False)
    with pytest.raises(FetchError):
        use("npm:1.0.0", backend="cpu", progress=False)
    assert ensure(offline=True).version == "3.20.0"


def test_a_library_that_is_not_llama_cpp_is_not_chosen(
    published: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "libother.so"
    other.write_bytes(ensure("npm:3.20.0", backend="cpu", progress=False).library.read_bytes())
    monkeypatch.setattr(manage, "exported_symbols", lambda path: frozenset({"malloc"}))
    with pytest.raises(LibraryLoadError, match=r"libother\.so is not a llama\.cpp library"):
        use(f"path:{other}")
    assert cache_state.chosen() is None
    monkeypatch.setattr(manage, "exported_symbols", lambda path: frozenset({"llama_backend_init"}))
    assert use(f"path:{other}").library == other


def test_remove(published: Any, cache: Path) -> None:
    get()
    get("npm:3.19.1")
    with pytest.raises(
        LibraryNotFoundError, match=r"npm:9\.9\.9 .*the store holds npm:3\.20\.0 \(cpu\)"
    ):
        remove("npm:9.9.9")
    with pytest.raises(LibraryNotFoundError, match="vulkan"):
        remove("npm:3.20.0", backend="vulkan")
    assert [b.version for b in remove("b10068")] == ["3.19.1"]
    assert [b.version for b in remove("npm:3.20.0", backend="cpu")] == ["3.20.0"]
    assert installed() == []
    assert not (cache / "builds" / "npm").exists()
    with pytest.raises(LibraryNotFoundError, match="the store holds nothing"):
        remove("npm:3.20.0")
    with pytest.raises(ValidationError, match="path"):
        remove("path:/x")


def test_prune_keeps_what_is_chosen(published: Any, cache: Path) -> None:
    for version in ("3.19.0", "3.19.1", "3.20.0"):
        get(f"npm:{version}")
    use("npm:3.19.0", backend="cpu", progress=False)
    old, new = cache / "tmp" / "old.part", cache / "tmp" / "new.part"
    tree = cache / "tmp" / "x.staging"
    tree.mkdir()
    (tree / "f").write_bytes(bytes(7))
    for path in (old, new):
        path.write_bytes(bytes(100))
    for path in (old, tree):
        os.utime(path, (1, 1))
    gone, freed = prune(keep=1)
    assert len(gone) == 1
    assert {b.version for b in installed()} >= {"3.19.0"}
    gone, more = prune(keep=0)
    assert [b.version for b in installed()] == ["3.19.0"]
    assert freed > 107
    assert more > 0
    assert new.exists()
    assert not old.exists()
    assert not tree.exists()
    with pytest.raises(ValidationError, match="keep must be 0 or more, got -1"):
        prune(keep=-1)


def test_builds_are_listed_newest_first(published: Any) -> None:
    for version in ("3.19.0", "3.20.0", "3.19.1"):
        get(f"npm:{version}")
    assert [b.version for b in installed()] == ["3.20.0", "3.19.1", "3.19.0"]
