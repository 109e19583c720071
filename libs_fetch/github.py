"""The GitHub source: releases of ggml-org/llama.cpp, verified with the release API's digests.

Asset names contain toolkit versions and change over time, so they are parsed, never composed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FetchError
from . import pins, runtime
from .archive import extract
from .download import RemoteFile, downloaded, sri
from .faults import HttpStatusError, NotOfferedError
from .http import Client, join, redact
from .machine import Machine
from .specs import is_plain_name, plain_name
from .store import is_libllama

__all__ = ["Asset", "assets", "fetch", "latest", "parse_asset", "pick", "source_archive", "tags"]

_API = "https://api.github.com"
_WEB = "https://github.com"
_CHECK = "Check LLAMA_CFFI_GITHUB."
_REPO = "ggml-org/llama.cpp"
_NAME = re.compile(
    r"(?P<runtime>cudart-)?llama-(?:(?P<tag>[bv]\d[\w.]*)-)?bin-"
    r"(?P<os>ubuntu|macos|win)-(?P<rest>[\w.-]+?)\.(?:tar\.gz|zip)"
)
_OS = {"ubuntu": "linux", "macos": "mac", "win": "win"}
_ARCHES = ("x64", "arm64", "s390x")
_LIBRARY = re.compile(r".*\.(so(\.\d+)*|dylib|dll|metal|metallib|spv|bc)")
# In the builds of 2024, CPU variants on Windows are named after an instruction set or a compiler.
# The best comes first.
_OLD_CPU = ("avx2", "llvm", "msvc", "avx", "noavx")


@dataclass(frozen=True)
class Asset:
    """The parsed name of a release asset.

    Attributes:
        name: The whole name.
        os: `linux`, `mac` or `win`.
        arch: `x64`, `arm64` or `s390x`.
        backend: `cpu`, `cuda`, `vulkan`, `rocm`, `metal`, …
        toolkit: Version of the backend's toolkit, such as `(12, 8)`; empty if it has none.
        is_runtime: Whether it is a CUDA runtime rather than a build.
    """

    name: str
    os: str
    arch: str
    backend: str
    toolkit: tuple[int, ...]
    is_runtime: bool


def parse_asset(name: str) -> Asset | None:
    """Parse an asset's name; None if it is not a build for a desktop or server."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    words = match["rest"].split("-")
    arch = words.pop()
    if arch not in _ARCHES:
        return None
    system = _OS[match["os"]]
    backend = "cpu"
    toolkit: tuple[int, ...] = ()
    if words:
        backend, numbers = words[0], [w for w in words[1:] if w[:1].isdigit() or w[:2] == "cu"]
        if match["runtime"] and re.fullmatch(r"cu[\d.]+", backend):  # cudart-…-cu12.2.0-x64
            backend, numbers = "cuda", [words[0]]
        toolkit = tuple(int(n) for n in re.findall(r"\d+", numbers[0])) if numbers else ()
        backend = {"hip": "rocm"}.get(backend, backend)
        if system == "win" and backend in _OLD_CPU:
            # `pick` takes the highest toolkit: rank them by their place in _OLD_CPU.
            backend, toolkit = "cpu", (-_OLD_CPU.index(backend) - 1,)
    elif system == "mac" and arch == "arm64":
        backend = "metal"
    return Asset(name, system, arch, backend, toolkit, bool(match["runtime"]))


def pick(names: list[str], variant: str, machine: Machine) -> list[str]:
    """Choose the assets for *variant* on *machine*: the build, then the CUDA runtime if needed.

    For CUDA, the newest toolkit that the driver supports is taken; a driver runs every toolkit of
    its own major version.

    Raises:
        NotOfferedError: The release has no such build.
    """
    parsed = [a for a in map(parse_asset, names) if a is not None]
    matching = [
        a for a in parsed if (a.os, a.arch, a.backend) == (machine.os, machine.arch, variant)
    ]
    builds = sorted(
        (a for a in matching if not a.is_runtime), key=lambda a: a.toolkit, reverse=True
    )
    if variant == "cuda" and machine.cuda_driver is not None:
        driver = machine.cuda_driver
        fitting = [a for a in builds if a.toolkit[:1] <= driver[:1]]
        if builds and not fitting:
            raise NotOfferedError(
                f"the NVIDIA driver supports CUDA {driver[0]}.{driver[1]}, the release needs "
                f"{builds[-1].toolkit[0]} or newer; update the driver"
            )
        within = [a for a in fitting if a.toolkit[:2] <= driver]
        builds = within or fitting[::-1]
    if not builds:
        available = sorted(
            {a.backend for a in parsed if (a.os, a.arch) == (machine.os, machine.arch)}
        )
        raise NotOfferedError(
            f"the release has no {variant} build for {machine.os}-{machine.arch}; "
            f"available: {', '.join(available) or 'none'}"
        )
    chosen = [builds[0].name]
    if variant == "cuda" and runtime.cuda_runtime(builds[0].toolkit[0])[1]:
        chosen += [a.name for a in matching if a.is_runtime and a.toolkit == builds[0].toolkit]
    return chosen


def _mirror() -> str:
    return os.environ.get("LLAMA_CFFI_GITHUB", "").strip()


