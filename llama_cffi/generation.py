"""One generation: prompt tokens in, answer tokens out, their text collected on the way.

The chain's last link, a sampler written in Python, hands every accepted token to the output; so
whatever samples through the chain streams.

Some tokens need no choice: a grammar leaves one, or a thought has to end. They take the way of all
others (chain, output, caller), but no forward pass waits for another: those in a row are decoded
at once, like a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from .binding import Vocab
from .chains import Chain
from .context_policy import fit_prompt
from .decoding import Slot
from .errors import ValidationError
from .interrupts import Stop
from .sampling import SamplingParams
from .stats import GenerationStats
from .text import Flusher, JsonCompletion, StopStrings, ThinkFilter, Utf8Stream

__all__ = ["Request", "TextOutput", "ThoughtLimit", "TokenOutput", "generate"]


class ThoughtLimit(Protocol):
    """Watches one answer and ends a thought in it that grows too long."""

    def after(self, token: int | None) -> Sequence[int] | None:
        """Take a token of the answer, None before the first, and say what has to follow.

        Returns:
            Tokens, mostly none; None when there is no more to watch.
        """


@dataclass(frozen=True)
class Request:
    """What one generation shall do.

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


class TokenOutput:
    """Watches the tokens of the answer for its end.

    Attributes:
        listening: Whether accepted tokens belong to the answer; those of the prompt do not.
        finish_reason: Why the answer ended; empty before.
    """

    def __init__(self, vocab: Vocab) -> None:
        self.listening = False
        self.finish_reason = ""
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

    def __init__(self, vocab: Vocab, request: Request, flusher: Flusher | None = None) -> None:
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
        self._put(piece)

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
        self._put(rest)
        if self._flusher is not None:
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

    def _put(self, piece: bytes) -> None:
        self.data += piece
        if self._flusher is not None:
            self._flusher.push(piece)


class _Foresight:
    """Which tokens follow for certain.

    Attributes:
        skips: Whether those in a row are decoded at once.
    """

    def __init__(self, chain: Chain, request: Request) -> None:
        self.skips = request.skip_forced
        # Processors of logits are to be asked about every token.
        sees_all = bool(request.params.logits_processors)
        self._constraint = chain.constraint if self.skips and not sees_all else None
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


def generate(
    slot: Slot,
    chain: Chain,
    prompt: Sequence[int],
    request: Request,
    stop: Stop,
    stats: GenerationStats,
    output: TokenOutput,
) -> Generator[int, None, None]:
    """Yield the tokens of the answer to *prompt*, ending before an EOG token.

    A token is decoded only when the next one is asked for, and has to be sampled.

    Args:
        slot: Where the tokens are decoded.
        chain: Chooses the tokens; accepts the prompt's last ones too.
        prompt: At least one token.
        request: What to do.
        stop: Ends it from outside.
        stats: Filled in while it runs.
        output: Receives what the chain accepts, and says when the answer ends.

    Raises:
        ContextOverflowError: The prompt leaves no room.
        DecodeAbortedError: *stop* was asked for.
        GenerationError: Decoding failed.
    """
    context, params = slot.context, request.params
    n_first = int(context.model.vocab.add_bos)
    fit = fit_prompt(
        prompt, request.n_predict, context.n_ctx, request.safety, request.policy, n_first=n_first
    )
    shifts = request.policy == "shift" and _check_shift(slot)
    capacity = context.n_ctx - request.safety
    n_keep = min(len(fit.tokens), capacity // 2)
    stats.n_prompt, stats.n_truncated = len(fit.tokens), fit.n_truncated
    if request.reset_kv:
        slot.clear()
    stats.n_reused = slot.reuse(fit.tokens)
    n_history = len(fit.tokens) if params.n_history is None else params.n_history
    for token in fit.tokens[max(0, len(fit.tokens) - n_history) :]:
        chain.accept(token)
    started = time.perf_counter()
    slot.feed(fit.tokens[stats.n_reused :], stop, stats)
    began = time.perf_counter()
    stats.prefill_s = began - started
    output.listening = True
    known = _Foresight(chain, request)
    foresight = known if known.knows else None
    forced = known.after(None, [])
    held: list[int] = []  # handed out, but not decoded
    try:
        for n in range(1, fit.n_predict + 1):
            if forced:
                token = forced.pop(0)
                chain.force(token)
                stats.n_forced += 1
            else:
                token = chain.sample(context)
            if n == 1:
                stats.time_to_first_token_s += time.perf_counter() - started
            reason = output.finish_reason
            if reason == "eog":
                stats.finish_reason = reason
                return
            stats.n_generated = n
            handed_out = time.perf_counter()
            yield token
            began += time.perf_counter() - handed_out  # the caller's time
            if reason:
                stats.finish_reason = reason
                return
            if n == fit.n_predict:
                break
            if foresight is not None:
                forced = foresight.after(token, forced)
                held.append(token)
                if forced and foresight.skips and len(slot.tokens) + len(held) < capacity:
                    continue
                if foresight.ended:
                    stats.finish_reason = "eog"
                    return
            if shifts and len(slot.tokens) >= capacity:
                n_discard = max(1, (len(slot.tokens) - n_keep) // 2)
                slot.shift(n_keep, n_discard)
                stats.n_shifted += n_discard
            if stop.reason is not None:
                stop.check()
            if len(held) > 1:
                slot.feed(held, stop, stats)
            else:
                slot.step(token, stop, stats)
            held.clear()
        full = fit.n_predict < request.n_predict
        stats.finish_reason = "context" if full else "length"
    finally:
        output.listening = False
        stats.decode_s = time.perf_counter() - began


def _check_shift(slot: Slot) -> bool:
    if not slot.context.memory.can_shift:
        raise ValidationError(
            "the memory of this model cannot shift; choose another context_policy than 'shift'"
        )
    return True
