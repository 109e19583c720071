"""The state of one generated sequence: sampling, forced tokens and the end; nothing is decoded.

The last sampler of the chain, written in Python, passes every accepted token to the output, so
everything sampled through the chain streams.

Forced tokens are not sampled: a grammar allows only one, or reasoning has to end. They go through
chain, output and caller like all others, but consecutive ones are decoded together, like a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..binding import Context
from .logprobs import Logprob, logprob, sampled_logprob
from .output import StopChecker
from .prompt_progress import PromptProgress
from .sampler_chains import Chain
from .sampling_params import SamplingParams
from .stats import GenerationStats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..grammars import Constraint

__all__ = [
    "GenerationParams",
    "ReasoningLimit",
    "SequenceState",
    "Step",
    "StoppingCriterion",
]

StoppingCriterion = Callable[[Any, Any], bool]


class Step(NamedTuple):
    """A generated token.

    Attributes:
        token: Token id; None for a last step with the text that was held back.
        text: The new text in whole characters; empty while text is held back.
        logprob: Its log-probability, if requested.
    """

    token: int | None
    text: str
    logprob: Logprob | None = None


class ReasoningLimit(Protocol):
    """Ends the reasoning of one answer when it exceeds its budget."""

    def after(self, token: int | None) -> Sequence[int] | None:
        """Return the tokens that must follow *token*.

        Args:
            token: A generated token; None before the first.

        Returns:
            Token ids, usually none; None once the reasoning is over.
        """


@dataclass(frozen=True)
class GenerationParams:
    """Parameters of one generation.

    Attributes:
        max_tokens: Most tokens to generate.
        sampling: Sampling parameters.
        context_policy: What to do when the context is full; see `context_policy`.
        safety: Tokens of the context that stay free.
        cache_prompt: Reuse the prefix of the prompt that is in the KV cache.
        reset_kv_cache: Start anew; False: the prompt follows what the KV cache holds.
        stop: Stop strings; they are not part of the answer.
        turn_stops: Stop strings that have no effect inside a grammar.
        stop_tokens: Token ids that end the answer, and are not part of it either.
        json_stop: Keys that end an answer that is a JSON object; see `text.JsonCompletion`.
        special: Whether control tokens become text.
        suppress_think: Remove <think>...</think> from the text.
        skip_forced: Decode consecutive forced tokens together, without logits for each.
        reasoning_limit: Creates the reasoning limit of one answer.
        logprobs: Return the log-probabilities of each token and of this many alternatives; None:
            none.
        post_sampling_probs: Log-probabilities are those after all samplers.
        prompt_progress: Called with the progress of the prompt.
        stopping_criteria: Functions of the tokens of prompt and answer so far, (n,) int32, -1 for
            the cells of pictures and sounds, and the logits of the next token, (n_vocab,) float32;
            one that returns True ends the answer.
    """

    max_tokens: int
    sampling: SamplingParams
    context_policy: str
    safety: int
    cache_prompt: bool
    reset_kv_cache: bool = True
    stop: Sequence[str | bytes] = ()
    turn_stops: Sequence[str | bytes] = ()
    stop_tokens: Sequence[int] = ()
    json_stop: Sequence[str] = ()
    special: bool = False
    suppress_think: bool = False
    skip_forced: bool = True
    reasoning_limit: Callable[[], ReasoningLimit] | None = None
    logprobs: int | None = None
    post_sampling_probs: bool = False
    prompt_progress: Callable[[PromptProgress], object] | None = None
    stopping_criteria: Sequence[StoppingCriterion] = ()


class ForcedTokens:
    """Finds the forced tokens of one answer.

    Attributes:
        skips_logits: Whether consecutive forced tokens are decoded together.
    """

    def __init__(self, chain: Chain, params: GenerationParams) -> None:
        # Log-probabilities and stopping criteria need the logits of every token.
        self.skips_logits = (
            params.skip_forced and params.logprobs is None and not params.stopping_criteria
        )
        uses_constraint = self.skips_logits and not params.sampling.logits_processor
        self._constraint = chain.constraint if uses_constraint else None
        self._limit = params.reasoning_limit() if params.reasoning_limit else None

    @property
    def is_active(self) -> bool:
        """Whether any token can be forced."""
        return self._constraint is not None or self._limit is not None

    @property
    def ended(self) -> bool:
        """Whether the constraint allows no further token."""
        return self._constraint is not None and self._constraint.ended

    def after(self, token: int | None, forced: list[int]) -> list[int]:
        """Return the forced tokens after *token*; empty where the next one is sampled.

        Args:
            token: The last token; None before the first.
            forced: Forced tokens that are already known.
        """
        if self._limit is not None:
            closing = self._limit.after(token)
            if closing is None:
                self._limit = None
            elif closing:
                return [*closing]
        if forced or self._constraint is None:
            return forced
        return self._constraint.forced_tokens()


class SequenceState:
    """The state of one generated sequence.

    Args:
        chain: Samples the tokens; accepts the last prompt tokens too.
        params: Parameters of the generation.
        max_tokens: Most tokens to generate that fit into the context.
        output: Receives accepted tokens, and finds the end of the answer.
        stats: Updated during the generation.

    Attributes:
        finish_reason: Why the answer ended; empty until then.
    """

    __slots__ = (
        "_chain",
        "_forced",
        "_forced_tokens",
        "_is_argmax",
        "_max_tokens",
        "_output",
        "_params",
        "_stats",
        "_tokens",
        "_waiting",
        "finish_reason",
    )

    def __init__(
        self,
        chain: Chain,
        params: GenerationParams,
        max_tokens: int,
        output: StopChecker,
        stats: GenerationStats,
    ) -> None:
        self._chain, self._params, self._output, self._stats = chain, params, output, stats
        self._max_tokens = max_tokens
        self.finish_reason = ""
        self._forced: list[int] = []
        self._tokens: list[int] | None = None  # prompt and answer, for stopping criteria
        self._forced_tokens: ForcedTokens | None = None
        self._waiting: Constraint | None = None  # until it begins
        self._is_argmax = chain.takes_largest  # only the output needs to see the token then

    def begin(self, prompt: Sequence[int]) -> None:
        """Accept the prompt; tokens from now on are the answer."""
        chain, n_history = self._chain, self._params.sampling.n_history
        if n_history is None:
            n_history = len(prompt)
        for token in prompt[max(0, len(prompt) - n_history) :]:
            if token >= 0:  # not part of an image
                chain.accept(token)
        if self._params.stopping_criteria:
            self._tokens = [max(token, -1) for token in prompt]
        forced_tokens = ForcedTokens(chain, self._params)
        if forced_tokens.is_active:
            self._forced_tokens = forced_tokens
            self._forced = forced_tokens.after(None, [])
        self._output.listening = True
        self._waiting = chain.constraint
        self._notice_constraint()

    def next(self, context: Context, i: int = -1) -> int | None:
        """Return the next token; None: the answer has ended. Hot: every generated token.

        Args:
            context: The context in which the last token was decoded, unless `is_forced`.
            i: Index of the last token's output.

        Raises:
            GenerationError: No token can be sampled.
        """
        stats, output, is_drawn = self._stats, self._output, False
        if self._tokens is not None and self._meets_criterion(context.logits(i)):
            self.finish_reason = "stop"
            return None
        if self._forced:
            token = self._forced.pop(0)
            self._chain.force(token)
            stats.n_forced += 1
        elif self._is_argmax:
            token = context.argmax(i)
            output.accept(token)
        elif self._params.post_sampling_probs:
            token, is_drawn = self._chain.sample_logits(context.logits(i)), True
        else:
            token = self._chain.sample(context, i)
        if self._waiting is not None:
            self._notice_constraint()
        reason = output.finish_reason
        if output.drops_token:
            self.finish_reason = reason
            return None
        if self._params.logprobs is not None:
            output.logprob = self._logprob(context, i, token, is_drawn, self._params.logprobs)
        if self._tokens is not None:
            self._tokens.append(token)
        stats.n_generated = n = stats.n_generated + 1
        if reason:
            self.finish_reason = reason
        elif n >= self._max_tokens:
            full = self._max_tokens < self._params.max_tokens
            self.finish_reason = "context" if full else "length"
        elif self._forced_tokens is not None:
            self._forced = self._forced_tokens.after(token, self._forced)
            if not self._forced and self._forced_tokens.ended:
                self.finish_reason = "eog"
        return token

    @property
    def is_forced(self) -> bool:
        """Whether `next` needs no logits, so the last token can be decoded later."""
        forced_tokens = self._forced_tokens
        return bool(self._forced) and forced_tokens is not None and forced_tokens.skips_logits

    def end(self) -> None:
        """Detach the output from the chain's tokens."""
        self._output.listening = False

    def _logprob(self, context: Context, i: int, token: int, is_drawn: bool, n: int) -> Logprob:
        if not self._params.post_sampling_probs:
            return logprob(context.logits(i, copy=False), token, n)
        candidates = self._chain.candidates
        is_drawn &= not self._params.sampling.greedy and candidates is not None
        return sampled_logprob(candidates.array if candidates and is_drawn else None, token, n)

    def _notice_constraint(self) -> None:
        if self._waiting is not None and not self._waiting.waiting:
            self._output.begin_constraint()
            self._waiting = None

    def _meets_criterion(self, logits: NDArray[np.float32]) -> bool:
        import numpy as np

        ids = np.array(self._tokens, np.int32)
        return any(met(ids, logits) for met in self._params.stopping_criteria)
