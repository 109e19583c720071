"""Sampler chains: from logits to a token, in C."""

from __future__ import annotations

from typing import Any

from ..errors import GenerationError, ValidationError
from . import compat
from .context import Context
from .handle import Handle
from .model import Model

__all__ = ["SamplerChain"]


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
        super().__init__(
            self._lib.llama_sampler_chain_init(params), self._lib.llama_sampler_free, parent=model
        )

    def __len__(self) -> int:
        return int(self._lib.llama_sampler_chain_n(self.ptr))

    def add_greedy(self) -> SamplerChain:
        """Select the most probable token. C: llama_sampler_init_greedy."""
        return self._add(self._lib.llama_sampler_init_greedy())

    def add_dist(self, seed: int) -> SamplerChain:
        """Draw by probability; the same seed draws the same. C: llama_sampler_init_dist."""
        return self._add(self._lib.llama_sampler_init_dist(seed & 0xFFFFFFFF))

    def add_temp(self, temperature: float) -> SamplerChain:
        """Divide the logits. C: llama_sampler_init_temp."""
        return self._add(self._lib.llama_sampler_init_temp(temperature))

    def add_top_k(self, k: int) -> SamplerChain:
        """Keep the k most probable; k <= 0 keeps all. C: llama_sampler_init_top_k."""
        return self._add(self._lib.llama_sampler_init_top_k(k))

    def add_top_p(self, p: float, min_keep: int = 1) -> SamplerChain:
        """Keep the most probable up to total probability p. C: llama_sampler_init_top_p."""
        return self._add(self._lib.llama_sampler_init_top_p(p, min_keep))

    def add_min_p(self, p: float, min_keep: int = 1) -> SamplerChain:
        """Keep tokens with at least p times the best's probability. C: llama_sampler_init_min_p."""
        return self._add(self._lib.llama_sampler_init_min_p(p, min_keep))

    def add_penalties(
        self, last_n: int, repeat: float = 1.0, frequency: float = 0.0, presence: float = 0.0
    ) -> SamplerChain:
        """Penalise tokens that were accepted lately.

        Args:
            last_n: How many accepted tokens count; 0 = off.
            repeat: Divides (or multiplies, below zero) the logit; 1.0 = off, must be above 0.
            frequency: Subtracted per occurrence; 0.0 = off.
            presence: Subtracted once; 0.0 = off.

        Raises:
            ValidationError: repeat <= 0 or last_n < 0.
        C: llama_sampler_init_penalties
        """
        if repeat <= 0 or last_n < 0:
            raise ValidationError(
                f"penalties need repeat > 0 and last_n >= 0: {repeat=}, {last_n=}"
            )
        library = self.model.library
        return self._add(
            compat.sampler_penalties(library, self.model.ptr, last_n, repeat, frequency, presence)
        )

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose a token from output *i* of the last decode, and accept it.

        Raises:
            ValidationError: That token's output was not asked for, or the chain is empty.
            GenerationError: No token was selected.
        C: llama_sampler_sample
        """
        if not len(self):
            raise ValidationError("the chain is empty; add a sampler that selects, such as greedy")
        context._output(self._lib.llama_get_logits_ith, i, "logits")
        token = int(self._lib.llama_sampler_sample(self.ptr, context.ptr, i))
        if not 0 <= token < context.n_vocab:
            raise GenerationError(f"the chain selected {token}, which is no token")
        return token

    def accept(self, token: int) -> None:
        """Tell the chain that *token* was chosen (penalties count it). C: llama_sampler_accept."""
        self._lib.llama_sampler_accept(self.ptr, self.model.vocab.check(token))

    def reset(self) -> None:
        """Forget accepted tokens and restart the random draw. C: llama_sampler_reset."""
        self._lib.llama_sampler_reset(self.ptr)

    def _add(self, sampler: Any) -> SamplerChain:
        if not sampler:
            raise ValidationError("llama.cpp refused the sampler's parameters")
        self._lib.llama_sampler_chain_add(self.ptr, sampler)  # the chain owns it now
        return self
