"""The store: builds under ``<cache>/builds/<source>/<version>/<variant>/``, each with a receipt.

Owns every path in the cache. A build appears by one rename of a finished folder, under a lock, so
it is either whole or absent; whatever a crash leaves lies in ``<cache>/tmp`` and is cleared later.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_cffi.errors import FetchError, LlamaError

from .specs import Spec

__all__ = [
    "InstalledBuild",
    "build_folder",
    "cache_dir",
    "find_library",
    "install",
    "installed",
    "load",
    "quick_problems",
    "verify",
]

log = logging.getLogger("llama_cffi.libs_fetch")

RECEIPT = "receipt.json"
BROKEN = "BROKEN.json"
_LOCK_POLL_S = 10.0
_LOCK_LIMIT_S = 3600.0
_LIBLLAMA = re.compile(r"(lib)?llama(\.[A-Za-z0-9_+.-]+?)??(\.so(\.\d+)*|(\.\d+)*\.dylib|\.dll)")
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class InstalledBuild:
    """One llama.cpp build on this machine, ready to be loaded.

    `library` is the real path of libllama and `folder` its folder; `tag` the llama.cpp tag where
    known; `backend_reason` says why this variant was chosen, or why a better one was not.
    """

    source: str
    version: str
    variant: str
    tag: str | None
    library: Path
    folder: Path
    backend_reason: str
    receipt: Mapping[str, object] | None

    @property
    def spec(self) -> str:
        """The spec that names this build again."""
        return f"path:{self.library}" if self.source == "path" else f"{self.source}:{self.version}"

    def as_dict(self) -> dict[str, str | None]:
        """Say which build it is and where it lies, as plain JSON types."""
        return {
            "source": self.source,
            "version": self.version,
            "variant": self.variant,
            "tag": self.tag,
            "library": str(self.library),
            "folder": str(self.folder),
        }


def cache_dir() -> Path:
    """Return the cache folder: LLAMA_CFFI_CACHE, else the platform's place for caches."""
    chosen = os.environ.get("LLAMA_CFFI_CACHE", "").strip()
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    # platformdirs gives the same folders (a test compares) but costs 8 ms of every start.
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llama_cffi"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(local) / "llama_cffi" / "Cache"
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "llama_cffi"


def build_folder(source: str, version: str, variant: str) -> Path:
    """Return where a build lies, or would lie."""
    return cache_dir() / "builds" / source / version / variant


def is_libllama(name: str) -> bool:
    """Tell whether a file name is libllama's (libllama.so, libllama.cuda.v0.5.0.so, llama.dll)."""
    return _LIBLLAMA.fullmatch(name) is not None


def find_library(folder: Path) -> Path | None:
    """Find libllama under *folder* (its real path): the shallowest, then the shortest name."""
    found = [
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if is_libllama(name)
    ]
    found.sort(key=lambda path: (len(path.parts), len(path.name), path.name))
    return Path(os.path.realpath(found[0])) if found else None


def load(source: str, version: str, variant: str, reason: str = "") -> InstalledBuild | None:
    """Return a build of the store, None if it is not there. Reads the receipt, hashes nothing."""
    folder = build_folder(source, version, variant)
    receipt = _read_json(folder / RECEIPT)
    if receipt is None or not isinstance(receipt.get("library"), str):
        return None
    library = folder / receipt["library"]
    return InstalledBuild(
        source=source,
        version=version,
        variant=variant,
        tag=receipt.get("tag"),
        library=Path(os.path.realpath(library)),
        folder=Path(os.path.realpath(library.parent)),
        backend_reason=reason,
        receipt=receipt,
    )


def installed() -> list[InstalledBuild]:
    """List the builds of the store, newest version first within each source."""
    root = cache_dir() / "builds"
    found = []
    for receipt in root.glob(f"*/*/*/{RECEIPT}"):
        source, version, variant = receipt.parts[-4:-1]
        build = load(source, version, variant)
        if build is not None:
            found.append(build)
    return sorted(found, key=lambda b: (b.source, version_key(b.version), b.variant), reverse=True)


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Sort key: numbers in a version compare as numbers."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.findall(r"\d+|[a-zA-Z]+", version)
    )


def quick_problems(build: InstalledBuild) -> list[str]:
    """Name missing files and files of a wrong size: a few microseconds per file, no hashing."""
    root = build_folder(build.source, build.version, build.variant)
    marked = _read_json(root / BROKEN)
    if marked is not None:
        return [str(problem) for problem in marked.get("problems", ["marked as broken"])]
    problems = []
    for name, facts in _files(build).items():
        try:
            size = os.stat(root / name).st_size
        except OSError:
            problems.append(f"{root / name} is missing")
            continue
        if size != facts["size"]:
            problems.append(f"{root / name} has {size:,} bytes, expected {facts['size']:,}")
    return problems


def verify(build: InstalledBuild) -> list[str]:
    """Hash every file of *build* against its receipt and name what differs; empty if all is well.

    A build with problems is marked, so that the next `ensure` refuses it and fetches it again.
    """
    from .download import file_digest

    if build.receipt is None:
        return [f"{build.library} has no receipt: it did not come from the store"]
    root = build_folder(build.source, build.version, build.variant)
    marker = root / BROKEN
    _unlink(marker)
    problems = quick_problems(build)
    if not problems:
        for name, facts in _files(build).items():
            got = file_digest(root / name)
            if got != facts["sha256"]:
                problems.append(f"{root / name} has sha256 {got}, expected {facts['sha256']}")
    if problems:
        try:
            marker.write_text(json.dumps({"problems": problems}), encoding="utf-8")
        except OSError as exc:
            log.warning("cannot mark %s as broken: %s", root, exc)
    return problems


