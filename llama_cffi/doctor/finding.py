"""The type of a finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..html_repr import shown_by

__all__ = ["Check", "Status"]

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """A check and its result.

    Attributes:
        name: The subject: `system`, `library`, `generation`, ...
        status: `ok`, `fail`, or `warn`: generation works, but perhaps slower than it could.
        detail: The finding, in one line.
        advice: What to do about it; empty if there is nothing to do.
        data: The evidence, as JSON types.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    _repr_html_ = shown_by("check")