def _headers() -> dict[str, str]:
    """Return the headers for the API; GITHUB_TOKEN is sent to GitHub only, never to a mirror."""
    headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    token = os.environ.get("GITHUB_TOKEN", "").strip()
    if token and not _mirror():
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _api(path: str) -> Any:
    return Client().json(join(_mirror() or _API, f"repos/{_REPO}/{path}"), _headers())


@functools.lru_cache(maxsize=16)
def _release(path: str, mirror: str) -> dict[str, Any]:
    try:
        found = _api(path)
    except HttpStatusError as e:
        if e.status != 404:
            raise
        raise NotOfferedError(
            f"{_mirror() or _API} has no release {path.rpartition('/')[2]} of {_REPO} (HTTP 404). "
            "GitHub has releases for b-tags only; v-tags come from npm. "
            "`llama-cffi libs list --remote` shows what is available."
        ) from e
    if not isinstance(found, dict) or not isinstance(found.get("assets"), list):
        raise FetchError(f"the release API at {_mirror() or _API} gave no list of assets. {_CHECK}")
    return found


def latest() -> str:
    """Return the tag of the newest release."""
    return plain_name(_release("releases/latest", _mirror()).get("tag_name"), "the latest tag")


def tags() -> list[str]:
    """List the newest 30 release tags, newest first."""
    releases = _api("releases?per_page=30")
    if not isinstance(releases, list):
        raise FetchError(f"the release API at {_mirror() or _API} gave no list. {_CHECK}")
    found = [release.get("tag_name") for release in releases if isinstance(release, dict)]
    return [tag for tag in found if isinstance(tag, str) and is_plain_name(tag)]


def assets(tag: str) -> dict[str, RemoteFile]:
    """Return the assets of release *tag* by name.

    Raises:
        NotOfferedError: There is no such release.
        FetchError: A digest differs from the pinned one.
    """
    found = {}
    for asset in _release(f"releases/tags/{tag}", _mirror())["assets"]:
        asset = asset if isinstance(asset, dict) else {}
        name, url = asset.get("name"), asset.get("browser_download_url")
        size = asset.get("size")
        if not (isinstance(name, str) and isinstance(url, str)):
            raise FetchError(f"release {tag} lists an asset without name or address. {_CHECK}")
        if not (size is None or (isinstance(size, int) and size >= 0)):
            raise FetchError(f"release {tag} gives {name} a size of {size!r} bytes. {_CHECK}")
        integrity = None
        if digest := asset.get("digest"):
            algorithm, _, hexdigest = str(digest).partition(":")
            try:
                integrity = sri(algorithm, hexdigest)
            except ValueError as e:
                raise FetchError(
                    f"release {tag} gives {name} the digest {str(digest)[:100]!r}: {e}. {_CHECK}"
                ) from e
        pinned = pins.github_asset(tag, name)
        if pinned and integrity and pinned != integrity:
            raise FetchError(
                f"release {tag} offers {name} with {integrity}, but llama_cffi has pinned it as "
                f"{pinned}. It was not fetched: one of the two was changed. Check "
                "LLAMA_CFFI_GITHUB."
            )
        found[name] = RemoteFile((_mirrored(url),), size, pinned or integrity)
    return found


def _mirrored(url: str) -> str:
    mirror = _mirror()
    return join(mirror, url[len(_WEB) :]) if mirror and url.startswith(_WEB + "/") else url


def source_archive(tag: str) -> RemoteFile:
    """Return the source tarball of *tag*; GitHub publishes no hash for it, so TLS has to do."""
    return RemoteFile((_mirrored(f"{_WEB}/{_REPO}/archive/refs/tags/{tag}.tar.gz"),))


def fetch(
    tag: str, variant: str, machine: Machine, progress: bool
) -> Callable[[Path, Path], dict[str, object]]:
    """Return a function that fills a store folder with the assets of *tag*; see `store.install`."""

    def fill(staging: Path, part_prefix: Path) -> dict[str, object]:
        offered = assets(tag)
        urls, hashes = [], []
        for name in pick(list(offered), variant, machine):
            remote = offered[name]
            part = remote.part(part_prefix.with_name(f"{part_prefix.name}.{name}"))
            with downloaded(Client(), remote, part, progress=progress):
                extract(part, staging, _runtime if name.startswith("cudart-") else _main)
            urls.append(redact(remote.urls[0]))
            hashes.append(remote.integrity or "none: the release gives no digest")
        return {"tag": tag, "urls": urls, "integrity": hashes}

    return fill


def _main(paths: list[str]) -> Callable[[str], str | None]:
    """Keep the licence and the libraries in libllama's folder; drop programs."""
    roots = {p.rpartition("/")[0] for p in paths if is_libllama(p.rpartition("/")[2])}
    root = min(roots, key=len, default="")

    def place(path: str) -> str | None:
        folder, _, name = path.rpartition("/")
        wanted = _LIBRARY.fullmatch(name) or name.startswith("LICENSE")
        return name if folder == root and wanted else None

    return place


def _runtime(paths: list[str]) -> Callable[[str], str | None]:
    """Keep the libraries of a CUDA runtime archive."""

    def place(path: str) -> str | None:
        name = path.rpartition("/")[2]
        return name if _LIBRARY.fullmatch(name) else None

    return place
