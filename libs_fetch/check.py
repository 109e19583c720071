"""Can this build run here? Checked from the files, before anything is loaded."""

from __future__ import annotations

from .store import InstalledBuild

__all__ = ["machine_fits", "problems"]


def machine_fits(build: InstalledBuild) -> None:
    """To be written."""


def problems(build: InstalledBuild) -> list[str]:
    """To be written."""
    return []
