"""The input of a stored response: items in the client's types, page by page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import invalid
from .objects import new_id

if TYPE_CHECKING:
    from ..response_store import Item

__all__ = ["page_of", "with_ids"]

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
_STATUS = ("message", "function_call", "function_call_output")
_MOST = 100


def with_ids(items: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Return items of the input as they are listed: with ids, statuses, and content in parts."""
    found = []
    for item in items:
        kind = item.get("type") or "message"
        listed: Item = {**item, "type": kind}
        listed.setdefault("id", new_id(_PREFIXES.get(kind, "item")))
        if kind in _STATUS:
            listed.setdefault("status", "completed")
        if kind == "message":
            is_output = item.get("role") == "assistant"
            content = item["content"]
            parts = [content] if isinstance(content, str) else content
            listed["content"] = [_part(part, is_output) for part in parts]
        found.append(listed)
    return found


def _part(part: str | Mapping[str, Any], is_output: bool) -> Item:
    kind = "output_text" if is_output else "input_text"
    found: Item = {"type": kind, "text": part} if isinstance(part, str) else dict(part)
    if found.get("type") == "text":
        found["type"] = kind
    if found.get("type") == "output_text":
        found = {"annotations": [], "logprobs": [], **found}
    return found


def page_of(items: Sequence[Item], query: Callable[[str], str | None]) -> Item:
    """Return a page of items, as the query of the URL asks: `order`, `after` and `limit`.

    Args:
        items: From the first one on.
        query: Returns a parameter of the URL; None: it is absent.

    Raises:
        ApiError: A parameter has a wrong value.
    """
    order = query("order") or "desc"
    if order not in ("asc", "desc"):
        raise invalid("order", f"order must be asc or desc, got {order!r:.60}")
    limit = query("limit") or "20"
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _MOST):
        raise invalid("limit", f"limit must be from 1 to {_MOST}, got {limit!r:.60}")
    found = [*items] if order == "asc" else [*items][::-1]
    ids = [item["id"] for item in found]
    if (after := query("after")) is not None:
        if after not in ids:
            raise invalid("after", f"after={after!r:.60} is not an item of this response")
        found = found[ids.index(after) + 1 :]
    page = found[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(found) > len(page),
    }
