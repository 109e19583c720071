"""The builds that tests run with."""

from __future__ import annotations

__all__ = ["MIDDLE", "NEWEST", "OLD"]

# Oldest, middle and newest on the registry; the newest is the default build.
OLD, MIDDLE, NEWEST = "npm:3.1.1", "npm:3.14.0", "npm:3.22.1"
