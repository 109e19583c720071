"""Sampling parameters -> sampler chains, built once and kept."""

from __future__ import annotations

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

_MIROSTAT_M = 100  # what llama-cli uses
_ANY_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: C draws another one at each reset
_KEPT = 16


class Chain(SamplerChain):
    """The chain of `SamplingParams`.

    Attributes:
        constraint: The structured output that the answer is held to, if any.
        output: Who receives the accepted tokens, if the chain is from a `ChainCache`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.constraint: Constraint | None = None
        self.output: StopChecker | None = None
        self._one: tuple[Candidates, NDArray[np.float32]] | None = None

    def heard(self, token: int) -> None:
        """Hand an accepted token on; the last link calls it. Hot: every generated token."""
        output = self.output
        if output is not None:
            output.accept(token)

    def force(self, token: int) -> None:
        """Go on by *token*, which nobody had to choose.

        The samplers choose among this one token, so each draws what it would have drawn where a
        mask leaves one: the same seed goes on to the same text.

        Raises:
            GenerationError: The constraint does not allow it.
            ValidationError: No such token, or the grammar does not allow it.
        """
        import numpy as np

        token = self.model.vocab.check(token)
        if self._one is None:
            zeros = np.broadcast_to(np.float32(0), self.model.vocab.n_tokens)
            self._one = Candidates(self.model), zeros
        candidate, logits = self._one
        candidate.fill_some(logits, np.array([token]))
        self.apply(candidate)
        self.accept(token, grammar=True)


class ChainCache:
    """The chains that a model used last, by their parameters.

    Args:
        model: Closes them.
        n_at_once: Answers that are made at once.
    """

    def __init__(self, model: Model, n_at_once: int = 1) -> None:
        self._model, self._n_kept = model, max(_KEPT, n_at_once)
        self._idle: OrderedDict[SamplingParams, list[Chain]] = OrderedDict()
        self._n_idle = 0

    def take(self, params: SamplingParams) -> Chain:
        """Return a chain for *params* as if it were new: nothing accepted, the seed reset.

        Raises:
            ValidationError: The build lacks a sampler, or a bias names no token.
            GrammarError: The grammar is not valid.
        """
        try:
            idle = self._idle.get(params)
        except TypeError as e:
            raise ValidationError(f"logits processors must be hashable: {e}") from None
        if not idle:
            chain = build_chain(self._model, params)
            chain.add_custom(CustomSampler(self._model, name="tap", accept=chain.heard))
            return chain
        chain = idle.pop()
        self._n_idle -= 1
        if not idle:
            del self._idle[params]
        chain.reset()
        return chain

    def give(self, params: SamplingParams, chain: Chain) -> None:
        """Take a chain back; it hears nothing more. Those unused for longest are freed."""
        chain.output = None
        self._idle.setdefault(params, []).append(chain)
        self._idle.move_to_end(params)
        self._n_idle += 1
        while self._n_idle > self._n_kept:
            oldest = next(iter(self._idle))
            self._idle[oldest].pop().close()
            self._n_idle -= 1
            if not self._idle[oldest]:
                del self._idle[oldest]

    def close(self) -> None:
        """Free the chains; the next `take` builds anew."""
        while self._idle:
            for chain in self._idle.popitem()[1]:
                chain.close()
        self._n_idle = 0


def build_chain(model: Model, params: SamplingParams) -> Chain:
    """Build the chain that *params* describe, in llama-cli's way.

    Biases and logits processors come first, then the mask of structured output, the samplers in
    their order, and the one that selects. What changes nothing is left out.

    Raises:
        ValidationError: The loaded build lacks a sampler, or a bias names no token.
        GrammarError: The grammar is not valid.
    """
    chain = Chain(model)
    try:
        if params.logit_bias:
            chain.add_logit_bias(dict(params.logit_bias))
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
                    _add_truncation(chain, name, params, seed)  # infill wants few candidates
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
    """Add the sampler *name* if it changes which token is the most probable."""
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
    """Add the sampler *name* if it leaves tokens out or changes the temperature."""
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
    """One sampler that calls *processors* with the tokens so far and the scores."""
    history: list[int] = []

    def apply(candidates: Any) -> None:
        import numpy as np

        if len(candidates) == 1:
            return  # a forced token: there is nothing to choose
        ids = np.array(history, dtype=np.int32)
        # Before any other sampler the candidates are the vocabulary, in its order.
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
