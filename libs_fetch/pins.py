"""Pinned builds: the defaults, their hashes, and the llama.cpp tag of each npm version."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine

__all__ = [
    "Pin",
    "default_versions",
    "github_asset",
    "needs",
    "npm_version_of",
    "package",
    "tag_of",
]


@dataclass(frozen=True)
class Pin:
    """The pinned SRI hash and length in bytes of one package."""

    integrity: str | None
    size: int | None


@functools.lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """Return the content of pins.json."""
    text = Path(__file__).with_name("pins.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def default_versions() -> tuple[tuple[str, str], ...]:
    """Return this platform's default build of each source, the preferred source first."""
    chosen = table()["default"]
    platform = f"{machine.os_name()}-{machine.arch_name()}"
    return (("npm", chosen["npm"].get(platform, chosen["npm"]["*"])), ("github", chosen["github"]))


def package(version: str, name: str) -> Pin | None:
    """Return the pin of npm package *name* at *version*; None if it is not pinned."""
    entry = table()["npm"].get(version, {}).get("packages", {}).get(name)
    return Pin(entry.get("integrity"), entry.get("size")) if entry else None


def needs(version: str, name: str) -> dict[str, str]:
    """Return the system versions (`GLIBC`, `GLIBCXX`) that npm package *name* needs, if pinned."""
    entry = table()["npm"].get(version, {}).get("packages", {}).get(name) or {}
    found: dict[str, str] = entry.get("needs") or {}
    return found


def github_asset(tag: str, name: str) -> str | None:
    """Return the SRI hash of a release asset; None if it is not pinned."""
    found = table()["github"].get(tag, {}).get("assets", {}).get(name)
    return str(found) if found else None


def npm_version_of(tag: str) -> str | None:
    """Return the newest npm version built from llama.cpp *tag*; None if there is none."""
    from .store import version_key

    matching = [version for version, of in table()["tags"].items() if of == tag]
    return max(matching, key=version_key, default=None)


def tag_of(npm_version: str) -> str | None:
    """Return the llama.cpp tag of an npm version; None if it is not in the table."""
    found = table()["tags"].get(npm_version)
    return str(found) if found else None