def _files(build: InstalledBuild) -> dict[str, Any]:
    files = (build.receipt or {}).get("files")
    return files if isinstance(files, dict) else {}


def install(
    source: str,
    version: str,
    variant: str,
    fill: Callable[[Path, Path], dict[str, object]],
    *,
    force: bool = False,
) -> InstalledBuild:
    """Put a build into the store, once, however many processes ask for it at the same time.

    *fill* gets an empty folder to unpack into and a prefix for partial downloads, and returns
    what the receipt shall say. It runs only if the build is not there (or *force*).

    Raises:
        FetchError: whatever *fill* raises, a full or read-only cache, a lock held too long.
    """
    target = build_folder(source, version, variant)
    key = f"{source}-{version}-{variant}"
    with cache_lock(key):
        if not force:
            build = load(source, version, variant)
            if build is not None and not quick_problems(build):
                return build
        tmp = cache_dir() / "tmp"
        for stale in tmp.glob(f"{key}.*.staging"):  # we hold the lock: their makers are dead
            remove_tree(stale)
        staging = tmp / f"{key}.{_unique()}.staging"
        try:
            with _disk_errors(tmp, f"installing {source}:{version}"):
                staging.mkdir(parents=True)
                facts = fill(staging, tmp / key)
                _write_receipt(staging, Spec(source, version), variant, facts)
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = set_aside(target) if target.exists() else None
                os.rename(staging, target)
                if aside is not None:
                    remove_tree(aside)
        finally:
            remove_tree(staging)
    build = load(source, version, variant)
    assert build is not None
    return build


def _write_receipt(staging: Path, spec: Spec, variant: str, facts: dict[str, object]) -> None:
    from .download import file_digest

    library = find_library(staging)
    if library is None:
        raise FetchError(
            f"{spec} ({variant}) holds no libllama, only {sorted(os.listdir(staging))[:8]}. "
            "Choose another build: `llama-cffi libs list --remote`."
        )
    files = {
        path.relative_to(staging).as_posix(): {
            "size": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    receipt = {
        "source": spec.source,
        "version": spec.version,
        "variant": variant,
        "library": library.relative_to(os.path.realpath(staging)).as_posix(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **facts,
        "files": files,
    }
    (staging / RECEIPT).write_text(json.dumps(receipt, indent=1), encoding="utf-8")


def set_aside(folder: Path) -> Path:
    """Move a build out of the store in one step, to be deleted or replaced; the lock is held.

    Raises:
        FetchError: it is in use (Windows) or the cache cannot be written.
    """
    tmp = cache_dir() / "tmp"
    aside = tmp / f"{'-'.join(folder.parts[-3:])}.{_unique()}.staging"
    try:
        tmp.mkdir(parents=True, exist_ok=True)
        os.rename(folder, aside)
    except OSError as exc:
        if exc.errno in _READ_ONLY and os.name != "nt":
            raise read_only(exc) from exc
        raise FetchError(
            f"{folder} cannot be moved: {exc}. Close the programs that use this build."
        ) from exc
    return aside


@contextmanager
def _disk_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn errors of a full or read-only disk into errors that say what to do."""
    from .download import disk_full

    try:
        yield
    except LlamaError:
        raise
    except OSError as exc:
        full = disk_full(exc, folder, 0, what)
        if full is not None:
            raise full from exc
        if exc.errno in _READ_ONLY:
            raise read_only(exc) from exc
        raise FetchError(f"{what} failed: {exc}. Nothing was installed.") from exc


def read_only(exc: OSError) -> FetchError:
    """Explain that the cache cannot be written."""
    return FetchError(
        f"The cache {cache_dir()} cannot be written ({exc.strerror or exc}). Set LLAMA_CFFI_CACHE "
        "to a folder you may write, or put the build there beforehand."
    )


@contextmanager
def cache_lock(key: str) -> Iterator[None]:
    """Hold the lock *key* of the cache; waits for other processes and says so every 10 s.

    Raises:
        FetchError: the cache cannot be written, or another process holds the lock for an hour.
    """
    from filelock import FileLock, Timeout

    path = cache_dir() / "locks" / f"{key}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path))
        waited = 0.0
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
                break
            except Timeout:
                waited += _LOCK_POLL_S
                log.info("waiting for another process that works on %s (%d s)", key, waited)
                if waited >= _LOCK_LIMIT_S:
                    raise FetchError(
                        f"Another process has held {path} for {waited:.0f} s. If none is "
                        "running, delete that file and try again."
                    ) from None
    except FetchError:
        raise
    except OSError as exc:
        raise read_only(exc) from exc
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file by rename, so that readers see the old or the new text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{_unique()}")
    try:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        _unlink(temporary)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is absent or damaged."""
    return _read_json(path) or {}


def remove_tree(folder: Path) -> None:
    """Delete a folder; what cannot be deleted now is cleared by a later `prune`."""
    import shutil  # not on the path of a warm `ensure`

    shutil.rmtree(folder, ignore_errors=True)


def _unique() -> str:
    return os.urandom(6).hex()


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
