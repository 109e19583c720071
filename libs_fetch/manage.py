"""Look after the store: choose, go back, remove, clear, and see what there is to fetch."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from llama_cffi.errors import LibraryNotFoundError, ValidationError

from . import api, pins, state, store
from .choose import AUTO
from .sources import SOURCES
from .specs import Spec, parse
from .store import InstalledBuild

__all__ = ["available", "in_use", "prune", "remove", "rollback", "select", "use"]

log = logging.getLogger("llama_cffi.libs_fetch")

# A partial download or a leftover folder this old belongs to no running process.
_STALE_S = 24 * 3600.0


def use(spec: str, *, backend: str | None = None, progress: bool = True) -> InstalledBuild:
    """Make *spec* the build of this user, fetching it if needed; `rollback` returns to the former.

    `LLAMA_CFFI_LIB`, `LLAMA_CFFI_BUILD` and an explicit argument still go before it.

    Raises:
        FetchError: it cannot be had; the choice stays as it was.
    """
    build = api.ensure(spec, backend=backend, progress=progress)
    parsed = parse(spec)
    # A concrete version is kept, so that `use latest` does not move by itself.
    kept = build.spec if parsed.source == "path" or parsed.version == "latest" else str(parsed)
    state.push(kept, backend or AUTO)
    return build


def rollback(*, progress: bool = True) -> InstalledBuild:
    """Return to the choice before the last `use`, or to the default, and give that build.

    Raises:
        ValidationError: nothing was chosen.
    """
    if state.chosen() is None:
        raise ValidationError(
            "There is nothing to roll back: no build was chosen with `llama-cffi libs use`."
        )
    state.pop()
    return api.ensure(progress=progress)


def in_use() -> InstalledBuild | None:
    """Return the build that `ensure()` would give without fetching, None if it would fetch."""
    try:
        return api.ensure(offline=True)
    except OSError:
        return None


def select(spec: str, backend: str | None = None) -> list[InstalledBuild]:
    """List the builds of the store that *spec* names (and *backend*, if given).

    Raises:
        LibraryNotFoundError: none.
    """
    wanted = parse(spec)
    if wanted.source == "path":
        raise ValidationError(f"{spec} is a path; only builds of the store can be named here.")
    names = _names(wanted)
    found = [
        build
        for build in store.installed()
        if (build.source, build.version) in names or build.tag == wanted.version
        if backend in (None, AUTO, build.variant)
    ]
    if not found:
        have = ", ".join(f"{b.spec} ({b.variant})" for b in store.installed()) or "nothing"
        raise LibraryNotFoundError(
            f"{spec}{f' ({backend})' if backend else ''} is not in the store {store.cache_dir()}; "
            f"there is {have}."
        )
    return found


def _names(spec: Spec) -> set[tuple[str, str]]:
    found = set()
    for source in SOURCES:
        if spec.source in (source.name, "any"):
            version = source.version_for(spec)
            if version is not None:
                found.add((source.name, version))
    return found


def remove(spec: str, *, backend: str | None = None) -> list[InstalledBuild]:
    """Delete the builds that *spec* names from the store and list them.

    Raises:
        LibraryNotFoundError: there is none.
        FetchError: the cache cannot be written.
    """
    found = select(spec, backend)
    for build in found:
        _delete(build)
    return found


def _delete(build: InstalledBuild) -> None:
    folder = store.build_folder(build.source, build.version, build.variant)
    with store.cache_lock(f"{build.source}-{build.version}-{build.variant}"):
        aside = store.set_aside(folder)
        store.remove_tree(aside)
    for parent in (folder.parent, folder.parent.parent):
        try:
            parent.rmdir()
        except OSError:
            break


def prune(keep: int = 2) -> tuple[list[InstalledBuild], int]:
    """Delete old builds and leftovers; return the builds and the number of bytes freed.

    Kept: the build in use, everything `use` remembers, the default, and of the others the *keep*
    fetched last. Partial downloads and leftovers go when they are a day old.

    Raises:
        ValidationError: *keep* is negative.
    """
    if keep < 0:
        raise ValidationError(f"keep={keep} is negative.")
    protected = set(pins.default_versions())
    for choice in state.history():
        protected |= _names(parse(choice["spec"]))
    current = in_use()
    if current is not None:
        protected.add((current.source, current.version))
    others = [b for b in store.installed() if (b.source, b.version) not in protected]
    others.sort(key=lambda build: str((build.receipt or {}).get("when", "")), reverse=True)
    gone, freed = others[keep:], 0
    for build in gone:
        freed += size_bytes(build)
        _delete(build)
    return gone, freed + _clear_leftovers()


def _clear_leftovers() -> int:
    freed = 0
    tmp = store.cache_dir() / "tmp"
    for entry in tmp.iterdir() if tmp.is_dir() else ():
        try:
            if time.time() - entry.stat().st_mtime < _STALE_S:
                continue
            if entry.is_dir():
                freed += _tree_bytes(entry)
                store.remove_tree(entry)
            else:
                freed += entry.stat().st_size
                entry.unlink()
        except OSError as exc:
            log.info("%s stays: %s", entry, exc)
    return freed


def _tree_bytes(folder: Path) -> int:
    return sum(
        os.lstat(os.path.join(root, name)).st_size
        for root, _, names in os.walk(folder)
        for name in names
    )


def size_bytes(build: InstalledBuild) -> int:
    """Return the space on disk of a build in the store, by its receipt."""
    files = (build.receipt or {}).get("files")
    if not isinstance(files, dict):
        return 0
    return sum(int(facts["size"]) for facts in files.values())


def available(source: str = "npm") -> list[Spec]:
    """List what *source* has for this platform, newest first; asks the network.

    Raises:
        ValidationError: no such source.
        FetchError: it does not answer.
    """
    for known in SOURCES:
        if known.name == source:
            return [Spec(source, version) for version in known.versions()]
    raise ValidationError(
        f"Unknown source {source!r}; there is {', '.join(s.name for s in SOURCES)}."
    )
