"""Decide which build is asked for, take it from the store, or fetch it. See `ensure`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from llama_cffi.errors import FetchError, LibraryLoadError, LibraryNotFoundError, LlamaError

from . import check, state, store
from .choose import AUTO, Choice
from .faults import HttpStatusError, NotOfferedError, OfflineError, UnreachableError
from .faults import offline as offline_env
from .machine import detect
from .sources import SOURCES, Source
from .specs import Spec, parse
from .store import InstalledBuild

__all__ = ["Request", "ensure", "fetch", "request"]

log = logging.getLogger("llama_cffi.libs_fetch")


@dataclass(frozen=True)
class Request:
    """A spec, the wanted backend, and who asked (for messages)."""

    spec: Spec
    backend: str
    asked_by: str


def request(spec: str | None = None, backend: str | None = None) -> Request:
    """Work out what is asked for: argument, LLAMA_CFFI_LIB, LLAMA_CFFI_BUILD, `use`, default.

    Raises:
        ValidationError: a spec that cannot be read.
    """
    env_backend = os.environ.get("LLAMA_CFFI_BACKEND", "").strip().lower() or None
    wanted = (backend or "").strip().lower() or env_backend
    if spec:
        return Request(parse(spec), wanted or AUTO, f"the argument {spec!r}")
    if library := os.environ.get("LLAMA_CFFI_LIB", "").strip():
        path = library if library.startswith("path:") else f"path:{library}"
        return Request(parse(path), wanted or AUTO, f"LLAMA_CFFI_LIB={library}")
    if build := os.environ.get("LLAMA_CFFI_BUILD", "").strip():
        return Request(parse(build), wanted or AUTO, f"LLAMA_CFFI_BUILD={build}")
    if used := state.chosen():
        return Request(
            parse(used["spec"]), wanted or used["backend"], f"`llama-cffi libs use {used['spec']}`"
        )
    return Request(Spec("any", "default"), wanted or AUTO, "the default")


def ensure(
    spec: str | None = None,
    *,
    backend: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> InstalledBuild:
    """Return the llama.cpp build to load, fetching it only if it is not in the store.

    Order: *spec*, LLAMA_CFFI_LIB, LLAMA_CFFI_BUILD, the `libs use` choice, the pinned default.
    *backend* (else LLAMA_CFFI_BACKEND, else ``auto``) is ``auto``, ``cpu``, ``cuda``, ``vulkan``,
    ``metal`` …; auto takes the best one that works here and keeps the reason.

    Raises:
        ValidationError: a spec or backend that cannot be read.
        LibraryNotFoundError: a path without a libllama.
        LibraryLoadError: the build needs a newer system than this one, or another machine.
        FetchError: it is not here and cannot be fetched.
    """
    asked = request(spec, backend)
    if asked.spec.source == "path":
        from .local import build_at

        given = build_at(asked.spec.version, asked.asked_by)
        check.library_fits(given.library)
        return given
    found = Findings()
    build = _from_store(asked, found)
    if build is not None:
        return build
    if offline if offline is not None else offline_env():
        found = Findings()
        build = _lesser_from_store(asked, found)
        if build is None:
            raise _not_here(asked, found)
        return build
    for problem in found.broken:
        log.warning("refused: %s; fetching %s again", problem, asked.spec)
    return _obtain(asked, force=False, progress=progress, strict=True)


def fetch(
    spec: str | None = None,
    *,
    backend: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> InstalledBuild:
    """Bring a build into the store, also one that this machine cannot run; *force* replaces it.

    `latest` is asked anew, where `ensure` keeps the answer of the first time.

    Raises:
        ValidationError: a spec that cannot be read, or one that is a path.
        FetchError: it cannot be fetched.
    """
    asked = request(spec, backend)
    if asked.spec.source == "path":
        from llama_cffi.errors import ValidationError

        raise ValidationError(f"{asked.asked_by} is a path: there is nothing to fetch.")
    return _obtain(asked, force=force, progress=progress, strict=False)


@dataclass
class Findings:
    """What a look into the store found amiss: damaged files, and what cannot work here."""

    broken: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)


def _from_store(asked: Request, found: Findings) -> InstalledBuild | None:
    """Find what is asked for without network.

    What was found good on this machine once is not looked at again until the machine changes.
    """
    for source, version in _known(asked.spec):
        remembered = state.remembered(source.name, version, asked.backend)
        if remembered is not None:
            build = store.load(source.name, version, *remembered)
            problems = store.quick_problems(build) if build is not None else []
            if build is not None and not problems:
                return build
            found.broken += problems
        elif build := _first_fit(source, version, asked.backend, found):
            state.remember(source.name, version, asked.backend, build.variant, build.backend_reason)
            return build
    return None


def _lesser_from_store(asked: Request, found: Findings) -> InstalledBuild | None:
    """Make do with what is in the store, also where auto would rather have another variant."""
    for source, version in _known(asked.spec):
        if build := _first_fit(source, version, asked.backend, found, lesser=True):
            return build
    return None


def _first_fit(
    source: Source, version: str, backend: str, found: Findings, lesser: bool = False
) -> InstalledBuild | None:
    """Find the best stored variant that works here; a lesser than the best only with *lesser*."""
    folder = store.build_folder(source.name, version, "x").parent
    if not folder.is_dir():
        return None
    choice = source.choice(version, backend, detect(), strict=True)
    for variant, why in choice.against.items():
        if (folder / variant).is_dir():
            found.unfit.append(f"{variant}: {why}")
    for variant in choice.variants:
        build = store.load(source.name, version, variant)
        if build is None:
            if backend == AUTO and not lesser:
                return None
            choice.against[variant] = "not in the store"
        elif problems := store.quick_problems(build):
            found.broken += problems
            choice.against[variant] = "damaged"
        elif problems := check.problems(build):
            found.unfit += problems
            choice.against[variant] = "; ".join(problems)
        else:
            return replace(build, backend_reason=choice.reason(variant))
    return None


def _not_here(asked: Request, found: Findings) -> LlamaError:
    """Explain without network why nothing can be given."""
    wanted = f"{asked.spec} (backend {asked.backend}, asked by {asked.asked_by})"
    if found.unfit and not found.broken:
        return LibraryLoadError(
            f"{wanted} is in the store but cannot work here: {'; '.join(found.unfit)}. Choose "
            "another backend with LLAMA_CFFI_BACKEND or another build with LLAMA_CFFI_BUILD."
        )
    damage = f" What is there is damaged: {'; '.join(found.broken)}." if found.broken else ""
    return LibraryNotFoundError(
        f"{wanted} is not in the store {store.cache_dir()} and the network is switched off."
        f"{damage} Run `llama-cffi libs fetch {asked.spec}` online, or set LLAMA_CFFI_LIB to a "
        "libllama."
    )


def _known(spec: Spec) -> Iterator[tuple[Source, str]]:
    """List the (source, version) pairs that *spec* may mean, as far as known without network."""
    for source in SOURCES:
        if spec.source in (source.name, "any"):
            version = source.version_for(spec)
            if version is not None:
                yield source, version


def _obtain(asked: Request, *, force: bool, progress: bool, strict: bool) -> InstalledBuild:
    """Fetch what is asked for from the first source that answers."""
    silent: list[str] = []
    for source in SOURCES:
        if asked.spec.source not in (source.name, "any"):
            continue
        if asked.spec.source == "any" and (why_not := source.lacks(asked.spec)):
            silent.append(f"{source.name}: {why_not}.")
            continue
        try:
            version = source.version_for(asked.spec, ask=True)
            assert version is not None
            return _obtain_from(source, version, asked, force, progress, strict)
        except OfflineError:
            raise
        except (UnreachableError, HttpStatusError, NotOfferedError) as exc:
            silent.append(f"{source.name}: {exc}")
            log.info("%s", silent[-1])
    stored = _lesser_from_store(asked, Findings()) if strict else None
    if stored is not None:
        return replace(stored, backend_reason=f"{stored.backend_reason}; {'; '.join(silent)}")
    raise FetchError(
        f"{asked.spec} (asked by {asked.asked_by}) could not be fetched. {' '.join(silent)} "
        "Set LLAMA_CFFI_LIB to use a libllama that is on this machine."
    )


def _obtain_from(
    source: Source, version: str, asked: Request, force: bool, progress: bool, strict: bool
) -> InstalledBuild:
    machine = detect()
    choice = source.choice(version, asked.backend, machine, strict=strict)
    missing: list[str] = []
    for variant in choice.variants:
        try:
            build = store.install(
                source.name,
                version,
                variant,
                source.filler(version, variant, machine, progress),
                force=force,
            )
        except NotOfferedError as exc:
            choice.against[variant] = str(exc)
            missing.append(str(exc))
            continue
        problems = check.problems(build)
        if problems and (strict or asked.backend == AUTO):
            choice.against[variant] = "; ".join(problems)
            continue
        reason = "; ".join([choice.reason(variant), *problems])
        if not problems and variant not in choice.against:
            state.remember(source.name, version, asked.backend, variant, reason)
        return replace(build, backend_reason=reason)
    if not choice.offered or (missing and len(missing) == len(choice.variants)):
        reasons = missing or list(choice.against.values())
        raise NotOfferedError(f"{source.name}:{version} is not to be had: {'; '.join(reasons)}.")
    raise _none_fits(source, version, asked, choice)


def _none_fits(source: Source, version: str, asked: Request, choice: Choice) -> LlamaError:
    return LibraryLoadError(
        f"No variant of {source.name}:{version} works here (backend {asked.backend}, asked by "
        f"{asked.asked_by}). {choice.reasons()}. "
        "Choose another backend with LLAMA_CFFI_BACKEND or another build with LLAMA_CFFI_BUILD, "
        "or set LLAMA_CFFI_LIB to a libllama built for this system."
    )
