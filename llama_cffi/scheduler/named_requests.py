"""NamedRequests: the requests that have not ended, by the ids that their callers chose."""

from __future__ import annotations

import threading

from ..errors import ValidationError
from .request_handle import RequestHandle

__all__ = ["NamedRequests"]


class NamedRequests:
    """Finds requests by id, from any thread."""

    def __init__(self) -> None:
        self._handles: dict[str, RequestHandle] = {}
        self._lock = threading.Lock()

    def add(self, id: str, handle: RequestHandle) -> None:
        """Add a request, until it ends.

        Raises:
            ValidationError: A request with this id has not ended yet.
        """
        with self._lock:
            if id in self._handles:
                raise ValidationError(f"a request with id={id!r} has not ended; choose another id")
            self._handles[id] = handle
        handle.future.add_done_callback(lambda _: self.discard(id))

    def discard(self, id: str) -> None:
        """Remove a request."""
        with self._lock:
            self._handles.pop(id, None)

    def get(self, id: str) -> RequestHandle | None:
        """Return the request; None: there is none, or it has ended."""
        return self._handles.get(id)
