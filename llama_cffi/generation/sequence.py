"""One answer as it grows: tokens are chosen, forced or refused here; nothing is decoded.

The chain's last link, a sampler written in Python, hands every accepted token to the output; so
whatever samples through the chain streams.

Some tokens need no choice: a grammar leaves one, or a thought has to end. They take the way of all
others (chain, output, caller), but no forward pass waits for another: those in a row are decoded
at once, like a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..binding import Context
from .logprobs import Logprob, logprob
from .output import StopChecker
from .sampler_chains import Chain
from .sampling_params import SamplingParams
from .stats import GenerationStats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "GenerationParams",
    "ReasoningLimit",
    "SequenceState",
    "Step",
    "StoppingCriterion",
]

StoppingCriterion = Callable[[Any, Any], bool]


class Step(NamedTuple):
    """What one token gave.

    Attributes:
        token: Its id; None at the end, where only text is left that was held back.
        text: The text that it settled.
        logprob: Where it was asked for.
    """

    token: int | None
    text: str
    logprob: Logprob | None = None


class ReasoningLimit(Protocol):
    """Watches one answer and ends a thought in it that grows too long."""

    def after(self, token: int | None) -> Sequence[int] | None:
        """Take a token of the answer, None before the first, and say what has to follow.

        Returns:
            Tokens, mostly none; None when there is no more to watch.
        """


@dataclass(frozen=True)
class GenerationParams:
    """Parameters of one generation.

    Attributes:
        max_tokens: Most tokens to generate.
        sampling: How tokens are chosen.
        context_policy: What happens when the context is full; see `context_policy`.
        safety: Tokens of the context that stay free.
        cache_prompt: Reuse what the cache holds of the prompt.
        stop: Strings that end the answer, which does not contain them.
        json_stop: Keys that end an answer that is a JSON object; see `text.JsonCompletion`.
        special: Whether control tokens have text.
        suppress_think: Leave <think>...</think> out of the text.
        skip_forced: Decode forced tokens together. Otherwise each token has its logits.
        reasoning_limit: Makes the limit of the reasoning of one answer.
        logprobs: Return the log-probability of each token and of this many alternatives; None: no.
        stopping_criteria: Functions of the tokens so far, prompt included, (n,) int32, and the
            logits of the next, (n_vocab,) float32; the answer ends where one returns True.
    """

    max_tokens: int
    sampling: SamplingParams
    context_policy: str
    safety: int
    cache_prompt: bool
    stop: Sequence[str | bytes] = ()
    json_stop: Sequence[str] = ()
    special: bool = False
    suppress_think: bool = False
    skip_forced: bool = True
    reasoning_limit: Callable[[], ReasoningLimit] | None = None
    logprobs: int | None = None
    stopping_criteria: Sequence[StoppingCriterion] = ()


class ForcedTokens:
    """Which tokens follow for certain.

    Attributes:
        skips: Whether those in a row are decoded at once.
    """

    def __init__(self, chain: Chain, request: GenerationParams) -> None:
        # Whoever looks at the logits of every token gets them.
        self.skips = (
            request.skip_forced and request.logprobs is None and not request.stopping_criteria
        )
        skips = self.skips and not request.sampling.logits_processor
        self._constraint = chain.constraint if skips else None
        self._thought = request.reasoning_limit() if request.reasoning_limit else None

    @property
    def knows(self) -> bool:
        """Whether there is anything to foresee."""
        return self._constraint is not None or self._thought is not None

    @property
    def ended(self) -> bool:
        """Whether the answer cannot go on."""
        return self._constraint is not None and self._constraint.ended

    def after(self, token: int | None, forced: list[int]) -> list[int]:
        """Return the tokens that follow *token*, or begin the answer; empty where none is sure.

        Args:
            token: The last one; None before the first.
            forced: Those that are known already.
        """
        if self._thought is not None:
            closing = self._thought.after(token)
            if closing is None:
                self._thought = None
            elif closing:
                return [*closing]
        if forced or self._constraint is None:
            return forced
        return self._constraint.forced_tokens()


class SequenceState:
    """One answer as it grows.

    Args:
        chain: Chooses the tokens; accepts the prompt's last ones too.
        request: What to do.
        n_predict: Most tokens that there is room for.
        output: Receives what the chain accepts, and says when the answer ends.
        stats: Filled in on the way.

    Attributes:
        finish_reason: Why it ended; empty before.
    """

    __slots__ = (
        "_chain",
        "_forced",
        "_foresight",
        "_n_predict",
        "_output",
        "_request",
        "_stats",
        "_takes_largest",
        "_tokens",
        "finish_reason",
    )

    def __init__(
        self,
        chain: Chain,
        request: GenerationParams,
        n_predict: int,
        output: StopChecker,
        stats: GenerationStats,
    ) -> None:
        self._chain, self._request, self._output, self._stats = chain, request, output, stats
        self._n_predict = n_predict
        self.finish_reason = ""
        self._forced: list[int] = []
        self._tokens: list[int] | None = None  # prompt and answer, where a criterion wants them
        self._foresight: ForcedTokens | None = None
        self._takes_largest = chain.takes_largest  # and nothing but the output hears of it

    def begin(self, prompt: Sequence[int]) -> None:
        """Take the prompt; what is chosen from now on is the answer."""
        params, chain = self._request.sampling, self._chain
        n_history = len(prompt) if params.n_history is None else params.n_history
        for token in prompt[max(0, len(prompt) - n_history) :]:
            if token >= 0:  # a token, not a part of a picture
                chain.accept(token)
        if self._request.stopping_criteria:
            self._tokens = [*prompt]
        foresight = ForcedTokens(chain, self._request)
        if foresight.knows:
            self._foresight = foresight
            self._forced = foresight.after(None, [])
        self._output.listening = True

    def next(self, context: Context, i: int = -1) -> int | None:
        """Return the next token; None = the answer ended before one. Hot: every generated token.

        Args:
            context: Where the last token was decoded, unless `is_forced`.
            i: The output of that token.

        Raises:
            GenerationError: No token can be chosen.
        """
        stats, output = self._stats, self._output
        if self._tokens is not None and self._is_met(context.logits(i)):
            self.finish_reason = "stop"
            return None
        if self._forced:
            token = self._forced.pop(0)
            self._chain.force(token)
            stats.n_forced += 1
        elif self._takes_largest:
            token = context.argmax(i)
            output.accept(token)
        else:
            token = self._chain.sample(context, i)
        reason = output.finish_reason
        if reason == "eog":
            self.finish_reason = reason
            return None
        if self._request.logprobs is not None:
            logits = context.logits(i, copy=False)
            output.logprob = logprob(logits, token, self._request.logprobs)
        if self._tokens is not None:
            self._tokens.append(token)
        stats.n_generated = n = stats.n_generated + 1
        if reason:
            self.finish_reason = reason
        elif n >= self._n_predict:
            full = self._n_predict < self._request.max_tokens
            self.finish_reason = "context" if full else "length"
        elif self._foresight is not None:
            self._forced = self._foresight.after(token, self._forced)
            if not self._forced and self._foresight.ended:
                self.finish_reason = "eog"
        return token

    @property
    def is_forced(self) -> bool:
        """Whether `next` needs no logits: the last token need not be decoded yet."""
        return bool(self._forced) and self._foresight is not None and self._foresight.skips

    def end(self) -> None:
        """Listen no longer."""
        self._output.listening = False

    def _is_met(self, logits: NDArray[np.float32]) -> bool:
        import numpy as np

        ids = np.array(self._tokens, np.int32)
        return any(met(ids, logits) for met in self._request.stopping_criteria)
