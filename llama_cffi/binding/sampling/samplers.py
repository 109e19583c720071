"""The samplers of llama.cpp: their limits, and those that take more than a call to create."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ValidationError
from ...validation import check_float, check_int
from .. import compat
from ..loading.library import Library

if TYPE_CHECKING:
    from ..model.model import Model

__all__ = [
    "MAX_BIAS",
    "MAX_FLOAT",
    "MAX_INFILL",
    "MAX_LAST_N",
    "MIN_REPEAT",
    "MIN_TEMPERATURE",
    "available",
    "check_bias",
    "check_min_keep",
    "check_seed",
    "check_temperature",
    "dry_breakers",
    "new_infill",
    "new_sampler",
    "require",
]

MAX_LAST_N = 2**20  # C allocates the whole window when it creates the sampler
MIN_TEMPERATURE = 1e-4  # below, logits over temperature leave the range of a float
MIN_REPEAT = 1e-3  # below, a logit over the penalty does
MAX_FLOAT = 1e30
MAX_BIAS = 1e6  # far above any logit, and small enough to be divided by temperatures
_RANDOM_SEED = 2**32 - 1  # LLAMA_DEFAULT_SEED
_MAX_BREAKERS, _MAX_BREAKER_BYTES = 64, 40  # C walks the vocabulary for each; it cuts longer ones
MAX_INFILL = 1024  # candidates of infill, which compares all of them in pairs
_PIECE_BYTES = 512

# Names in llama-cli's --samplers -> names in C.
_CLI_NAMES = {
    "penalties": "penalties",
    "dry": "dry",
    "top_n_sigma": "top_n_sigma",
    "top_k": "top_k",
    "typ_p": "typical",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc": "xtc",
    "temperature": "temp_ext",
    "infill": "infill",
    "adaptive_p": "adaptive_p",
}


def available(library: Library) -> frozenset[str]:
    """Return the samplers that this build has, by their names in llama-cli's --samplers."""
    return frozenset(
        cli for cli, name in _CLI_NAMES.items() if library.has(f"llama_sampler_init_{name}")
    )


def require(library: Library, name: str) -> None:
    """Refuse a sampler that this build does not have.

    Raises:
        ValidationError: With the advice to use a newer build.
    """
    if not library.has(f"llama_sampler_init_{name}"):
        build = library.name
        raise ValidationError(
            f"the loaded build ({build}) has no sampler {name}; a newer one may: "
            "LLAMA_CFFI_BUILD=latest, or llama-cffi libs fetch latest"
        )


def new_sampler(library: Library, name: str, *args: Any) -> Any:
    """Create a C sampler from checked arguments.

    Raises:
        ValidationError: The build does not have it.
    C: llama_sampler_init_*
    """
    require(library, name)
    return getattr(library.lib, f"llama_sampler_init_{name}")(*args)


def new_infill(model: Model) -> Any:
    """Create the infill sampler, for at most `MAX_INFILL` candidates.

    Raises:
        ValidationError: The vocabulary is not suited.
    C: llama_sampler_init_infill
    """
    library, vocab = model.library, model.vocab
    require(library, "infill")
    if vocab.eos is None and vocab.eot is None:
        raise ValidationError("infill needs an end-of-text token; this vocabulary has none")
    vocab.token_to_piece(0)  # raises if the model has no vocabulary
    ffi, lib, handle = library.ffi, library.lib, compat.vocab_of(library, model.ptr)
    buffer = ffi.new("char[]", _PIECE_BYTES)
    for token in range(vocab.n_tokens):
        if lib.llama_token_to_piece(handle, token, buffer, _PIECE_BYTES, 0, False) < 0:
            raise ValidationError(f"token {token} is longer than infill's {_PIECE_BYTES} bytes")
    return new_sampler(library, "infill", handle)


def dry_breakers(model: Model, breakers: Sequence[str]) -> list[bytes]:
    """Check the sequence breakers of DRY.

    Raises:
        ValidationError: They are not a sequence of short ASCII strings, or C would abort on one.
    """
    if isinstance(breakers, str):
        raise ValidationError(f"seq_breakers must be a sequence of str, got the str {breakers!r}")
    if len(breakers) > _MAX_BREAKERS:
        raise ValidationError(f"{len(breakers)} seq_breakers; at most {_MAX_BREAKERS}")
    for breaker in breakers:
        valid = isinstance(breaker, str) and breaker.isascii() and "\0" not in breaker
        if not valid or not 1 <= len(breaker) <= _MAX_BREAKER_BYTES:
            raise ValidationError(
                f"seq_breakers must be ASCII strings of 1 to {_MAX_BREAKER_BYTES} bytes, "
                f"got {breaker!r}"
            )
        model.vocab.tokenize(breaker, add_special=False)  # raises where C would abort
    return [breaker.encode() for breaker in breakers]


def check_seed(seed: int | None) -> int:
    """Return *seed* as C reads it; None and -1 are a random one."""
    seed = -1 if seed is None else check_int("seed", seed, -1, _RANDOM_SEED)
    return _RANDOM_SEED if seed == -1 else seed


def check_min_keep(min_keep: int) -> int:
    """Return *min_keep*, at least 1: old builds underflow at 0 or keep nothing."""
    return max(1, check_int("min_keep", min_keep, 0))


def check_temperature(temperature: float) -> float:
    """Return *temperature* if C can divide logits by it."""
    return check_float("temperature", temperature, MIN_TEMPERATURE, MAX_FLOAT)


def check_bias(token: int, value: float) -> float:
    """Return the bias of *token*; -inf is allowed."""
    if value == -math.inf:
        return -math.inf
    return check_float(f"the bias of token {token}", value, -MAX_BIAS, MAX_BIAS)
