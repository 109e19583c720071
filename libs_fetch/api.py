"""Resolve which build is requested, then take it from the store or fetch it. See `ensure`."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..errors import (
    FetchError,
    LibraryLoadError,
    LibraryNotFoundError,
    LlamaError,
    ValidationError,
)
from . import cache_state, check, store
from .choose import AUTO, BACKENDS
from .faults import CHECK_NETWORK, HttpStatusError, NotOfferedError, OfflineError, UnreachableError
from .faults import offline as offline_env
from .machine import detect
from .sources import SOURCES, Source
from .specs import Spec, parse
from .store import InstalledBuild

__all__ = ["BuildRequest", "ensure", "fetch", "resolve_request"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildRequest:
    """A requested build.

    Attributes:
        spec: The build.
        backend: The wanted backend, or `auto`.
        origin: Where the request comes from (an argument, a variable, …), for messages.
    """

    spec: Spec
    backend: str
    origin: str


def resolve_request(spec: str | None = None, backend: str | None = None) -> BuildRequest:
    """Resolve the requested build: argument, LLAMA_CFFI_LIB, LLAMA_CFFI_BUILD, `use`, default.

    Raises:
        ValidationError: A spec cannot be parsed, or there is no such backend.
    """
    env_backend = os.environ.get("LLAMA_CFFI_BACKEND", "").strip().lower() or None
    wanted = (backend or "").strip().lower() or env_backend
    if wanted is not None and wanted not in BACKENDS:
        name = "backend" if (backend or "").strip() else "LLAMA_CFFI_BACKEND"
        near = difflib.get_close_matches(wanted, BACKENDS, 1)
        raise ValidationError(
            f"{name}={wanted!r} is not one of {', '.join(BACKENDS)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    request = _requested(spec, wanted)
    if env_backend and not (backend or "").strip():
        origin = f"{request.origin} and LLAMA_CFFI_BACKEND={env_backend}"
        request = replace(request, origin=origin)
    return request


def _requested(spec: str | None, wanted: str | None) -> BuildRequest:
    if spec:
        return BuildRequest(parse(spec), wanted or AUTO, f"the argument {spec!r}")
    if library := os.environ.get("LLAMA_CFFI_LIB", "").strip():
        path = library if library.startswith("path:") else f"path:{library}"
        return BuildRequest(parse(path), wanted or AUTO, f"LLAMA_CFFI_LIB={library}")
    if build := os.environ.get("LLAMA_CFFI_BUILD", "").strip():
        return BuildRequest(parse(build), wanted or AUTO, f"LLAMA_CFFI_BUILD={build}")
    if used := cache_state.chosen():
        return BuildRequest(
            parse(used["spec"]), wanted or used["backend"], f"`llama-cffi libs use {used['spec']}`"
        )
    return BuildRequest(Spec("any", "default"), wanted or AUTO, "the default")


def ensure(
    spec: str | None = None,
    *,
    backend: str | None = None,
    offline: bool | None = None,
    progress: bool = True,
) -> InstalledBuild:
    """Return the llama.cpp build to load, fetching it only if it is not in the store.

    Args:
        spec: The build, such as `npm:3.22.1` or `path:DIR`; None: LLAMA_CFFI_LIB, then
            LLAMA_CFFI_BUILD, then the choice made with `use`, then the pinned default.
        backend: `cpu`, `cuda`, `vulkan`, `metal` …, or `auto`, which takes the best one that works
            on this machine and records why; None: LLAMA_CFFI_BACKEND, else `auto`.
        offline: Whether to stay off the network; None: as LLAMA_CFFI_OFFLINE says.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        ValidationError: The spec or the backend cannot be parsed.
        LibraryNotFoundError: The path holds no libllama, or the build is not in the store and the
            network is switched off.
        LibraryLoadError: The build needs a newer system or another architecture, or the path
            leads to a build of the store that is damaged.
        FetchError: The build is not in the store and cannot be fetched.
    """
    request = resolve_request(spec, backend)
    if request.spec.source == "path":
        from .local import build_at

        given = build_at(request.spec.version, request.origin)
        if given.receipt is not None and (damage := store.damage(given)):
            raise LibraryLoadError(
                f"{request.origin}: the build in the store is damaged: {'; '.join(damage)}. "
                f"Run `llama-cffi libs fetch {given.spec} --force`."
            )
        check.library_fits(given.library)
        return given
    problems = StoreProblems()
    build = _from_store(request, problems)
    if build is not None:
        return build
    if offline if offline is not None else offline_env():
        problems = StoreProblems()
        build = _fallback_from_store(request, problems)
        if build is None:
            raise _unavailable_offline(request, problems)
        return build
    for problem in problems.damaged:
        _log.warning("refused: %s; fetching %s again", problem, request.spec)
    return _fetch_from_any(request, force=False, progress=progress, strict=True)


def fetch(
    spec: str | None = None,
    *,
    backend: str | None = None,
    force: bool = False,
    progress: bool = True,
) -> InstalledBuild:
    """Fetch a build into the store, even one that this machine cannot run.

    `latest` is resolved again on every call, whereas `ensure` keeps its first answer.

    Args:
        spec: The build; None: as for `ensure`.
        backend: The variant; None: as for `ensure`.
        force: Whether to fetch and replace a build that is in the store already.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        ValidationError: The spec cannot be parsed, or is a path.
        FetchError: The build cannot be fetched.
    """
    request = resolve_request(spec, backend)
    if request.spec.source == "path":
        raise ValidationError(
            f"{request.origin} is a path: there is nothing to fetch. Name a build, such as "
            "npm:3.22.1, or `default`."
        )
    return _fetch_from_any(request, force=force, progress=progress, strict=False)


@dataclass
class StoreProblems:
    """Problems of the stored builds that were looked at: damage, and why they cannot run here."""

    damaged: list[str] = field(default_factory=list)
    incompatible: list[str] = field(default_factory=list)


def _from_store(request: BuildRequest, problems: StoreProblems) -> InstalledBuild | None:
    """Find the requested build without the network.

    A variant that was found to work is not checked again until the machine changes.
    """
    for source, version in _known_versions(request.spec):
        remembered = cache_state.remembered(source.name, version, request.backend)
        if remembered is not None:
            build = store.load(source.name, version, *remembered)
            damage = store.damage(build) if build is not None else []
            if build is not None and not damage:
                return build
            problems.damaged += damage
        elif build := _best_stored(source, version, request.backend, problems):
            cache_state.remember(
                source.name, version, request.backend, build.variant, build.backend_reason
            )
            return build
    return None


def _fallback_from_store(request: BuildRequest, problems: StoreProblems) -> InstalledBuild | None:
    """Find a stored build that works, even where `auto` would prefer another variant."""
    for source, version in _known_versions(request.spec):
        if build := _best_stored(source, version, request.backend, problems, fallback=True):
            return build
    return None


def _best_stored(
    source: Source,
    version: str,
    backend: str,
    problems: StoreProblems,
    fallback: bool = False,
) -> InstalledBuild | None:
    """Find the best stored variant that works here; not the best of all only with *fallback*."""
    folder = store.build_folder(source.name, version, "x").parent
    if not folder.is_dir():
        return None
    choice = source.choice(version, backend, detect(), strict=True)
    for variant, reason in choice.rejected.items():
        if (folder / variant).is_dir():
            problems.incompatible.append(f"{variant}: {reason}")
    for variant in choice.variants:
        build = store.load(source.name, version, variant)
        if build is None:
            if backend == AUTO and not fallback:
                return None
            choice.rejected[variant] = "not in the store"
        elif damage := store.damage(build):
            problems.damaged += damage
            choice.rejected[variant] = "damaged"
        elif reasons := check.problems(build):
            problems.incompatible += reasons
            choice.rejected[variant] = "; ".join(reasons)
        else:
            return replace(build, backend_reason=choice.reason(variant))
    return None


def _unavailable_offline(request: BuildRequest, problems: StoreProblems) -> LlamaError:
    wanted = f"{request.spec} (backend {request.backend}, requested by {request.origin})"
    if problems.incompatible and not problems.damaged:
        return LibraryLoadError(
            f"{wanted} is in the store but cannot run here: {'; '.join(problems.incompatible)}. "
            "Choose another backend with LLAMA_CFFI_BACKEND or another build with LLAMA_CFFI_BUILD."
        )
    damage = ""
    if problems.damaged:
        damage = f" The stored build is damaged: {'; '.join(problems.damaged)}."
    return LibraryNotFoundError(
        f"{wanted} is not in the store {store.cache_dir()} and the network is switched off."
        f"{damage} Run `llama-cffi libs fetch {request.spec}` online, or set LLAMA_CFFI_LIB to a "
        "libllama."
    )


def _known_versions(spec: Spec) -> Iterator[tuple[Source, str]]:
    """Yield the (source, version) pairs that *spec* may mean, as far as known offline."""
    for source in SOURCES:
        if spec.source in (source.name, "any"):
            version = source.version_for(spec)
            if version is not None:
                yield source, version


def _fetch_from_any(
    request: BuildRequest, *, force: bool, progress: bool, strict: bool
) -> InstalledBuild:
    """Fetch the requested build from the first source that has it."""
    failures: list[str] = []
    advice = ""
    for source in SOURCES:
        if request.spec.source not in (source.name, "any"):
            continue
        prefix = f"{source.name}: " if request.spec.source == "any" else ""
        if prefix and (reason := source.unavailable(request.spec)):
            failures.append(prefix + reason)
            continue
        try:
            version = source.version_for(request.spec, online=True)
            assert version is not None
            return _fetch_from(source, version, request, force, progress, strict)
        except OfflineError:
            raise
        except (UnreachableError, HttpStatusError, NotOfferedError) as e:
            if CHECK_NETWORK in str(e):  # said once, at the end
                advice = f" {CHECK_NETWORK}"
            failures.append(prefix + str(e).removesuffix(CHECK_NETWORK).rstrip(". "))
            _log.info("%s", failures[-1])
    stored = _fallback_from_store(request, StoreProblems()) if strict else None
    if stored is not None:
        return replace(stored, backend_reason=f"{stored.backend_reason}; {'; '.join(failures)}")
    raise FetchError(
        f"{request.spec} (requested by {request.origin}) could not be fetched: "
        f"{'; '.join(failures)}.{advice} Set LLAMA_CFFI_LIB to use a libllama that is on this "
        "machine."
    )


def _fetch_from(
    source: Source, version: str, request: BuildRequest, force: bool, progress: bool, strict: bool
) -> InstalledBuild:
    machine = detect()
    choice = source.choice(version, request.backend, machine, strict=strict)
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
        except NotOfferedError as e:
            choice.rejected[variant] = str(e)
            missing.append(str(e))
            continue
        problems = check.problems(build)
        if problems and (strict or request.backend == AUTO):
            choice.rejected[variant] = "; ".join(problems)
            continue
        reason = "; ".join([choice.reason(variant), *problems])
        if not problems and variant not in choice.rejected:
            cache_state.remember(source.name, version, request.backend, variant, reason)
        return replace(build, backend_reason=reason)
    if not choice.offered or (missing and len(missing) == len(choice.variants)):
        reasons = missing or list(choice.rejected.values())
        raise NotOfferedError(f"{source.name}:{version} is not available: {'; '.join(reasons)}.")
    raise LibraryLoadError(
        f"no variant of {source.name}:{version} works here (backend {request.backend}, requested "
        f"by {request.origin}): {choice.reasons()}. "
        "Choose another backend with LLAMA_CFFI_BACKEND or another build with LLAMA_CFFI_BUILD, "
        "or set LLAMA_CFFI_LIB to a libllama built for this system."
    )
