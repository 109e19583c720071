"""`Engine`: one generation at a time."""

from .engine import Engine, EngineOptions

__all__ = ["Engine", "EngineOptions"]
