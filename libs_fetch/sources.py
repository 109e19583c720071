"""The remote sources behind one face: npm first, GitHub second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from . import choose, npm, npmrc, pins, state
from .choose import Choice
from .machine import Machine, arch_name, os_name
from .specs import Spec

__all__ = ["SOURCES", "Source"]

Filler = Callable[[Path, Path], "dict[str, object]"]


class Source(Protocol):
    """A place that builds come from."""

    name: str

    def configured(self, spec: Spec) -> bool:
        """Tell whether this machine can be expected to reach the source for *spec*."""

    def version_for(self, spec: Spec, *, ask: bool = False) -> str | None:
        """Turn *spec* into a version of this source; with *ask* the network may be asked."""

    def choice(self, version: str, backend: str, machine: Machine, *, strict: bool) -> Choice:
        """List the variants to try."""

    def filler(self, version: str, variant: str, machine: Machine, progress: bool) -> Filler:
        """Make the function that fills a store folder."""

    def versions(self) -> list[str]:
        """List what the source has for this platform, newest first."""


class Npm:
    """The npm registry that npm is configured for."""

    name = "npm"

    def configured(self, spec: Spec) -> bool:
        """Tell whether npm has a registry here, and for a tag, whether npm has that tag."""
        return npmrc.load() is not None

    def version_for(self, spec: Spec, *, ask: bool = False) -> str | None:
        """Turn *spec* into an npm version."""
        if spec.version == "latest":
            if ask:
                found = npm.latest(self._package())
                state.remember_latest(self.name, found)
                return found
            return state.latest(self.name)
        if spec.source == self.name:
            return spec.version
        if spec.version == "default":
            return dict(pins.default_versions())[self.name]
        return pins.npm_version_of(spec.version)

    def choice(self, version: str, backend: str, machine: Machine, *, strict: bool) -> Choice:
        """List the variants to try."""
        return choose.npm_choice(version, backend, machine, strict=strict)

    def filler(self, version: str, variant: str, machine: Machine, progress: bool) -> Filler:
        """Make the function that fills a store folder."""
        return npm.fetch(npm.VARIANTS[machine.os, machine.arch][variant], version, progress)

    def versions(self) -> list[str]:
        """List what the registry has for this platform, newest first."""
        return npm.versions(self._package())

    def _package(self) -> str:
        offered = npm.VARIANTS.get((os_name(), arch_name()), {"cpu": ("linux-x64",)})
        return list(offered.values())[-1][0]


SOURCES: tuple[Source, ...] = (Npm(),)
