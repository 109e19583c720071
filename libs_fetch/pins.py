"""The pinned builds: which build is the default, its hashes, and which npm version has which tag."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Pin", "default_versions", "npm_version_of", "package", "requirements", "tag_of"]


@dataclass(frozen=True)
class Pin:
    """What is known beforehand about one package: SRI hash and length in bytes, where known."""

    integrity: str | None
    size: int | None


@functools.lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """Return pins.json."""
    text = Path(__file__).with_name("pins.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def default_versions() -> tuple[tuple[str, str], ...]:
    """Return the default build of each source, the preferred source first."""
    chosen = table()["default"]
    return (("npm", chosen["npm"]), ("github", chosen["github"]))


def package(version: str, name: str) -> Pin | None:
    """Return the pin of npm package *name* at *version*, None if it is not pinned."""
    entry = table()["npm"].get(version, {}).get("packages", {}).get(name)
    return Pin(entry.get("integrity"), entry.get("size")) if entry else None


def requirements(version: str, name: str) -> dict[str, Any]:
    """Return what npm package *name* needs (glibc, glibcxx, cuda), as far as it is pinned."""
    entry = table()["npm"].get(version, {}).get("packages", {}).get(name) or {}
    found: dict[str, Any] = entry.get("requires") or {}
    return found


def npm_version_of(tag: str) -> str | None:
    """Return the newest npm version built from llama.cpp *tag*."""
    from .store import version_key

    fitting = [version for version, of in table()["tags"].items() if of == tag]
    return max(fitting, key=version_key, default=None)


def tag_of(npm_version: str) -> str | None:
    """Return the llama.cpp tag of an npm version, None if it is not in the table."""
    found = table()["tags"].get(npm_version)
    return str(found) if found else None
