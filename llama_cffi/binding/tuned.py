"""The settings that `tune` has measured to be the fastest on this machine, by model shape.

They are kept in one JSON file in the cache folder. A context uses them where its caller set
nothing; `LLAMA_CFFI_TUNED=0` switches that off. A file that cannot be read counts as empty.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_files import replacing
from ..errors import LlamaError, ValidationError
from ..libs_fetch.machine import cpu_identity, usable_cpus
from ..libs_fetch.store import cache_dir
from ..validation import check_bool, check_int, check_type
from .processors import MAX_THREADS

if TYPE_CHECKING:
    from ..gguf.header_check import GgufSummary
    from ..libs_fetch import InstalledBuild

__all__ = ["TunedSettings", "head_size", "is_on", "keep", "kept", "tuned_file"]

_log = logging.getLogger(__name__)
_VARIABLE = "LLAMA_CFFI_TUNED"
_ON, _OFF = ("", "1", "on", "true", "yes"), ("0", "off", "false", "no")
_MOST = {"n_threads": MAX_THREADS, "n_threads_batch": MAX_THREADS, "n_ubatch": 2**16}
_VERSION = 1


@dataclass(frozen=True)
class TunedSettings:
    """Settings that are faster than the defaults; None is the default.

    Attributes:
        cpu_variant: The CPU variant of the build, which the others were measured with.
        n_threads: Threads for single tokens.
        n_threads_batch: Threads for prompts.
        flash_attn: Flash attention, on or off.
        n_ubatch: Most tokens computed together.

    Raises:
        ValidationError: A value cannot be such a setting.
    """

    cpu_variant: str | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    flash_attn: bool | None = None
    n_ubatch: int | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if (value := getattr(self, name)) is not None:
                check_int(name, value, 1, most)
        if self.flash_attn is not None:
            check_bool("flash_attn", self.flash_attn)
        if self.cpu_variant is not None:
            check_type("cpu_variant", self.cpu_variant, str)

    def __bool__(self) -> bool:
        """Whether any differs from the defaults."""
        return bool(self.given())

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.given().items())

    def given(self) -> dict[str, str | int]:
        """Return those that differ from the defaults."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def head_size(gguf: GgufSummary) -> int:
    """Return the width of an attention head, of keys or values, whichever is less; 0: unknown."""
    heads = gguf.number("attention.head_count")
    width = gguf.number("embedding_length") // heads if heads > 0 else 0
    names = ("attention.key_length", "attention.value_length")
    return min(gguf.number(name) or width for name in names)


def tuned_file() -> Path:
    """Return the file that keeps the settings."""
    return cache_dir() / "tuned.json"


def is_on() -> bool:
    """Whether kept settings are used.

    Raises:
        ValidationError: The variable that decides is neither 1 nor 0.
    """
    text = os.environ.get(_VARIABLE, "").strip().lower()
    if text not in (*_ON, *_OFF):
        raise ValidationError(f"{_VARIABLE}={text!r} must be 1 or 0")
    return text in _ON


def kept(build: InstalledBuild, gguf: GgufSummary, *, offloads: bool) -> TunedSettings:
    """Return the settings that are kept for a model; all None if there are none.

    Args:
        build: The build.
        gguf: The header of the model.
        offloads: Whether layers are on a GPU.
    """
    path = tuned_file()
    try:
        status = path.stat()
    except OSError:
        return TunedSettings()
    entries = _entries(path, status.st_mtime_ns, status.st_size)
    entry = entries.get(_key(build, gguf, offloads))
    try:
        return TunedSettings(**entry["settings"]) if entry else TunedSettings()
    except (LlamaError, TypeError, KeyError) as e:
        _log.debug("%s has an entry that cannot be used: %s", path, e)
        return TunedSettings()


def keep(
    build: InstalledBuild,
    gguf: GgufSummary,
    settings: TunedSettings,
    facts: Mapping[str, object],
    *,
    offloads: bool,
) -> None:
    """Keep settings for models of this shape in place of earlier ones; defaults: keep none.

    Args:
        build: The build.
        gguf: The header of the model.
        settings: The settings.
        facts: What people may want to know about them, as JSON types.
        offloads: Whether layers are on a GPU.

    Raises:
        ValidationError: The file cannot be written.
    """
    path, key = tuned_file(), _key(build, gguf, offloads)
    entries = {name: entry for name, entry in _read(path).items() if name != key}
    if settings:
        entries[key] = {"settings": settings.given(), **facts}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps({"version": _VERSION, "models": entries}, indent=1).encode())
    except OSError as e:
        raise ValidationError(
            f"cannot write {path}: {e.strerror or e}; LLAMA_CFFI_CACHE names another folder"
        ) from None


def _key(build: InstalledBuild, gguf: GgufSummary, offloads: bool) -> str:
    """Return what settings belong to: the shape of a model, the build, and the processor."""
    return (
        f"{gguf.architecture} n_embd={gguf.number('embedding_length')} head={head_size(gguf)} "
        f"n_layer={gguf.number('block_count')} file_type={gguf.values.get('general.file_type')} | "
        f"{build.spec} {build.variant} on {'GPU' if offloads else 'CPU'} | "
        f"{usable_cpus()} x {cpu_identity()}"
    )


@functools.lru_cache(maxsize=1)
def _entries(path: Path, mtime_ns: int, size: int) -> Mapping[str, Any]:
    """Return the entries of a file with this time and size."""
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
        models = data["models"] if data["version"] == _VERSION else {}
        return {str(key): entry for key, entry in models.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        _log.debug("%s cannot be used: %s", path, e)
        return {}
