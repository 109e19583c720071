"""The store: builds under `<cache>/builds/<source>/<version>/<variant>/`, each with a receipt.

Owns every path in the cache. A build is put in place by one rename of a finished folder, under a
lock, so it is either complete or absent. A crash leaves files only in `<cache>/tmp`; they are
deleted later.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import FetchError, LlamaError
from ..html_repr import shown_by
from ..progress import telling_if_slow
from .faults import is_set
from .machine import boot_id
from .specs import Spec, is_plain_name, plain_name

__all__ = [
    "InstalledBuild",
    "build_folder",
    "cache_dir",
    "damage",
    "file_digest",
    "find_library",
    "install",
    "installed",
    "load",
    "verify",
]

_log = logging.getLogger(__name__)

RECEIPT = "receipt.json"
MAX_SEARCHED = 10_000
BROKEN = "BROKEN.json"
CHECKED = "checked.json"
_TICK_NS = 20_000_000  # file times are as fine as the kernel's clock tick: up to 10 ms
_LOCK_LIMIT_S = 3600.0
_LIBLLAMA = re.compile(r"(lib)?llama(\.[A-Za-z0-9_+.-]+?)??(\.so(\.\d+)*|(\.\d+)*\.dylib|\.dll)")
_CPU_VARIANT = re.compile(r"(?:lib)?ggml-cpu-(.+)\.(?:so|dll)")
_LIBRARY = re.compile(r"\.(so|dylib|dll)(\.|$)", re.IGNORECASE)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class InstalledBuild:
    """A llama.cpp build on this machine, ready to be loaded.

    Attributes:
        source: `npm`, `github`, or `path` for a library outside the store.
        version: Version in that source; empty for a path.
        variant: `cpu`, `cuda`, `vulkan`, …
        tag: llama.cpp tag, if known.
        library: Real path of libllama.
        folder: Folder of *library*, which holds its backends.
        backend_reason: Why this variant was chosen, or why a better one was not.
        receipt: Content of receipt.json: origin and every file with its size and sha256; None
            outside the store.
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
        """The spec of this build."""
        return f"path:{self.library}" if self.source == "path" else f"{self.source}:{self.version}"

    @property
    def cpu_variants(self) -> dict[str, Path]:
        """The CPU backends by variant, such as `zen4`; empty if there is one for all CPUs."""
        found = map(_CPU_VARIANT.fullmatch, sorted(os.listdir(self.folder)))
        return {match[1]: self.folder / match[0] for match in found if match}

    def as_dict(self) -> dict[str, str | None]:
        """Return identity and paths as JSON types."""
        return {
            "source": self.source,
            "version": self.version,
            "variant": self.variant,
            "tag": self.tag,
            "library": str(self.library),
            "folder": str(self.folder),
        }

    _repr_html_ = shown_by("build")


def cache_dir() -> Path:
    """Return the cache folder: LLAMA_CFFI_CACHE, else the platform's user cache folder."""
    chosen = os.environ.get("LLAMA_CFFI_CACHE", "").strip()
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    # platformdirs gives the same folders (a test compares) but costs 8 ms at every start.
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "llama_cffi"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(local) / "llama_cffi" / "Cache"
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "llama_cffi"


def build_folder(source: str, version: str, variant: str) -> Path:
    """Return the folder of a build, whether it is in the store or not.

    Raises:
        FetchError: One of the names is not a plain path component.
    """
    names = (
        plain_name(source, "the source"),
        plain_name(version, "the version"),
        plain_name(variant, "the variant"),
    )
    return cache_dir().joinpath("builds", *names)


def is_libllama(name: str) -> bool:
    """Return whether *name* is libllama (libllama.so, libllama.cuda.v0.5.0.so, llama.dll)."""
    return _LIBLLAMA.fullmatch(name) is not None


def packaged_tag(folder: Path) -> str | None:
    """Return the llama.cpp tag that an npm package's metadata in *folder* names, if any."""
    found: object = _read_json(folder / "_nlcBuildMetadata.json")
    for key in ("buildOptions", "llamaCpp", "release"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) and is_plain_name(found) else None


def find_library(folder: Path) -> Path | None:
    """Return the real path of libllama under *folder*: the shallowest, then the shortest name.

    A huge folder is not searched whole: `MAX_SEARCHED` entries are looked at, level by level.
    """
    level, n_seen = [str(folder)], 0
    while level and n_seen < MAX_SEARCHED:
        found: list[Path] = []
        below: list[str] = []
        for each in level:
            with suppress(OSError), os.scandir(each) as entries:
                for entry in islice(entries, MAX_SEARCHED - n_seen):
                    n_seen += 1
                    if entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
                    elif is_libllama(entry.name) and entry.is_file():
                        found.append(Path(entry.path))
        if found:
            best = min(found, key=lambda path: (len(path.name), str(path)))
            return Path(os.path.realpath(best))
        level = sorted(below)
    return None


