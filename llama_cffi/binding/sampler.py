"""Sampler chains: from logits to a token, in C."""

from __future__ import annotations

from typing import Any

from ..errors import GenerationError, ValidationError
from . import compat
from .checks import INT32_MAX, integer, real
from .context import Context
from .handle import Handle
from .model import Model

__all__ = ["MAX_LAST_N", "MIN_TEMPERATURE", "SamplerChain"]

MAX_LAST_N = 2**20  # C allocates the whole window at once
MIN_TEMPERATURE = 1e-4  # below, logits over temperature leave the range of a float
_MAX_FLOAT = 1e30


class SamplerChain(Handle):
    """An ordered chain of llama.cpp samplers; the last one (greedy, dist) selects the token.

    Each `add_*` returns the chain, so they can be strung together.

    Args:
        model: Whose vocabulary the samplers work on; closes this chain when it closes.
    C: llama_sampler_chain_init
    """

    def __init__(self, model: Model) -> None:
        self.model, self._lib = model, model.library.lib
        params = self._lib.llama_sampler_chain_default_params()
        params.no_perf = True
        _ = model.ptr  # raises when it is closed
        super().__init__(
            self._lib.llama_sampler_chain_init(params), self._lib.llama_sampler_free, parent=model
        )
        self._sample = self._lib.llama_sampler_sample
        self._selects = False  # whether the last sampler selects a token: C aborts without

    def __len__(self) -> int:
        return int(self._lib.llama_sampler_chain_n(self.ptr))

    def add_greedy(self) -> SamplerChain:
        """Select the most probable token. C: llama_sampler_init_greedy."""
        return self._add(self._lib.llama_sampler_init_greedy(), selects=True)

    def add_dist(self, seed: int) -> SamplerChain:
        """Draw by probability; the same seed draws the same. C: llama_sampler_init_dist."""
        seed = integer("seed", seed, -(2**63), 2**64) & 0xFFFFFFFF
        return self._add(self._lib.llama_sampler_init_dist(seed), selects=True)

    def add_temp(self, temperature: float) -> SamplerChain:
        """Divide the logits; above 0, for 0 use greedy. C: llama_sampler_init_temp."""
        temperature = real("temperature", temperature, MIN_TEMPERATURE, _MAX_FLOAT)
        return self._add(self._lib.llama_sampler_init_temp(temperature))

    def add_top_k(self, k: int) -> SamplerChain:
        """Keep the k most probable; k <= 0 keeps all. C: llama_sampler_init_top_k."""
        k = integer("k", k, -INT32_MAX)
        return self._add(self._lib.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float, min_keep: int = 1) -> SamplerChain:
        """Keep the most probable up to total probability p. C: llama_sampler_init_top_p."""
        p, min_keep = real("p", p, 0, 1), integer("min_keep", min_keep, 0)
        return self._add(self._lib.llama_sampler_init_top_p(p, min_keep))

    def add_min_p(self, p: float, min_keep: int = 1) -> SamplerChain:
        """Keep tokens with at least p times the best's probability. C: llama_sampler_init_min_p."""
        p, min_keep = real("p", p, 0, 1), integer("min_keep", min_keep, 0)
        return self._add(self._lib.llama_sampler_init_min_p(p, min_keep))

    def add_penalties(
        self, last_n: int, repeat: float = 1.0, frequency: float = 0.0, presence: float = 0.0
    ) -> SamplerChain:
        """Penalise tokens that were accepted lately.

        Args:
            last_n: How many accepted tokens count, at most 2^20; 0 = off.
            repeat: Divides (or multiplies, below zero) the logit; 1.0 = off, must be above 0.
            frequency: Subtracted per occurrence; 0.0 = off.
            presence: Subtracted once; 0.0 = off.

        Raises:
            ValidationError: A number is out of range.
        C: llama_sampler_init_penalties
        """
        last_n = integer("last_n", last_n, 0, MAX_LAST_N)
        repeat = real("repeat", repeat, 0, 1000, above=True)
        frequency = real("frequency", frequency, -1000, 1000)
        presence = real("presence", presence, -1000, 1000)
        library = self.model.library
        return self._add(
            compat.sampler_penalties(library, self.model.ptr, last_n, repeat, frequency, presence)
        )

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose a token from output *i* of the last decode, and accept it.

        Raises:
            ValidationError: That token's output was not asked for, or the chain does not end with
                greedy or dist, or belongs to another model.
            GenerationError: No token was selected.
        C: llama_sampler_sample
        """
        if not self._selects:
            raise ValidationError(
                "the chain is empty or does not end with a sampler that selects; add greedy or dist"
            )
        if context.model is not self.model:
            raise ValidationError("the chain was made for another model than the context")
        i = context.check_output(i)
        if context.embeddings:
            context.logits(i)  # raises where there are none
        token = int(self._sample(self.ptr, context.ptr, i))
        if not 0 <= token < context.n_vocab:
            raise GenerationError(f"the chain selected {token}, which is no token")
        return token

    def accept(self, token: int) -> None:
        """Tell the chain that *token* was chosen (penalties count it). C: llama_sampler_accept."""
        self._lib.llama_sampler_accept(self.ptr, self.model.vocab.check(token))

    def reset(self) -> None:
        """Forget accepted tokens and restart the random draw. C: llama_sampler_reset."""
        self._lib.llama_sampler_reset(self.ptr)

    def _add(self, sampler: Any, *, selects: bool = False) -> SamplerChain:
        if not sampler:
            raise ValidationError("llama.cpp refused the sampler's parameters")
        try:
            ptr = self.ptr
        except ValidationError:
            self._lib.llama_sampler_free(sampler)
            raise
        self._lib.llama_sampler_chain_add(ptr, sampler)  # the chain owns it now
        self._selects = selects
        return self
