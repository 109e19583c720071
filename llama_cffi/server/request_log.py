"""RequestLog: a line of JSON per request, without prompts, answers and secrets."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from ..generation.stats import GenerationStats
from .errors import ApiError

__all__ = ["LOGGER", "RequestLog"]

LOGGER = logging.getLogger("llama_cffi.server.requests")
_MAX_PATH = 200  # characters


class RequestLog:
    """What the log tells of one request.

    Args:
        id: Its id, which the client gets too.
        method: GET, POST or another one.
        path: The path, without the query.

    Attributes:
        key: The name of its API key.
        model: The name of the model that it is for.
        status: The HTTP status; None: no response had begun.
        error: Why it failed.
        left: Whether the client left before the end.
    """

    def __init__(self, id: str, method: str, path: str) -> None:
        self.id, self.method, self.path = id, method, path
        self.key: str | None = None
        self.model: str | None = None
        self.status: int | None = None
        self.error: ApiError | None = None
        self.left = False
        self._time, self._started_s = datetime.now(timezone.utc), time.perf_counter()

    def write(self, generations: Sequence[GenerationStats] = ()) -> None:
        """Log the end of the request, which ran *generations*."""
        line: dict[str, Any] = {
            "time": self._time.isoformat(timespec="milliseconds"),
            "id": self.id,
            "key": self.key,
            "method": self.method,
            "path": self.path[:_MAX_PATH],
            "model": self.model,
            "status": self.status,
            "end": "client_left" if self.left else "error" if self.error else "done",
            "error": self.error and self.error.type,
            "ms": _ms(time.perf_counter() - self._started_s),
        }
        if generations:
            reasons = sorted({stats.finish_reason for stats in generations} - {""})
            line |= {
                "prompt_tokens": sum(stats.n_prompt for stats in generations),
                "cached_tokens": sum(stats.n_reused for stats in generations),
                "completion_tokens": sum(stats.n_generated for stats in generations),
                # Generations of one request run together.
                "queue_ms": _ms(max(stats.queue_s for stats in generations)),
                "prefill_ms": _ms(max(stats.prefill_s for stats in generations)),
                "decode_ms": _ms(max(stats.decode_s for stats in generations)),
                "finish_reason": ",".join(reasons) or None,
            }
        LOGGER.info("%s", json.dumps(line))


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
