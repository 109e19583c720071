"""What the cache remembers beside builds: `libs use` choices, resolved `latest`, good variants.

One file, ``<cache>/state.json``. Losing it costs a question to the network, never a build.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from llama_cffi.errors import FetchError

from .machine import fingerprint
from .store import cache_dir, cache_lock, read_json, write_json

__all__ = ["chosen", "latest", "push", "remember", "remember_latest", "remembered"]

log = logging.getLogger("llama_cffi.libs_fetch")

_HISTORY = 20


def _read() -> dict[str, Any]:
    return read_json(cache_dir() / "state.json")


def _change(change: Callable[[dict[str, Any]], None]) -> None:
    with cache_lock("state"):
        state = _read()
        change(state)
        write_json(cache_dir() / "state.json", state)


def _change_quietly(change: Callable[[dict[str, Any]], None]) -> None:
    """Remember something if the cache can be written; a read-only one works without."""
    try:
        _change(change)
    except (FetchError, OSError) as exc:
        log.debug("not remembered: %s", exc)


def history() -> list[dict[str, str]]:
    """Return the `use` choices, the one in force last; each has ``spec`` and ``backend``."""
    found = _read().get("use", [])
    return [c for c in found if isinstance(c, dict) and {"spec", "backend"} <= c.keys()]


def chosen() -> dict[str, str] | None:
    """Return the `use` choice in force, None if there is none."""
    return next(reversed(history()), None)


def push(spec: str, backend: str) -> None:
    """Make a choice the one in force, keeping the former for `pop`."""
    entry = {"spec": spec, "backend": backend}

    def change(state: dict[str, Any]) -> None:
        state["use"] = [*[c for c in history() if c != entry][-_HISTORY:], entry]

    _change(change)


def pop() -> None:
    """Drop the choice in force; the one before it takes over."""
    _change(lambda state: state.update(use=history()[:-1]))


def latest(source: str) -> str | None:
    """Return the version that `latest` of *source* was when it was last asked."""
    found = _read().get("latest", {}).get(source)
    return str(found) if found else None


def remember_latest(source: str, version: str) -> None:
    """Keep what `latest` of *source* is, so that it is fetched once and then stays."""
    _change_quietly(lambda state: state.setdefault("latest", {}).update({source: version}))


def remembered(source: str, version: str, backend: str) -> tuple[str, str] | None:
    """Return the (variant, reason) found good for *backend*; None if this machine has changed."""
    found = _read().get("chosen", {}).get(f"{source}:{version} {backend}")
    if not isinstance(found, dict) or found.get("machine") != fingerprint():
        return None
    return str(found.get("variant")), str(found.get("reason"))


def remember(source: str, version: str, backend: str, variant: str, reason: str) -> None:
    """Keep the variant that was found good, for as long as the machine stays as it is."""
    entry = {"variant": variant, "reason": reason, "machine": fingerprint()}
    key = f"{source}:{version} {backend}"
    _change_quietly(lambda state: state.setdefault("chosen", {}).update({key: entry}))
