"""Model names -> GGUF files."""

from __future__ import annotations

from pathlib import Path

from .errors import ValidationError

__all__ = ["resolve_model"]


def resolve_model(spec: str) -> Path:
    """Return the file of *spec*."""
    if spec.startswith("hf:"):
        raise ValidationError("hf: models are not there yet")
    return Path(spec).expanduser()
