"""Fetch the C headers of a build at its own tag, to generate declarations from them.

npm's main package contains a git bundle of llama.cpp at the tag; GitHub has source tarballs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import FetchError, LibraryNotFoundError
from . import api, github, npm, pins, store
from .archive import extract
from .download import RemoteFile, downloaded
from .faults import HttpStatusError, NotOfferedError, UnreachableError, offline
from .http import Client, redact
from .specs import parse, plain_name
from .store import InstalledBuild

__all__ = ["headers"]

_MAIN_PACKAGE = "node-llama-cpp"
_BUNDLE = "package/llama/gitRelease.bundle"
_WANTED = re.compile(
    r"(?:include/llama|ggml/include/(?:ggml|gguf)[a-z0-9-]*|tools/mtmd/mtmd(?:-helper)?)\.h"
)
_GIT_TIMEOUT_S = 300


def headers(build: str | InstalledBuild, *, progress: bool = True) -> Path:
    """Return a folder with the C headers of *build*, fetching them once.

    It holds llama.h, ggml*.h, gguf.h and, if the tag has them, mtmd.h and mtmd-helper.h. If
    LLAMA_CFFI_HEADERS is set, it names a folder to use instead.

    Args:
        build: A build, a llama.cpp tag, or a build spec.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        LibraryNotFoundError: The folder LLAMA_CFFI_HEADERS has no llama.h.
        FetchError: The headers cannot be fetched or read.
    """
    own = os.environ.get("LLAMA_CFFI_HEADERS", "").strip()
    if own:
        folder = Path(own).expanduser()
        if not (folder / "llama.h").is_file():
            raise LibraryNotFoundError(
                f"LLAMA_CFFI_HEADERS={own} holds no llama.h. Set it to the folder with the build's "
                "headers, or unset it."
            )
        return folder
    tag, version = _tag(build)
    tag = plain_name(tag, "the tag")
    folder = store.cache_dir() / "headers" / tag
    if _is_intact(folder):
        return folder
    if offline():
        raise FetchError(
            f"{folder.parent} has no headers of {tag}, or damaged ones, and LLAMA_CFFI_OFFLINE is "
            "set. Call llama_cffi.libs_fetch.headers() online, or set LLAMA_CFFI_HEADERS to their "
            "folder."
        )
    with store.cache_lock(f"headers-{tag}"):
        if not _is_intact(folder):
            _fetch(tag, version, folder, progress)
    return folder


def _is_intact(folder: Path) -> bool:
    """Return whether the headers in the cache are as they were fetched."""
    known = store.read_json(folder / store.RECEIPT)
    try:
        return "llama.h" in known and known == _digests(folder)
    except OSError:
        return False


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: store.file_digest(path) for path in sorted(folder.glob("*.h"))}


def _tag(build: str | InstalledBuild) -> tuple[str, str | None]:
    """Return the llama.cpp tag of *build* and, if known, an npm version that contains it."""
    if isinstance(build, InstalledBuild):
        if not build.tag:
            raise FetchError(
                f"the llama.cpp tag of {build.library} is unknown, so its headers cannot be "
                "fetched. Set LLAMA_CFFI_HEADERS to the folder of its llama.h and ggml.h."
            )
        return build.tag, build.version if build.source == "npm" else pins.npm_version_of(build.tag)
    spec = parse(build)
    if spec.source in ("any", "github") and spec.version not in ("default", "latest"):
        return spec.version, pins.npm_version_of(spec.version)
    if spec.source == "npm" and (tag := pins.tag_of(spec.version)):
        return tag, spec.version
    return _tag(api.ensure(build))


def _fetch(tag: str, version: str | None, folder: Path, progress: bool) -> None:
    tmp = store.cache_dir() / "tmp"
    tmp.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(dir=tmp, prefix=f"headers-{tag}.", suffix=".staging") as path:
        work = Path(path)
        for route in _routes(tag, version):
            try:
                archive = tmp / f"headers-{tag}.{route}"
                found = (
                    _from_npm(str(version), archive, work, progress)
                    if route == "npm"
                    else _from_github(tag, archive, work, progress)
                )
            except (UnreachableError, HttpStatusError, NotOfferedError, _NoGitError) as e:
                failures.append(f"{route}: {str(e).rstrip('.')}")
                continue
            if "llama.h" not in found:
                raise FetchError(
                    f"the source of {tag} from {route} has no include/llama.h. Set "
                    "LLAMA_CFFI_HEADERS to a folder with the headers."
                )
            ready = work / "ready"
            ready.mkdir()
            for name, content in found.items():
                (ready / name).write_bytes(content)
            store.write_json(ready / store.RECEIPT, _digests(ready))
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(ready, folder)
            return
    raise FetchError(
        f"the headers of {tag} could not be fetched: {'; '.join(failures)}. Set "
        "LLAMA_CFFI_HEADERS to a folder with that tag's llama.h, ggml*.h and gguf.h."
    )


def _routes(tag: str, version: str | None) -> Iterator[str]:
    if version is not None and npm.configured():
        yield "npm"
    yield "github"


class _NoGitError(FetchError):
    """Git is needed but not installed."""


def _from_npm(version: str, archive: Path, work: Path, progress: bool) -> dict[str, bytes]:
    if shutil.which("git") is None:
        raise _NoGitError(
            "git is not installed, but the headers in the npm package are in a git bundle. "
            "Install git."
        )
    remote = npm.locate(_MAIN_PACKAGE, version, scoped=False)
    archive = remote.part(archive)
    bundle = work / "release.bundle"
    with downloaded(npm.config().client(), remote, archive, progress=progress):
        extract(archive, work, lambda _: lambda path: bundle.name if path == _BUNDLE else None)
    if not bundle.is_file():
        raise FetchError(
            f"{redact(remote.urls[0])} holds no {_BUNDLE}. "
            "Set LLAMA_CFFI_HEADERS to a folder with the headers."
        )
    repository = work / "release.git"
    _git(work, "clone", "--quiet", "--bare", str(bundle), str(repository))
    names = _git(repository, "ls-tree", "-r", "--name-only", "-z", "HEAD").split(b"\0")
    return {
        name.rpartition("/")[2]: _git(repository, "show", f"HEAD:{name}")
        for name in (raw.decode("utf-8", "replace") for raw in names)
        if _WANTED.fullmatch(name)
    }


def _git(folder: Path, *arguments: str) -> bytes:
    # Keep the user's configuration and hooks out of it.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise FetchError(
            f"`git {arguments[0]}` failed: {e}. Check that git works, or set LLAMA_CFFI_HEADERS to "
            "a folder with the headers."
        ) from e
    if done.returncode != 0:
        stderr = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise FetchError(
            f"`git {arguments[0]}` on the bundled source ended with {done.returncode}: {stderr}. "
            "Set LLAMA_CFFI_HEADERS to a folder with the headers."
        )
    return done.stdout


def _from_github(tag: str, archive: Path, work: Path, progress: bool) -> dict[str, bytes]:
    remote: RemoteFile = github.source_archive(tag)
    archive = remote.part(archive)
    archive.unlink(missing_ok=True)  # no hash, so a partial download cannot be recognised
    folder = work / "source"
    folder.mkdir()
    with downloaded(Client(), remote, archive, progress=progress):
        extract(archive, folder, lambda _: _header)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _header(path: str) -> str | None:
    """Place the headers of a source archive, whose paths begin with its root folder."""
    path = path.partition("/")[2]
    return path.rpartition("/")[2] if _WANTED.fullmatch(path) else None
