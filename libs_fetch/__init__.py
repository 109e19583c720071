"""Choose, fetch and manage prebuilt llama.cpp libraries.

Names are imported on first use, so importing this package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import ensure, fetch
    from .binaries import exported_symbols
    from .machine import Machine, detect
    from .manage import available, prune, remove, rollback, use
    from .runtime import cuda_majors, cuda_runtime
    from .specs import Spec, parse
    from .store import InstalledBuild, cache_dir, installed, verify
    from .upstream_headers import headers

_HOME = {
    "InstalledBuild": "store",
    "Machine": "machine",
    "Spec": "specs",
    "available": "manage",
    "cuda_majors": "runtime",
    "cuda_runtime": "runtime",
    "cache_dir": "store",
    "detect": "machine",
    "ensure": "api",
    "exported_symbols": "binaries",
    "fetch": "api",
    "headers": "upstream_headers",
    "installed": "store",
    "parse": "specs",
    "prune": "manage",
    "remove": "manage",
    "rollback": "manage",
    "use": "manage",
    "verify": "store",
}

__all__ = [
    "InstalledBuild",
    "Machine",
    "Spec",
    "available",
    "cache_dir",
    "cuda_majors",
    "cuda_runtime",
    "detect",
    "ensure",
    "exported_symbols",
    "fetch",
    "headers",
    "installed",
    "parse",
    "prune",
    "remove",
    "rollback",
    "use",
    "verify",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
