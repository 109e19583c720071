"""Responses kept in memory, for `previous_response_id` and item references."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..validation import check_int

__all__ = ["Item", "ResponseStore", "StoredResponse"]

Item: TypeAlias = dict[str, Any]  # of the input or output of a response


class StoredResponse(NamedTuple):
    """A stored response.

    Attributes:
        response: The response object.
        conversation: All items up to it: of earlier turns, its input and its output.
    """

    response: Item
    conversation: list[Item]


class ResponseStore:
    """Keeps responses; those that have not been used for longest make way for new ones.

    They are kept as JSON, which makes the limit exact. Each has the whole conversation, so that it
    does not depend on earlier ones being kept.

    Args:
        max_responses: Most responses; 0: none is kept.
        max_bytes: Most bytes of JSON; a larger response is not kept.

    Attributes:
        n_bytes: Bytes that are in use.

    Raises:
        ValidationError: A limit is negative.
    """

    def __init__(self, max_responses: int = 1000, max_bytes: int = 256 << 20) -> None:
        self._max_responses = check_int("max_responses", max_responses, 0)
        self._max_bytes = check_int("max_bytes", max_bytes, 0, 1 << 62)
        self._stored: OrderedDict[str, bytes] = OrderedDict()  # least recently used first
        self._homes: dict[str, str] = {}  # id of an output item -> id of its response
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(
        self, response: Mapping[str, object], conversation: Sequence[Mapping[str, object]]
    ) -> None:
        """Store a response; see `StoredResponse` for its *conversation*."""
        key = str(response["id"])
        self.remove(key)
        stored = json.dumps([response, conversation]).encode()
        self._stored[key] = stored
        self.n_bytes += len(stored)
        self._homes.update((item_id, key) for item_id in _item_ids(response))
        while len(self._stored) > self._max_responses or self.n_bytes > self._max_bytes:
            self.remove(next(iter(self._stored)))

    def get(self, response_id: str) -> StoredResponse | None:
        """Return a response, which counts as using it; None if it is not stored."""
        stored = self._stored.get(response_id)
        if stored is None:
            return None
        self._stored.move_to_end(response_id)
        return StoredResponse(*json.loads(stored))

    def input_items(self, response_id: str) -> list[Item] | None:
        """Return the items before the output of a response; None if it is not stored."""
        found = self.get(response_id)
        if found is None:
            return None
        return found.conversation[: len(found.conversation) - len(found.response["output"])]

    def item(self, item_id: str) -> Item | None:
        """Return an item of the output of a stored response; None if there is none."""
        found = self.get(self._homes.get(item_id, ""))
        output = found.response["output"] if found else ()
        return next((item for item in output if item["id"] == item_id), None)

    def remove(self, response_id: str) -> bool:
        """Remove a response; return whether it was stored."""
        stored = self._stored.pop(response_id, None)
        if stored is None:
            return False
        self.n_bytes -= len(stored)
        for item_id in _item_ids(json.loads(stored)[0]):
            self._homes.pop(item_id, None)
        return True


def _item_ids(response: Mapping[str, object]) -> list[str]:
    output = response["output"]
    return [item["id"] for item in output] if isinstance(output, list) else []
