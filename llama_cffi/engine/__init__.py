"""One request at a time: `Engine`, its lock and its stages."""

from .engine import Engine, EngineOptions

__all__ = ["Engine", "EngineOptions"]
