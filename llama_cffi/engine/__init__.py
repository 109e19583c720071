"""One request at a time: `Engine`, its lock and its stages."""

from .engine import Engine

__all__ = ["Engine"]
