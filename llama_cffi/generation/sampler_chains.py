"""Sampler chains of `SamplingParams`, built once and reused."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..binding import Candidates, CustomSampler, Model, SamplerChain
from ..errors import ValidationError
from ..validation import as_callables

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..grammars import Constraint
    from .output import StopChecker
    from .sampling_params import LogitsProcessor, SamplingParams

__all__ = ["Chain", "ChainCache", "build_chain"]

_MIROSTAT_M = 100  # llama-cli's value
_ANY_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: C draws a new seed at each reset
_N_IDLE = 16


class Tap:
    """Receives the tokens that a chain accepts; the chain's last sampler calls it.

    Attributes:
        output: Receives them in turn, if any.
    """

    __slots__ = ("output",)

    def __init__(self) -> None:
        self.output: StopChecker | None = None

    def accept(self, token: int) -> None:
        """Pass an accepted token to the output. Hot: every token."""
        output = self.output
        if output is not None:
            output.accept(token)


class Chain(SamplerChain):
    """The sampler chain of `SamplingParams`.

    Attributes:
        constraint: The structured output that the answer must match, if any.
        tap: Receives accepted tokens, if the chain is from a `ChainCache`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.constraint: Constraint | None = None
        self.tap = Tap()
        self._single: tuple[Candidates, NDArray[np.float32]] | None = None

    def force(self, token: int) -> None:
        """Accept a forced token.

        The samplers choose among this single candidate, so each makes the same draws as where a
        mask leaves one token: the same seed gives the same text.

        Raises:
            GenerationError: The constraint does not allow the token.
            ValidationError: The token does not exist, or the grammar does not allow it.
        """
        import numpy as np

        token = self.model.vocab.check(token)
        if self._single is None:
            zeros = np.broadcast_to(np.float32(0), self.model.vocab.n_tokens)
            self._single = Candidates(self.model), zeros
        candidate, logits = self._single
        candidate.fill_some(logits, np.array([token]))
        self.apply(candidate)
        self.accept(token, grammar=True)


class ChainCache:
    """The most recently used chains of a model, by their parameters.

    Args:
        model: Closing it closes the chains.
        n_parallel: Number of answers generated together.
    """

    def __init__(self, model: Model, n_parallel: int = 1) -> None:
        self._model, self._n_idle_max = model, max(_N_IDLE, n_parallel)
        self._idle: OrderedDict[SamplingParams, list[Chain]] = OrderedDict()
        self._n_idle = 0

    def acquire(self, params: SamplingParams) -> Chain:
        """Return a new or reset chain for *params*.

        Raises:
            ValidationError: The build lacks a sampler, or a biased token does not exist.
            GrammarError: The grammar is not valid.
        """
        try:
            idle = self._idle.get(params)
        except TypeError as e:
            raise ValidationError(f"logits processors must be hashable: {e}") from None
        if not idle:
            chain = build_chain(self._model, params)
            chain.add_custom(CustomSampler(self._model, name="tap", accept=chain.tap.accept))
            return chain
        chain = idle.pop()
        self._n_idle -= 1
        if not idle:
            del self._idle[params]
        chain.reset()
        return chain

    def release(self, params: SamplingParams, chain: Chain) -> None:
        """Take back a chain; the least recently used ones are freed."""
        chain.tap.output = None
        self._idle.setdefault(params, []).append(chain)
        self._idle.move_to_end(params)
        self._n_idle += 1
        while self._n_idle > self._n_idle_max:
            oldest = next(iter(self._idle))
            self._idle[oldest].pop().close()
            self._n_idle -= 1
            if not self._idle[oldest]:
                del self._idle[oldest]

    def close(self) -> None:
        """Free the idle chains; `acquire` builds new ones."""
        while self._idle:
            for chain in self._idle.popitem()[1]:
                chain.close()
        self._n_idle = 0


