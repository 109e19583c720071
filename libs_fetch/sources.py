"""The remote sources of builds behind one interface: npm first, GitHub second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from . import cache_state, choose, machine, pins
from .choose import NPM_VARIANTS, VariantChoice
from .machine import Machine
from .specs import Spec

__all__ = ["SOURCES", "Source"]

Filler = Callable[[Path, Path], "dict[str, object]"]


class Source(Protocol):
    """A source of builds."""

    name: str

    def unavailable(self, spec: Spec) -> str:
        """Say why this source cannot have *spec*; empty if it may."""
        ...

    def version_for(self, spec: Spec, *, online: bool = False) -> str | None:
        """Resolve *spec* to a version of this source; only *online* may use the network."""
        ...

    def choice(self, version: str, backend: str, here: Machine, *, strict: bool) -> VariantChoice:
        """Choose the variants to try on the machine *here*; *strict* as for `npm_choice`."""
        ...

    def filler(self, version: str, variant: str, here: Machine, progress: bool) -> Filler:
        """Return a function that fills a store folder with a build; see `store.install`."""
        ...

    def versions(self) -> list[str]:
        """List the versions that the source has for this platform, newest first."""
        ...


class Npm:
    """The npm registry that this machine is configured for."""

    name = "npm"

    def unavailable(self, spec: Spec) -> str:
        """Say why npm cannot have *spec*: no version has its tag, or npm is not configured."""
        from . import npmrc

        if self.version_for(spec) is None and spec.version != "latest":
            return f"no version is known to contain {spec}"
        if npmrc.load() is None:
            return "not configured here (no registry in .npmrc, no npm; LLAMA_CFFI_NPM_REGISTRY)"
        return ""

    def version_for(self, spec: Spec, *, online: bool = False) -> str | None:
        """Resolve *spec* to an npm version."""
        if spec.version == "default":
            return dict(pins.default_versions())[self.name]
        if spec.version == "latest":
            if online:
                from . import npm

                found = npm.latest(self._package())
                cache_state.remember_latest(self.name, found)
                return found
            return cache_state.latest(self.name)
        if spec.source == self.name:
            return spec.version
        return pins.npm_version_of(spec.version)

    def choice(self, version: str, backend: str, here: Machine, *, strict: bool) -> VariantChoice:
        """Choose the variants to try."""
        return choose.npm_choice(version, backend, here, strict=strict)

    def filler(self, version: str, variant: str, here: Machine, progress: bool) -> Filler:
        """Return a function that fills a store folder with a build."""
        from . import npm

        return npm.fetch(NPM_VARIANTS[here.os, here.arch][variant], version, progress)

    def versions(self) -> list[str]:
        """List the versions on the registry for this platform, newest first."""
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

    def unavailable(self, spec: Spec) -> str:
        """Say why GitHub cannot have *spec*: there are no releases of v-tags."""
        return "has releases for b-tags only" if spec.version.startswith("v") else ""

    def version_for(self, spec: Spec, *, online: bool = False) -> str | None:
        """Resolve *spec* to a release tag."""
        if spec.version == "latest":
            if online:
                from . import github

                found = github.latest()
                cache_state.remember_latest(self.name, found)
                return found
            return cache_state.latest(self.name)
        if spec.version == "default":
            return dict(pins.default_versions())[self.name]
        return spec.version

    def choice(self, version: str, backend: str, here: Machine, *, strict: bool) -> VariantChoice:
        """Choose the variants to try."""
        return choose.github_choice(backend, here, strict=strict)

    def filler(self, version: str, variant: str, here: Machine, progress: bool) -> Filler:
        """Return a function that fills a store folder with a build."""
        from . import github

        return github.fetch(version, variant, here, progress)

    def versions(self) -> list[str]:
        """List the newest releases, newest first."""
        from . import github

        return github.tags()


SOURCES: tuple[Source, ...] = (Npm(), GitHub())
