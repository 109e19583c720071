"""Samplers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..loading.library import Library
from .names import c_function
from .vocab import vocab_of

__all__ = [
    "sampler_dist",
    "sampler_dry",
    "sampler_penalties",
    "sampler_with_interface",
]


def sampler_penalties(
    library: Library, model: Any, last_n: int, repeat: float, frequency: float, presence: float
) -> Any:
    """Create the penalties sampler.

    C: llama_sampler_init_penalties: 9 arguments until b4435, then 4, 5 with n_vocab since b10361.
    """
    lib = library.lib
    count = len(library.ffi.typeof(lib.llama_sampler_init_penalties).args)
    numbers = (last_n, repeat, frequency, presence)
    if count == 4:
        return lib.llama_sampler_init_penalties(*numbers)
    vocab = vocab_of(library, model)
    n_vocab = c_function(library, "llama_vocab_n_tokens")(vocab)
    if count == 5:
        return lib.llama_sampler_init_penalties(n_vocab, *numbers)
    eos, newline = lib.llama_token_eos(model), lib.llama_token_nl(model)
    return lib.llama_sampler_init_penalties(n_vocab, eos, newline, *numbers, True, False)


def sampler_dry(
    library: Library,
    model: Any,
    multiplier: float,
    base: float,
    allowed_length: int,
    last_n: int,
    breakers: Sequence[bytes],
) -> Any:
    """Create the DRY sampler; C copies the breakers.

    C: llama_sampler_init_dry, since b3995; from b4529 to b10068 with n_ctx_train, which limits
    the window.
    """
    ffi, lib = library.ffi, library.lib
    strings = [ffi.new("char[]", breaker) for breaker in breakers]
    limit = (last_n,) if len(ffi.typeof(lib.llama_sampler_init_dry).args) == 8 else ()
    return lib.llama_sampler_init_dry(
        vocab_of(library, model),
        *limit,
        multiplier,
        base,
        allowed_length,
        last_n,
        ffi.new("const char *[]", strings),
        len(strings),
    )


@lru_cache(maxsize=1)
def _dist_needs_softmax(library: Library) -> bool:
    """Whether dist needs softmax before it: until b3889 it does not compute probabilities.

    No symbol shows it, so a sampler is tried. C: llama_sampler_init_dist, llama_sampler_apply
    """
    ffi, lib = library.ffi, library.lib
    data = ffi.new("llama_token_data[2]", [(0, 0.0, 0.25), (1, 0.0, 0.25)])
    array = ffi.new("llama_token_data_array *", (data, 2, -1, False))
    dist = lib.llama_sampler_init_dist(1)
    lib.llama_sampler_apply(dist, array)
    lib.llama_sampler_free(dist)
    return bool(data[0].p != 0.5)


def sampler_dist(library: Library, seed: int) -> Any:
    """Create the sampler that draws by probability; in b3889 it is a chain of softmax and dist.

    C: llama_sampler_init_dist
    """
    lib = library.lib
    dist = lib.llama_sampler_init_dist(seed)
    if not _dist_needs_softmax(library):
        return dist
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_softmax())
    lib.llama_sampler_chain_add(chain, dist)
    return chain


def sampler_with_interface(library: Library, interface: Any) -> Any:
    """Create a sampler with the caller's functions and no context; C frees it.

    C: llama_sampler_init, since b4753; before, a greedy sampler, which has no state, is modified.
    """
    ffi, lib = library.ffi, library.lib
    if library.has("llama_sampler_init"):
        return lib.llama_sampler_init(interface, ffi.NULL)
    sampler = lib.llama_sampler_init_greedy()
    sampler.iface, sampler.ctx = interface, ffi.NULL
    return sampler
