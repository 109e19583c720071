"""Manage the store: choose a build, roll back, remove and prune builds, list what is available."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from ..errors import LibraryLoadError, LibraryNotFoundError, ValidationError
from . import api, cache_state, pins, store
from .binaries import exported_symbols
from .choose import AUTO
from .sources import SOURCES
from .specs import Spec, parse
from .store import InstalledBuild

__all__ = ["available", "in_use", "prune", "remove", "rollback", "select", "use"]

_log = logging.getLogger(__name__)

# No running process uses a partial download or a leftover folder of this age.
_STALE_S = 24 * 3600.0
_FIRST_FUNCTION = "llama_backend_init"


def use(spec: str, *, backend: str | None = None, progress: bool = True) -> InstalledBuild:
    """Choose the build that this user runs by default, fetching it if needed.

    An explicit argument, `LLAMA_CFFI_LIB` and `LLAMA_CFFI_BUILD` take precedence over it.
    `rollback` returns to the previous choice.

    Args:
        spec: The build.
        backend: The variant; None: LLAMA_CFFI_BACKEND, else `auto`.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        FetchError: The build cannot be fetched; the choice is unchanged.
        LibraryLoadError: The path is not a llama.cpp library; the choice is unchanged.
    """
    build = api.ensure(spec, backend=backend, progress=progress)
    parsed = parse(spec)
    if parsed.source == "path" and _FIRST_FUNCTION not in exported_symbols(build.library):
        raise LibraryLoadError(
            f"{build.library} is not a llama.cpp library: it does not export {_FIRST_FUNCTION}. "
            "Give the libllama file or the folder it is in. The choice is unchanged."
        )
    # Store a concrete version, so that `use latest` does not move on its own.
    kept = build.spec if parsed.source == "path" or parsed.version == "latest" else str(parsed)
    cache_state.push(kept, backend or AUTO)
    return build


def rollback(*, progress: bool = True) -> InstalledBuild:
    """Undo the last `use` and return the build now chosen, or the default build.

    Raises:
        ValidationError: No build was chosen.
    """
    if cache_state.chosen() is None:
        raise ValidationError(
            "there is nothing to roll back: no build was chosen with `llama-cffi libs use`."
        )
    cache_state.pop()
    return api.ensure(progress=progress)


def in_use() -> InstalledBuild | None:
    """Return the build that `ensure()` would return without fetching; None if it would fetch."""
    try:
        return api.ensure(offline=True)
    except OSError:
        return None


def select(spec: str, backend: str | None = None) -> list[InstalledBuild]:
    """List the builds in the store that match *spec*, and *backend* if given.

    Raises:
        ValidationError: *spec* cannot be parsed, or is a path.
        LibraryNotFoundError: No build matches.
    """
    wanted = parse(spec)
    if wanted.source == "path":
        raise ValidationError(f"{spec} is a path; give the spec of a build in the store.")
    names = _versions_of(wanted)
    found = [
        build
        for build in store.installed()
        if (build.source, build.version) in names or build.tag == wanted.version
        if backend in (None, AUTO, build.variant)
    ]
    if not found:
        stored = ", ".join(f"{b.spec} ({b.variant})" for b in store.installed()) or "nothing"
        raise LibraryNotFoundError(
            f"{spec}{f' ({backend})' if backend else ''} is not in the store {store.cache_dir()}; "
            f"the store holds {stored}."
        )
    return found


def _versions_of(spec: Spec) -> set[tuple[str, str]]:
    """Return the (source, version) pairs that *spec* may mean."""
    found = set()
    for source in SOURCES:
        if spec.source in (source.name, "any"):
            version = source.version_for(spec)
            if version is not None:
                found.add((source.name, version))
    return found


def remove(spec: str, *, backend: str | None = None) -> list[InstalledBuild]:
    """Delete the builds that match *spec* from the store and return them.

    Args:
        spec: The builds.
        backend: Their variant; None: every variant.

    Raises:
        LibraryNotFoundError: No build matches.
        FetchError: The cache cannot be written, or a build is in use (Windows).
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
    """Delete old builds and leftovers; return the deleted builds and the bytes freed.

    The build in use, every build in the history of `use`, and the default are kept. Partial
    downloads and leftovers of crashed processes are deleted once they are a day old.

    Args:
        keep: How many of the other builds to keep, those fetched last.

    Raises:
        ValidationError: *keep* is negative.
    """
    if keep < 0:
        raise ValidationError(f"keep must be 0 or more, got {keep}.")
    protected = set(pins.default_versions())
    for choice in cache_state.history():
        protected |= _versions_of(parse(choice["spec"]))
    current = in_use()
    if current is not None:
        protected.add((current.source, current.version))
    others = [b for b in store.installed() if (b.source, b.version) not in protected]
    others.sort(key=lambda build: str((build.receipt or {}).get("when", "")), reverse=True)
    deleted, freed = others[keep:], 0
    for build in deleted:
        freed += size_bytes(build)
        _delete(build)
    return deleted, freed + _clear_leftovers()


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
        except OSError as e:
            _log.info("could not delete %s: %s", entry, e)
    return freed


def _tree_bytes(folder: Path) -> int:
    return sum(
        os.lstat(os.path.join(root, name)).st_size
        for root, _, names in os.walk(folder)
        for name in names
    )


def size_bytes(build: InstalledBuild) -> int:
    """Return the size on disk of a build in the store, in bytes, as its receipt says."""
    files = (build.receipt or {}).get("files")
    if not isinstance(files, dict):
        return 0
    return sum(int(facts["size"]) for facts in files.values())


def available(source: str = "npm") -> list[Spec]:
    """List what *source* has for this platform, newest first; uses the network.

    Args:
        source: `npm` or `github`.

    Raises:
        ValidationError: There is no such source.
        FetchError: The source does not answer.
    """
    for known in SOURCES:
        if known.name == source:
            return [Spec(source, version) for version in known.versions()]
    raise ValidationError(
        f"unknown source {source!r}; the sources are {', '.join(s.name for s in SOURCES)}."
    )