def build_chain(model: Model, params: SamplingParams) -> Chain:
    """Build the chain of *params* as llama-cli does.

    The order: the mask of structured output, logit biases, the samplers of `samplers`, and the one
    that selects. Samplers without effect are left out. Logits processors see the whole vocabulary:
    with them the mask comes after the biases and the processors.

    Raises:
        ValidationError: The loaded build lacks a sampler, or a biased token does not exist.
        GrammarError: The grammar is not valid.
    """
    chain = Chain(model)
    try:
        bias = dict(params.logit_bias)
        if params.ignore_eos:
            bias |= dict.fromkeys(model.vocab.eog_tokens, -math.inf)
        if bias:
            chain.add_logit_bias(bias)
        if params.logits_processor:
            chain.add_custom(
                _processors(model, as_callables("logits_processor", params.logits_processor))
            )
        if params.structured is not None or params.grammar:
            chain.constraint = _constraint(model, params)
            if params.logits_processor:  # they may raise any logit
                chain.add_custom(chain.constraint.sampler())
            else:
                chain.add_mask(chain.constraint)
        seed = _ANY_SEED if params.seed == -1 else int(params.seed)
        if params.greedy:
            for name in params.samplers:
                _add_penalty(chain, name, params)
                if "infill" in params.samplers and name == "top_k":
                    _add_truncation(chain, name, params, seed)  # infill expects few candidates
            chain.add_greedy()
        elif params.mirostat_mode:
            chain.add_temp(params.temperature)
            if params.mirostat_mode == 1:
                chain.add_mirostat(seed, params.mirostat_tau, params.mirostat_eta, _MIROSTAT_M)
            else:
                chain.add_mirostat_v2(seed, params.mirostat_tau, params.mirostat_eta)
        else:
            for name in params.samplers:
                _add_penalty(chain, name, params)
                _add_truncation(chain, name, params, seed)
            if "adaptive_p" in params.samplers and params.adaptive_target >= 0:
                chain.add_adaptive_p(params.adaptive_target, params.adaptive_decay, seed)
            else:
                chain.add_dist(seed)
    except BaseException:
        chain.close()
        raise
    return chain


def _constraint(model: Model, p: SamplingParams) -> Constraint:
    from ..grammars import Constraint, LlamaGrammar

    grammar = p.structured or LlamaGrammar.from_string(str(p.grammar), root=p.grammar_root)
    return Constraint(model, grammar, p.structured_after, triggers=p.grammar_triggers)


def _add_penalty(chain: SamplerChain, name: str, p: SamplingParams) -> None:
    """Add the sampler *name* if it can change which token is the most probable."""
    if name == "penalties" and p.penalises:
        chain.add_penalties(
            p.penalty_last_n, p.repeat_penalty, p.frequency_penalty, p.presence_penalty
        )
    elif name == "dry" and p.dry:
        breakers = tuple(p.dry_sequence_breakers)
        window = p.dry_penalty_last_n
        chain.add_dry(p.dry_multiplier, p.dry_base, p.dry_allowed_length, window, breakers)
    elif name == "infill":
        chain.add_infill()


def _add_truncation(chain: SamplerChain, name: str, p: SamplingParams, seed: int) -> None:
    """Add the sampler *name* if it removes candidates or applies a temperature."""
    if name == "top_n_sigma" and p.top_n_sigma > 0:
        chain.add_top_n_sigma(p.top_n_sigma)
    elif name == "top_k" and p.top_k:
        chain.add_top_k(max(p.top_k, p.min_keep))
    elif name == "typ_p" and p.typical_p < 1:
        chain.add_typical(p.typical_p, p.min_keep)
    elif name == "top_p" and p.top_p < 1:
        chain.add_top_p(p.top_p, p.min_keep)
    elif name == "min_p" and p.min_p > 0:
        chain.add_min_p(p.min_p, p.min_keep)
    elif name == "xtc" and p.xtc_probability > 0:
        chain.add_xtc(p.xtc_probability, p.xtc_threshold, p.min_keep, seed)
    elif name == "temperature" and p.dynatemp_range > 0:
        chain.add_temp_ext(p.temperature, p.dynatemp_range, p.dynatemp_exponent)
    elif name == "temperature":
        chain.add_temp(p.temperature)


def _processors(model: Model, processors: Sequence[LogitsProcessor]) -> CustomSampler:
    """Return a sampler that calls *processors* with the tokens so far and the logits."""
    history: list[int] = []

    def apply(candidates: Any) -> None:
        import numpy as np

        if len(candidates) == 1:
            return  # a forced token
        ids = np.array(history, dtype=np.int32)
        # First in the chain, so the candidates are the whole vocabulary in order of token id.
        scores = np.array(candidates["logit"])
        for processor in processors:
            result = processor(ids, scores)
            if result is not None:
                result = np.asarray(result, dtype=np.float32)
                if result.shape != scores.shape:
                    raise ValidationError(
                        f"{processor!r} returned scores of shape {result.shape}, not {scores.shape}"
                    )
                scores = result
        candidates["logit"] = scores

    return CustomSampler(
        model, name="logits-processors", apply=apply, accept=history.append, reset=history.clear
    )
