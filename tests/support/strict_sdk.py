"""Values parsed by an SDK's own types without its leniency: unknown and missing fields fail."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import BaseModel, TypeAdapter

__all__ = ["strictly"]


def strictly(kind: Any, value: object) -> Any:
    """Return *value*, sent as JSON, as a *kind*.

    Raises:
        ValueError: A field is missing, unknown or of another type.
    """
    sent = json.loads(json.dumps(value, allow_nan=False))
    parsed = _adapter(kind).validate_python(sent, strict=True)
    _refuse_extra(parsed, "")
    return parsed


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # slow for a union of many types


def _refuse_extra(value: object, path: str) -> None:
    if isinstance(value, BaseModel):
        if value.model_extra:
            raise ValueError(f"{path or type(value).__name__} has unknown {[*value.model_extra]}")
        for name in value.model_fields_set:
            _refuse_extra(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_extra(item, f"{path}.{i}")
