"""The settings of a context that its caller leaves open: measured ones, or rules."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import compat
from ..tuned import TunedSettings, head_size, is_on, kept

if TYPE_CHECKING:
    from ...gguf.header_check import GgufSummary
    from ..loading.library import Library

__all__ = ["DEFAULT_N_UBATCH", "ContextDefaults", "context_defaults"]

_log = logging.getLogger(__name__)
DEFAULT_N_UBATCH = 512
_SMALL_HEAD = 64


@dataclass(frozen=True)
class ContextDefaults:
    """Defaults of a context.

    Attributes:
        flash_attn: None: the build's own.
        n_ubatch: Most tokens computed together.
        tuned: What `tune` has kept, which the others follow; its threads too count as defaults.
    """

    flash_attn: bool | None
    n_ubatch: int
    tuned: TunedSettings


def context_defaults(
    library: Library, gguf: GgufSummary, *, offloads: bool, generates: bool
) -> ContextDefaults:
    """Return the defaults for contexts of a model.

    Flash attention is off where its kernels for CPUs with AVX-512 compute most of a head one number
    at a time: with heads of less than 64, decoding is up to five times slower with it.

    Args:
        library: The build.
        gguf: The header of the model.
        offloads: Whether layers are on a GPU.
        generates: Whether the context generates tokens; else all is the build's choice.
    """
    tuned = TunedSettings()
    if not generates:
        return ContextDefaults(None, DEFAULT_N_UBATCH, tuned)
    if is_on():
        found = kept(library.build, gguf, offloads=offloads)
        if found.cpu_variant in (None, library.cpu_variant):
            tuned = found
        else:
            _log.debug(
                "tuned settings for the CPU variant %s are not used: %s is loaded",
                found.cpu_variant, library.cpu_variant or "another",
            )  # fmt: skip
    flash_attn = tuned.flash_attn
    if (
        flash_attn is None
        and not offloads
        and 0 < head_size(gguf) < _SMALL_HEAD
        and library.uses("AVX512")
        and compat.memory_layout(library).flash_attn
    ):
        flash_attn = False
    return ContextDefaults(flash_attn, tuned.n_ubatch or DEFAULT_N_UBATCH, tuned)