def is_huge(folder: Path) -> bool:
    """Return whether `find_library` does not look at everything in *folder*."""
    n_seen = 0
    for _, folders, files in os.walk(folder):
        n_seen += len(folders) + len(files)
        if n_seen > MAX_SEARCHED:
            return True
    return False


def load(source: str, version: str, variant: str, reason: str = "") -> InstalledBuild | None:
    """Return a build of the store, or None; reads its receipt only."""
    folder = build_folder(source, version, variant)
    receipt = _read_json(folder / RECEIPT)
    if receipt is None or not _is_receipt(receipt):
        return None
    library = folder / receipt["library"]
    return InstalledBuild(
        source=source,
        version=version,
        variant=variant,
        tag=receipt["tag"] if is_plain_name(receipt.get("tag")) else None,
        library=Path(os.path.realpath(library)),
        folder=Path(os.path.realpath(library.parent)),
        backend_reason=reason,
        receipt=receipt,
    )


def _is_receipt(receipt: Mapping[str, Any]) -> bool:
    """Return whether a receipt has the types of one; without, there is no build."""
    files = receipt.get("files")
    return (
        isinstance(files, dict)
        and all(
            isinstance(facts, dict)
            and isinstance(facts.get("size"), int)
            and isinstance(facts.get("sha256"), str)
            for facts in files.values()
        )
        and isinstance(receipt.get("library"), str)
        and receipt["library"] in files
    )


def installed() -> list[InstalledBuild]:
    """List the builds in the store, newest version first within each source."""
    root = cache_dir() / "builds"
    found = []
    for receipt in root.glob(f"*/*/*/{RECEIPT}"):
        names = receipt.parts[-4:-1]
        build = load(*names) if all(map(is_plain_name, names)) else None
        if build is not None:
            found.append(build)
    return sorted(found, key=lambda b: (b.source, version_key(b.version), b.variant), reverse=True)


def version_key(version: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key that compares the numbers in a version as numbers."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.findall(r"\d+|[a-zA-Z]+", version)
    )


def damage(build: InstalledBuild, *, rehash: bool = False) -> list[str]:
    """List the files that are not as the receipt says: missing, changed, or not in it.

    A file is hashed once per boot and identity (device, inode, size, times of change), which the
    build's folder remembers: a warm start hashes nothing. A build that `verify` has marked as
    broken has the problems found then.

    Args:
        build: A build of the store.
        rehash: Whether to hash every file again; LLAMA_CFFI_VERIFY=1 always does.
    """
    root = build_folder(build.source, build.version, build.variant)
    marked = _read_json(root / BROKEN)
    if marked is not None:
        found = marked.get("problems")
        return list(map(str, found)) if isinstance(found, list) else [f"{root} is marked as broken"]
    files = _files(build)
    known = {} if rehash or is_set("LLAMA_CFFI_VERIFY") else _checked(root)
    checked: dict[str, list[int]] = {}
    problems = [
        f"{build.folder / name} is not in the receipt" for name in _strangers(build, set(files))
    ]
    for name, facts in files.items():
        path = root / name
        before = _identity(path)
        if before is None:
            problems.append(f"{path} is missing")
        elif before[2] != facts["size"]:
            problems.append(f"{path} has {before[2]:,} bytes, expected {facts['size']:,}")
        elif known.get(name) == before:
            checked[name] = before
        else:
            try:
                problem = _hash_problem(path, facts["sha256"])
            except OSError as e:
                problem = f"{path} cannot be read: {e.strerror or e}"
            if problem:
                problems.append(problem)
            elif _identity(path) == before:
                checked[name] = before
    if checked != known:
        _remember_checked(root, checked)
    return problems


def _hash_problem(path: Path, expected: str) -> str:
    got = file_digest(path)
    return f"{path} has sha256 {got}, expected {expected}" if got != expected else ""


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file."""
    import hashlib  # a warm `ensure` does without it

    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _identity(path: Path) -> list[int] | None:
    """Return what changes when a file is changed or replaced; None if it is not a regular file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    size, changed = status.st_size, (status.st_mtime_ns, status.st_ctime_ns)
    return [status.st_dev, status.st_ino, size, *changed]


def _strangers(build: InstalledBuild, files: set[str]) -> list[str]:
    """List the libraries beside libllama that are not in the receipt: ggml would load them."""
    inside = str((build.receipt or {}).get("library")).rpartition("/")[0]
    try:
        names = os.listdir(build.folder)
    except OSError:
        return []
    return [
        name
        for name in sorted(names)
        if _LIBRARY.search(name) and (f"{inside}/{name}" if inside else name) not in files
    ]


def _checked(root: Path) -> dict[str, object]:
    """Return the identities of the files that were hashed since boot, by name."""
    found = read_json(root / CHECKED)
    files = found.get("files")
    return files if found.get("boot") == boot_id() and isinstance(files, dict) else {}


