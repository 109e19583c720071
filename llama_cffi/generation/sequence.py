"""Answer: one answer as it grows. Tokens are chosen, forced or refused here; nothing is decoded.

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

from ..binding import Context, Vocab
from .logprobs import Logprob, logprob
from .sampler_chains import Chain
from .sampling_params import SamplingParams
from .stats import GenerationStats
from .text import Flusher, JsonCompletion, StopStrings, ThinkFilter, Utf8Stream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Answer",
    "AnswerParams",
    "Step",
    "StoppingCriterion",
    "TextOutput",
    "ThoughtLimit",
    "TokenOutput",
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


class ThoughtLimit(Protocol):
    """Watches one answer and ends a thought in it that grows too long."""

    def after(self, token: int | None) -> Sequence[int] | None:
        """Take a token of the answer, None before the first, and say what has to follow.

        Returns:
            Tokens, mostly none; None when there is no more to watch.
        """


@dataclass(frozen=True)
class AnswerParams:
    """What one answer shall be like.

    Attributes:
        n_predict: Most tokens to generate.
        params: How tokens are chosen.
        policy: What happens when the context is full; see `context_policy`.
        safety: Tokens of the context that stay free.
        reset_kv: Evaluate the whole prompt, also what the cache holds.
        stop: Texts that end the answer, which does not contain them.
        json_stop: Keys that end an answer that is a JSON object; see `text.JsonCompletion`.
        special: Whether control tokens have text.
        suppress_think: Leave <think>...</think> out of the text.
        skip_forced: Decode at once what needs no choice. Otherwise each token has its logits.
        thought_limit: Makes what ends the thought of one answer.
        logprobs: Give the log-probability of each token and of so many in its place; None = no.
        criteria: Functions of the tokens so far, prompt included, shape (n,) int32, and the
            logits of the next, shape (n_vocab,) float32; the answer ends where one returns True.
    """

    n_predict: int
    params: SamplingParams
    policy: str
    safety: int
    reset_kv: bool
    stop: Sequence[str | bytes] = ()
    json_stop: Sequence[str] = ()
    special: bool = False
    suppress_think: bool = False
    skip_forced: bool = True
    thought_limit: Callable[[], ThoughtLimit] | None = None
    logprobs: int | None = None
    criteria: Sequence[StoppingCriterion] = ()


class TokenOutput:
    """Watches the tokens of the answer for its end.

    Attributes:
        listening: Whether accepted tokens belong to the answer; those of the prompt do not.
        finish_reason: Why the answer ended; empty before.
        logprob: Of the token that came last, where it was asked for.
    """

    # Slots, here and in other objects of a request: in a batch they are cold when its turn comes,
    # and each dict would be one more miss.
    __slots__ = ("_is_eog", "finish_reason", "listening", "logprob")

    def __init__(self, vocab: Vocab) -> None:
        self.listening = False
        self.finish_reason = ""
        self.logprob: Logprob | None = None
        self._is_eog = vocab.is_eog

    def accept(self, token: int) -> None:
        """Take a token that the chain accepted."""
        if self.listening and self._is_eog(token):
            self.finish_reason = "eog"


class TextOutput(TokenOutput):
    """Turns the tokens of the answer into text and finds its end.

    Attributes:
        data: The text so far, UTF-8, as far as it can be handed out.
        stop: The stop string that was found.
    """

    __slots__ = (
        "_flusher",
        "_json",
        "_pieces",
        "_stops",
        "_taken",
        "_text",
        "_think",
        "data",
        "stop",
    )

    def __init__(self, vocab: Vocab, request: AnswerParams, flusher: Flusher | None = None) -> None:
        super().__init__(vocab)
        self.data = bytearray()
        self.stop = ""
        self._pieces = vocab.pieces(request.special)
        self._json = JsonCompletion(request.json_stop) if request.json_stop else None
        self._think = ThinkFilter() if request.suppress_think else None
        self._stops = StopStrings(request.stop) if request.stop else None
        self._flusher = flusher
        self._text, self._taken = Utf8Stream(), 0

    def accept(self, token: int) -> None:
        """Take a token that the chain accepted. Hot: every generated token."""
        if not self.listening:
            return
        piece = self._pieces[token]
        if piece is None:
            self.finish_reason = "eog"
            return
        json = self._json
        if json is not None:
            if not json.armed:
                self._json = None
            elif (end := json.push(piece)) is not None:
                piece = piece[:end]
                self.finish_reason = "json"
        if self._think is not None:
            piece = self._think.push(piece)
        stops = self._stops
        if stops is not None:
            piece = stops.push(piece)
            if stops.found is not None:
                self._stopped(stops.found)
        self.data += piece
        if self._flusher is not None:
            self._flusher.push(piece)

    def finish(self) -> None:
        """Hand out what was held back."""
        rest = b"" if self._think is None else self._think.flush()
        stops = self._stops
        if stops is not None:
            if stops.found is not None:
                rest = b""
            else:
                rest = stops.push(rest) + stops.flush()
                if stops.found is not None:
                    self._stopped(stops.found)
        self.data += rest
        if self._flusher is not None:
            self._flusher.push(rest)
            self._flusher.flush()

    def take(self) -> str:
        """Return the text since the last call, in whole characters."""
        new = bytes(self.data[self._taken :])
        self._taken += len(new)
        return self._text.push(new)

    def take_rest(self) -> str:
        """Return the rest of the text after `finish`."""
        return self.take() + self._text.flush()

    @property
    def text(self) -> str:
        """The whole text."""
        return self.data.decode("utf-8", "replace")

    def _stopped(self, found: str | bytes) -> None:
        self.finish_reason = "stop"
        self.stop = found if isinstance(found, str) else found.decode("utf-8", "replace")


class _Foresight:
    """Which tokens follow for certain.

    Attributes:
        skips: Whether those in a row are decoded at once.
    """

    def __init__(self, chain: Chain, request: AnswerParams) -> None:
        # Whoever looks at the logits of every token gets them.
        self.skips = request.skip_forced and request.logprobs is None and not request.criteria
        skips = self.skips and not request.params.logits_processors
        self._constraint = chain.constraint if skips else None
        self._thought = request.thought_limit() if request.thought_limit else None

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


class Answer:
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
        request: AnswerParams,
        n_predict: int,
        output: TokenOutput,
        stats: GenerationStats,
    ) -> None:
        self._chain, self._request, self._output, self._stats = chain, request, output, stats
        self._n_predict = n_predict
        self.finish_reason = ""
        self._forced: list[int] = []
        self._tokens: list[int] | None = None  # prompt and answer, where a criterion wants them
        self._foresight: _Foresight | None = None
        self._takes_largest = chain.takes_largest  # and nothing but the output hears of it

    def begin(self, prompt: Sequence[int]) -> None:
        """Take the prompt; what is chosen from now on is the answer."""
        params, chain = self._request.params, self._chain
        n_history = len(prompt) if params.n_history is None else params.n_history
        for token in prompt[max(0, len(prompt) - n_history) :]:
            chain.accept(token)
        if self._request.criteria:
            self._tokens = [*prompt]
        foresight = _Foresight(chain, self._request)
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
            full = self._n_predict < self._request.n_predict
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
        return any(met(ids, logits) for met in self._request.criteria)
