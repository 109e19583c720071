"""The npm source: `@node-llama-cpp/<platform>` packages, verified with the registry's hashes."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FetchError
from . import npmrc, pins
from .archive import extract
from .download import RemoteFile, downloaded
from .faults import HttpStatusError, NotOfferedError
from .http import host, join, redact
from .specs import is_plain_name, plain_name
from .store import is_libllama, packaged_tag, version_key

__all__ = ["fetch", "latest", "locate", "versions"]

_NODE_ONLY = (".node", ".lib", ".exp")
_ACCEPT = "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8"


def configured() -> bool:
    """Return whether npm has a registry configured on this machine."""
    return npmrc.load() is not None


def config() -> npmrc.NpmConfig:
    """Return npm's configuration.

    Raises:
        FetchError: Npm is not configured on this machine.
    """
    found = npmrc.load()
    if found is None:
        raise FetchError(
            "the npm source needs a registry, but npm is not configured here: no "
            "LLAMA_CFFI_NPM_REGISTRY, no registry in .npmrc, no npm on PATH. Set "
            "LLAMA_CFFI_NPM_REGISTRY to your registry's address, or use github:<tag>."
        )
    return found


@functools.lru_cache(maxsize=64)
def _document(registry: str, package: str) -> dict[str, Any]:
    conf = config()
    url = join(registry, urllib.parse.quote(package, safe="@"))
    try:
        found = conf.client().json(url, {"Accept": _ACCEPT, **conf.headers(url)})
    except HttpStatusError as e:
        if e.status != 404:
            raise
        raise NotOfferedError(f"{redact(registry)} has no package {package} (HTTP 404)") from e
    if not isinstance(found, dict) or not isinstance(found.get("versions"), dict):
        raise FetchError(f"{redact(url)} is not a package document. Check the registry's address.")
    return found


def versions(package: str) -> list[str]:
    """List the versions of `@node-llama-cpp/<package>` on the registry, newest first."""
    document = _document(config().scoped, f"@node-llama-cpp/{package}")
    return sorted(filter(is_plain_name, document["versions"]), key=version_key, reverse=True)


def latest(package: str) -> str:
    """Return the version that the registry calls latest."""
    document = _document(config().scoped, f"@node-llama-cpp/{package}")
    tags = document.get("dist-tags")
    found = tags.get("latest") if isinstance(tags, dict) else None
    if found is None:
        found = next(iter(versions(package)), None)
    return plain_name(found, "the registry's latest version")


def locate(package: str, version: str, *, scoped: bool = True) -> RemoteFile:
    """Ask the registry for a tarball's address and hash, and compare the hash with its pin.

    Args:
        package: Package name, without the scope.
        version: npm version.
        scoped: Whether it is a `@node-llama-cpp` package.

    Raises:
        NotOfferedError: The registry does not have the package or version.
        FetchError: The registry gives no hash, or not the pinned one.
    """
    conf = config()
    registry, name = (conf.scoped, f"@node-llama-cpp/{package}") if scoped else (conf.main, package)
    entry = _document(registry, name)["versions"].get(version)
    if not isinstance(entry, dict):
        raise NotOfferedError(
            f"{redact(registry)} has no {name}@{version}; "
            "`llama-cffi libs list --remote` shows what is available"
        )
    dist = entry.get("dist")
    dist = dist if isinstance(dist, dict) else {}
    integrity, tarball = dist.get("integrity"), dist.get("tarball")
    if not (isinstance(integrity, str) and isinstance(tarball, str) and integrity and tarball):
        raise FetchError(
            f"{redact(registry)} gives no hash for {name}@{version}, so it was not fetched. "
            "Use another registry."
        )
    pin = pins.package(version, package)
    if pin is not None and pin.integrity is not None and pin.integrity != integrity:
        raise FetchError(
            f"{redact(registry)} offers {name}@{version} with hash {integrity}, but llama_cffi "
            f"has pinned it as {pin.integrity}. It was not fetched: one of the two was changed. "
            "Check the registry's address."
        )
    urls = [tarball]
    own = join(registry, f"{name}/-/{name.rpartition('/')[2]}-{version}.tgz")
    if host(own) != host(tarball):
        # A mirror that forwards the origin's document unchanged has the file itself, too.
        urls.insert(0, own)
    return RemoteFile(
        urls=tuple(urls),
        size=pin.size if pin else None,
        integrity=integrity,
        headers={url: conf.headers(url) for url in urls},
    )


def fetch(
    packages: tuple[str, ...], version: str, progress: bool
) -> Callable[[Path, Path], dict[str, object]]:
    """Return a function that fills a store folder with *packages*; see `store.install`."""

    def fill(staging: Path, part_prefix: Path) -> dict[str, object]:
        client = config().client()
        receipt_urls, hashes = [], []
        for number, package in enumerate(packages):
            remote = locate(package, version)
            part = remote.part(part_prefix)
            with downloaded(client, remote, part, progress=progress):
                extract(part, staging, _overlay if number else _main)
            receipt_urls.append(redact(remote.urls[0]))
            hashes.append(remote.integrity)
        return {"tag": packaged_tag(staging), "urls": receipt_urls, "integrity": hashes}

    return fill


def _main(paths: list[str]) -> Callable[[str], str | None]:
    """Keep the licence and the files in libllama's folder."""
    roots = {p.rpartition("/")[0] for p in paths if is_libllama(p.rpartition("/")[2])}
    root = min(roots, key=len, default="package/bins")

    def place(path: str) -> str | None:
        if path == "package/LICENSE":
            return "LICENSE"
        folder, _, name = path.rpartition("/")
        return name if folder == root and not name.endswith(_NODE_ONLY) else None

    return place


def _overlay(paths: list[str]) -> Callable[[str], str | None]:
    """Keep the libraries of an extension package, which replace those of the same name."""

    def place(path: str) -> str | None:
        folder, _, name = path.rpartition("/")
        return name if folder.endswith("/fallback") else None

    return place
