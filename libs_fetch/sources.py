"""The remote sources behind one face: npm first, GitHub second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from . import choose, machine, pins, state
from .choose import NPM_VARIANTS, Choice
from .machine import Machine
from .specs import Spec

__all__ = ["SOURCES", "Source"]

Filler = Callable[[Path, Path], "dict[str, object]"]


class Source(Protocol):
    """A place that builds come from."""

    name: str

    def lacks(self, spec: Spec) -> str:
        """Say why the source is not to be asked for *spec*; empty if it is."""
        ...

    def version_for(self, spec: Spec, *, ask: bool = False) -> str | None:
        """Turn *spec* into a version of this source; with *ask* the network may be asked."""
        ...

    def choice(self, version: str, backend: str, here: Machine, *, strict: bool) -> Choice:
        """List the variants to try."""
        ...

    def filler(self, version: str, variant: str, here: Machine, progress: bool) -> Filler:
        """Make the function that fills a store folder."""
        ...

    def versions(self) -> list[str]:
        """List what the source has for this platform, newest first."""
        ...


class Npm:
    """The npm registry that npm is configured for."""

    name = "npm"

    def lacks(self, spec: Spec) -> str:
        """Say why npm is not to be asked: it has not that tag, or is not configured here."""
        from . import npmrc

        if self.version_for(spec) is None and spec.version != "latest":
            return f"no release is known to carry {spec}"
        if npmrc.load() is None:
            return "not configured here (no registry in .npmrc, no npm; LLAMA_CFFI_NPM_REGISTRY)"
        return ""

    def version_for(self, spec: Spec, *, ask: bool = False) -> str | None:
        """Turn *spec* into an npm version."""
        if spec.version == "default":
            return dict(pins.default_versions())[self.name]
        if spec.version == "latest":
            if ask:
                from . import npm

                found = npm.latest(self._package())
                state.remember_latest(self.name, found)
                return found
            return state.latest(self.name)
        if spec.source == self.name:
            return spec.version
        return pins.npm_version_of(spec.version)

    def choice(self, version: str, backend: str, here: Machine, *, strict: bool) -> Choice:
        """List the variants to try."""
        return choose.npm_choice(version, backend, here, strict=strict)

    def filler(self, version: str, variant: str, here: Machine, progress: bool) -> Filler:
        """Make the function that fills a store folder."""
        from . import npm

        return npm.fetch(NPM_VARIANTS[here.os, here.arch][variant], version, progress)

    def versions(self) -> list[str]:
        """List what the registry has for this platform, newest first."""
        from . import npm

        return npm.versions(self._package())

    def _package(self) -> str:
        offered = NPM_VARIANTS.get(
            (machine.os_name(), machine.arch_name()), {"cpu": ("linux-x64",)}
        )
        return list(offered.values())[-1][0]


class GitHub:
    """The releases of ggml-org/llama.cpp, from github.com or the mirror LLAMA_CFFI_GITHUB."""

    name = "github"

    def lacks(self, spec: Spec) -> str:
        """Say why GitHub is not to be asked: it makes no releases for v-tags."""
        return "makes releases for b-tags only" if spec.version.startswith("v") else ""

    def version_for(self, spec: Spec, *, ask: bool = False) -> str | None:
        """Turn *spec* into a release tag."""
        if spec.version == "latest":
            if ask:
                from . import github

                found = github.latest()
                state.remember_latest(self.name, found)
                return found
            return state.latest(self.name)
        if spec.version == "default":
            return dict(pins.default_versions())[self.name]
        return spec.version

    def choice(self, version: str, backend: str, here: Machine, *, strict: bool) -> Choice:
        """List the variants to try."""
        return choose.github_choice(backend, here, strict=strict)

    def filler(self, version: str, variant: str, here: Machine, progress: bool) -> Filler:
        """Make the function that fills a store folder."""
        from . import github

        return github.fetch(version, variant, here, progress)

    def versions(self) -> list[str]:
        """List the newest releases, newest first."""
        from . import github

        return github.tags()


SOURCES: tuple[Source, ...] = (Npm(), GitHub())
