"""State that the cache keeps besides builds: `libs use` choices, resolved `latest`, variants.

One file, `<cache>/state.json`. Losing it loses those choices and costs a request, never a build.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..errors import FetchError, ValidationError
from .machine import fingerprint
from .specs import is_plain_name, parse
from .store import cache_dir, cache_lock, read_json, write_json

__all__ = [
    "chosen",
    "history",
    "latest",
    "pop",
    "push",
    "remember",
    "remember_latest",
    "remembered",
]

_log = logging.getLogger(__name__)

_HISTORY = 20


def _read() -> dict[str, Any]:
    return read_json(cache_dir() / "state.json")


def _part(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of the state; empty if it is missing or of another type."""
    found = state.get(name)
    return found if isinstance(found, dict) else {}


def _change(change: Callable[[dict[str, Any]], None]) -> None:
    with cache_lock("state"):
        state = _read()
        change(state)
        write_json(cache_dir() / "state.json", state)


def _change_quietly(change: Callable[[dict[str, Any]], None]) -> None:
    """Change the state if the cache can be written; a read-only cache works without it."""
    try:
        _change(change)
    except (FetchError, OSError) as e:
        _log.debug("state not written: %s", e)


def history() -> list[dict[str, str]]:
    """Return the `use` choices with their `spec` and `backend`, the current one last."""
    found = _read().get("use")
    return [c for c in found if _is_choice(c)] if isinstance(found, list) else []


def _is_choice(found: object) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("backend"), str):
        return False
    try:
        return isinstance(found.get("spec"), str) and bool(parse(found["spec"]))
    except ValidationError:
        return False


def chosen() -> dict[str, str] | None:
    """Return the current `use` choice; None if there is none."""
    return next(reversed(history()), None)


def push(spec: str, backend: str) -> None:
    """Make a choice the current one, keeping the previous ones for `pop`."""
    entry = {"spec": spec, "backend": backend}

    def change(state: dict[str, Any]) -> None:
        state["use"] = [*[c for c in history() if c != entry][-_HISTORY:], entry]

    _change(change)


def pop() -> None:
    """Drop the current choice; the one before it becomes current."""
    _change(lambda state: state.update(use=history()[:-1]))


def latest(source: str) -> str | None:
    """Return the version that `latest` of *source* last resolved to; None if it never did."""
    found = _part(_read(), "latest").get(source)
    return str(found) if is_plain_name(found) else None


def remember_latest(source: str, version: str) -> None:
    """Store the version that `latest` of *source* resolves to, so that it stays the same."""
    _remember_in("latest", source, version)


def remembered(source: str, version: str, backend: str) -> tuple[str, str] | None:
    """Return the stored (variant, reason) for *backend*; None once the machine has changed."""
    found = _part(_part(_read(), "chosen"), f"{source}:{version} {backend}")
    variant = found.get("variant")
    if not is_plain_name(variant) or found.get("machine") != fingerprint():
        return None
    return str(variant), str(found.get("reason"))


def remember(source: str, version: str, backend: str, variant: str, reason: str) -> None:
    """Store a variant that works, valid until the machine's fingerprint changes."""
    entry = {"variant": variant, "reason": reason, "machine": fingerprint()}
    key = f"{source}:{version} {backend}"
    _remember_in("chosen", key, entry)


def _remember_in(section: str, key: str, value: object) -> None:
    def change(state: dict[str, Any]) -> None:
        state[section] = {**_part(state, section), key: value}

    _change_quietly(change)
