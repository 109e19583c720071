"""One finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Check", "Status"]

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at: `system`, `library`, `generation`, ...
        status: `warn` leaves generation working, perhaps slower than it could be.
        detail: What was found, in one line.
        advice: What to do about it; empty when there is nothing to do.
        data: The evidence, in JSON types.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self)
