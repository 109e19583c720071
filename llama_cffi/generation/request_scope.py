"""RequestScope: what the requests of a block have in common, and what they cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar, Token

from .stats import GenerationStats

__all__ = ["RequestScope", "current_scope"]


class RequestScope:
    """A block whose generations run for one client; in its threads and tasks, too.

    Args:
        client: For whom they run, see `InferenceEngine.submit`.
        priority: The default of `InferenceEngine.submit`.
        timeout_s: Seconds from now until all must have ended; None: no deadline.
        adapters: The default of `InferenceEngine.submit`; an `Engine` refuses them.

    Attributes:
        client: The same.
        priority: The same.
        adapters: The same.
        stats: The statistics of the generations that have started to wait for an engine.
    """

    def __init__(
        self,
        client: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        adapters: Mapping[str, float] | None = None,
    ) -> None:
        self.client, self.priority, self.adapters = client, priority, adapters
        self.stats: list[GenerationStats] = []
        self._deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._outer: Token[RequestScope | None]

    def timeout_s(self, given: float | None) -> float | None:
        """Return the seconds that a generation has, of which *given* were asked for.

        Not below a millisecond, so that what is late already ends as what is late soon.
        """
        if self._deadline_s is None:
            return given
        left = max(0.001, self._deadline_s - time.monotonic())
        return left if given is None else min(left, given)

    def __enter__(self) -> RequestScope:
        self._outer = _scope.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _scope.reset(self._outer)


_scope: ContextVar[RequestScope | None] = ContextVar("llama_cffi-request-scope", default=None)


def current_scope() -> RequestScope | None:
    """Return the innermost block that is open here; None: there is none."""
    return _scope.get()