def _remember_checked(root: Path, checked: dict[str, list[int]]) -> None:
    """Store the identities of files that have just been hashed; ignore a read-only cache.

    A file changed within the last clock tick may change again without a trace: it is left out.
    """
    settled = time.time_ns() - _TICK_NS
    files = {name: identity for name, identity in checked.items() if max(identity[3:]) < settled}
    with suppress(OSError):
        write_json(root / CHECKED, {"boot": boot_id(), "files": files})


def verify(build: InstalledBuild) -> list[str]:
    """Compare every file of *build* with the sha256 in its receipt and list the differences.

    A build with differences is marked as broken, so that the next `ensure` fetches it again.
    """
    if build.receipt is None:
        return [f"{build.library} has no receipt: it is not in the store"]
    marker = build_folder(build.source, build.version, build.variant) / BROKEN
    _unlink(marker)
    problems = damage(build, rehash=True)
    if problems:
        try:
            marker.write_text(json.dumps({"problems": problems}), encoding="utf-8")
        except OSError as e:
            _log.warning("cannot mark %s as broken: %s", marker.parent, e)
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
    """Put a build into the store; only one of several processes that do so fetches it.

    Args:
        source: `npm` or `github`.
        version: Version in that source.
        variant: Variant of the build.
        fill: Gets an empty folder to unpack into and a path prefix for partial downloads, and
            returns fields for the receipt. Not called if the build is in the store already.
        force: Whether to replace a build that is in the store already.

    Raises:
        FetchError: *fill* failed, the cache is full or read-only, or another process held the lock
            for too long.
    """
    target = build_folder(source, version, variant)
    key = f"{source}-{version}-{variant}"
    with cache_lock(key):
        if not force:
            build = load(source, version, variant)
            if build is not None and not damage(build):
                return build
        tmp = cache_dir() / "tmp"
        for stale in tmp.glob(f"{key}.*.staging"):  # of dead processes, as we hold the lock
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
    library = find_library(staging)
    if library is None:
        raise FetchError(
            f"{spec} ({variant}) holds no libllama, only {sorted(os.listdir(staging))[:8]}. "
            "Choose another build: `llama-cffi libs list --remote`."
        )
    files: dict[str, dict[str, object]] = {}
    checked: dict[str, list[int]] = {}
    for path in sorted(staging.rglob("*")):
        if identity := _identity(path):
            name = path.relative_to(staging).as_posix()
            files[name] = {"size": identity[2], "sha256": file_digest(path)}
            checked[name] = identity
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
    _remember_checked(staging, checked)


def set_aside(folder: Path) -> Path:
    """Move a build out of the store in one step, before it is deleted or replaced.

    The caller holds the build's lock.

    Raises:
        FetchError: The build is in use (Windows), or the cache cannot be written.
    """
    tmp = cache_dir() / "tmp"
    aside = tmp / f"{'-'.join(folder.parts[-3:])}.{_unique()}.staging"
    try:
        tmp.mkdir(parents=True, exist_ok=True)
        os.rename(folder, aside)
    except OSError as e:
        if e.errno in _READ_ONLY and os.name != "nt":
            raise _read_only(e) from e
        raise FetchError(
            f"{folder} cannot be moved: {e}. Close the programs that use this build."
        ) from e
    return aside


@contextmanager
def _disk_errors(folder: Path, what: str) -> Iterator[None]:
    """Translate the errors of a full or read-only disk into a `FetchError` with advice."""
    from .disk import disk_full_error

    try:
        yield
    except LlamaError:
        raise
    except OSError as e:
        full = disk_full_error(e, folder, None, what)
        if full is not None:
            raise full from e
        if e.errno in _READ_ONLY:
            raise _read_only(e) from e
        raise FetchError(f"{what} failed: {e}. Nothing was installed.") from e


def _read_only(error: OSError) -> FetchError:
    return FetchError(
        f"the cache {cache_dir()} cannot be written ({error.strerror or error}). Set "
        "LLAMA_CFFI_CACHE to a writable folder, or put the build there beforehand."
    )


@contextmanager
def cache_lock(key: str) -> Iterator[None]:
    """Hold the lock *key* of the cache; says so if another process holds it for some seconds.

    Raises:
        FetchError: The cache cannot be written, or another process held the lock for an hour.
    """
    from filelock import FileLock, Timeout

    path = cache_dir() / "locks" / f"{key}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path))
        with telling_if_slow(f"another process that fetches or changes {key}"):
            lock.acquire(timeout=_LOCK_LIMIT_S)
    except Timeout:
        raise FetchError(
            f"another process has held {path} for {_LOCK_LIMIT_S:.0f} s. If none is running, "
            "delete that file and try again."
        ) from None
    except FetchError:
        raise
    except OSError as e:
        raise _read_only(e) from e
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file by rename, so that readers see the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{_unique()}")
    try:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        _unlink(temporary)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or damaged."""
    return _read_json(path) or {}


def remove_tree(folder: Path) -> None:
    """Delete a folder; a later `prune` deletes what could not be deleted."""
    import shutil  # a warm `ensure` does without it

    shutil.rmtree(folder, ignore_errors=True)


def _unique() -> str:
    return os.urandom(6).hex()


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
