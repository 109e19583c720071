"""From the tokens of an answer to its text and its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .text import Flusher, JsonCompletion, StopStrings, ThinkFilter, Utf8Stream

if TYPE_CHECKING:
    from ..binding import Vocab
    from .logprobs import Logprob
    from .sequence import GenerationParams

__all__ = ["Detokenizer", "StopChecker"]


class StopChecker:
    """Finds the end of an answer in its tokens.

    Attributes:
        listening: Whether accepted tokens belong to the answer; those of the prompt do not.
        finish_reason: Why the answer ended; empty until then.
        drops_token: Whether the token that ended the answer is not part of it.
        logprob: Log-probability of the last token, if requested.

    Raises:
        ValidationError: A stop token does not exist.
    """

    # Slots, here and in the other objects of a request: in a batch they are cold at each step, and
    # each dict would be one more cache miss.
    __slots__ = (
        "_is_eog",
        "_stop_tokens",
        "drops_token",
        "finish_reason",
        "listening",
        "logprob",
    )

    def __init__(self, vocab: Vocab, params: GenerationParams) -> None:
        self.listening = False
        self.finish_reason = ""
        self.drops_token = False
        self.logprob: Logprob | None = None
        self._is_eog: Callable[[int], bool] = vocab.is_eog
        self._stop_tokens = frozenset(map(vocab.check, params.stop_tokens))

    def accept(self, token: int) -> None:
        """Receive a token that the chain accepted."""
        if self.listening and self._is_eog(token):
            self._end_before("eog")
        elif self.listening and token in self._stop_tokens:
            self._end_before("stop")

    def _end_before(self, reason: str) -> None:
        """End the answer before the last token."""
        self.finish_reason, self.drops_token = reason, True

    def begin_constraint(self) -> None:
        """Take the text from here on as a grammar's: it has no markup."""


class Detokenizer(StopChecker):
    """Turns the tokens of an answer into text and finds its end.

    Args:
        vocab: The model's vocabulary.
        params: Parameters of the generation.
        flusher: Receives the text as it is generated.
        is_thinking: Whether the prompt ended inside <think>.

    Attributes:
        data: The text so far, UTF-8, without what may still become a stop string.
        stop: The stop string that ended the answer; empty: none.
    """

    __slots__ = (
        "_flusher",
        "_json",
        "_pieces",
        "_stop",
        "_stops",
        "_taken",
        "_text",
        "_think",
        "data",
        "stop",
    )

    def __init__(
        self,
        vocab: Vocab,
        params: GenerationParams,
        flusher: Flusher | None = None,
        *,
        is_thinking: bool = False,
    ) -> None:
        super().__init__(vocab, params)
        self.data = bytearray()
        self.stop = ""
        self._pieces: Mapping[int, bytes | None] = vocab.pieces(params.special)
        self._json: JsonCompletion | None = None
        if params.json_stop:
            self._json = JsonCompletion(params.json_stop, is_thinking=is_thinking)
        self._think = ThinkFilter(is_inside=is_thinking) if params.suppress_think else None
        self._stop = params.stop
        self._stops = _stop_strings((*params.stop, *params.turn_stops))
        self._flusher = flusher
        self._text, self._taken = Utf8Stream(), 0

    def accept(self, token: int) -> None:
        """Receive a token that the chain accepted. Hot: every generated token."""
        if not self.listening:
            return
        piece = self._pieces[token]
        if piece is None:
            self._end_before("eog")
            return
        if token in self._stop_tokens:
            self._end_before("stop")
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
        self._add(piece)

    def begin_constraint(self) -> None:
        """Take the text from here on as a grammar's.

        End-of-turn strings and <think> have no meaning in it, except for a block at its beginning.
        """
        if self.finish_reason:
            return
        held = b""
        if self._stops is not None:
            held, self._stops = self._stops.release(), _stop_strings(self._stop)
        if self._think is not None:
            self._think.is_leading_only = True
            held += self._think.push(b"")
        if held:
            self._add(held)

    def _add(self, piece: bytes) -> None:
        stops = self._stops
        if stops is not None:
            piece = stops.push(piece)
            if stops.found is not None:
                self._end_at(stops.found)
        self.data += piece
        if self._flusher is not None:
            self._flusher.push(piece)

    def finish(self) -> None:
        """Add the text that was held back, and let go of the vocabulary, which keeps the model."""
        rest = b"" if self._think is None else self._think.flush()
        stops = self._stops
        if stops is not None:
            if stops.found is not None:
                rest = b""
            else:
                rest = stops.push(rest) + stops.flush()
                if stops.found is not None:
                    self._end_at(stops.found)
        self.data += rest
        if self._flusher is not None:
            self._flusher.push(rest)
            self._flusher.flush()
        self.listening, self._pieces, self._is_eog = False, {}, _never

    def take(self) -> str:
        """Return the new text since the last call, in whole characters."""
        new = bytes(self.data[self._taken :])
        self._taken += len(new)
        return self._text.push(new)

    def take_rest(self) -> str:
        """Return the remaining text, after `finish`."""
        return self.take() + self._text.flush()

    @property
    def text(self) -> str:
        """The whole text."""
        return self.data.decode("utf-8", "replace")

    def _end_at(self, found: str | bytes) -> None:
        self.finish_reason = "stop"
        self.stop = found if isinstance(found, str) else found.decode("utf-8", "replace")


def _never(_token: int) -> bool:
    return False


def _stop_strings(stops: Sequence[str | bytes]) -> StopStrings | None:
    return StopStrings(stops) if stops else None
