"""Executor: decodes the chunks of a plan and samples for each; a failure stays with its request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..answer import Step
from ..binding import Batch, Context
from ..errors import DecodeAbortedError, KvCacheFullError
from .handle import Handle
from .kv_cache import KVCache
from .request import Request
from .scheduler import Chunk, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Observe = Callable[[Request, int, Sequence[NDArray[np.float32]]], None]

__all__ = ["Executor"]


class _Part(NamedTuple):
    """Tokens begin to end - 1 of a chunk."""

    chunk: Chunk
    begin: int
    end: int


@dataclass(slots=True)
class _Outcome(Result):
    """What becomes of a chunk, while that is found out."""

    closed: bool = False  # a guess was wrong, so the rest of them is not looked at

    @property
    def ended(self) -> bool:
        return bool(self.finish_reason) or self.error is not None or self.lost


class Executor:
    """Decodes and samples.

    Args:
        context: Where.
        cache: Gives up finished sequences where C finds no room.
        observe: Is told each request's hidden states, from a position on.
    """

    def __init__(
        self,
        context: Context,
        cache: KVCache,
        n_batch: int,
        observe: Observe | None = None,
    ) -> None:
        self.context, self.cache, self.observe = context, cache, observe
        self._batch = Batch(n_batch, library=context.library)
        self._outcomes: dict[Request, _Outcome] = {}
        self._handles: Mapping[Request, Handle]
        self._made_room = False

    def run(
        self, chunks: Sequence[Chunk], handles: Mapping[Request, Handle]
    ) -> Mapping[Request, Result]:
        """Decode *chunks*, ordered by sequence; return what became of those that were tried."""
        self._handles, self._made_room = handles, False
        self._outcomes = {chunk.request: _Outcome() for chunk in chunks}
        try:
            self._decode([_Part(chunk, 0, len(chunk.tokens)) for chunk in chunks])
        except DecodeAbortedError:  # the engine closes, and who runs is told so
            return {}
        return self._outcomes

    def _decode_rest(self, parts: Sequence[_Part]) -> None:
        """Decode those of *parts* whose requests go on, after a call that failed."""
        parts = [part for part in parts if not self._outcomes[part.chunk.request].ended]
        if parts:
            self._decode(parts)

    def _decode(self, parts: Sequence[_Part]) -> None:
        """Decode *parts* in one call, or where C refuses in several."""
        self._fill(parts)
        try:
            self.context.decode(self._batch)
        except DecodeAbortedError:
            raise
        except KvCacheFullError as error:
            self._note_lost(parts)
            halves = _halves(parts)
            if not self._made_room:
                # Finished sequences may lie in between; old builds want the room in one piece.
                self._made_room = True
                self.cache.clear()
                self.context.memory.defrag()
                self._decode_rest(parts)
            elif len(halves) > 1:
                for half in halves:
                    self._decode_rest(half)
            else:
                self._fail(parts[0], error)
        except Exception as error:
            self._note_lost(parts)
            if len(parts) == 1:
                self._fail(parts[0], error)
            for part in parts if len(parts) > 1 else ():
                self._decode_rest([part])
        else:
            if self.observe is not None:
                self._show_hidden(parts, self.observe)
            self._sample(parts)

    def _show_hidden(
        self,
        parts: Sequence[_Part],
        observe: Observe,
    ) -> None:
        row = 0
        for chunk, begin, end in parts:
            rows = [self.context.embedding(row + i) for i in range(end - begin)]
            observe(chunk.request, chunk.start + begin, rows)
            row += end - begin

    def _fill(self, parts: Sequence[_Part]) -> None:
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        wanted = bytearray()
        for chunk, begin, end in parts:
            n = end - begin
            tokens += chunk.tokens[begin:end]
            positions += range(chunk.start + begin, chunk.start + end)
            seq_ids += [chunk.seq_id] * n
            n_wanted = max(0, end - max(begin, _first(chunk)))
            wanted += bytes(n - n_wanted) + b"\x01" * n_wanted
        self._batch.put(tokens, positions, seq_ids, bytes(wanted))

    def _sample(self, parts: Sequence[_Part]) -> None:
        row = 0
        for chunk, begin, end in parts:
            first = _first(chunk)
            outcome = self._outcomes[chunk.request]
            try:
                for at in range(max(begin, first), end):
                    if at > first and not _confirmed(chunk, at, outcome):
                        break
                    self._next(self._handles[chunk.request], row + at - begin, outcome)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome.error = error
            row += end - begin

    def _next(self, handle: Handle, row: int, outcome: _Outcome) -> None:
        """Sample from an output of the batch, and go on by what is forced then."""
        answer = handle.answer
        assert answer is not None
        while True:
            token = answer.next(self.context, row)
            if token is not None:
                outcome.tokens.append(token)
                if handle.listens:
                    handle.unsent.append(Step(token, handle.output.take(), handle.output.logprob))
            outcome.finish_reason = answer.finish_reason
            if outcome.finish_reason or not answer.is_forced:
                return
            outcome.closed = True  # what is forced goes before guesses

    def _fail(self, part: _Part, error: BaseException) -> None:
        self._outcomes[part.chunk.request].error = error

    def _note_lost(self, parts: Sequence[_Part]) -> None:
        """Find the sequences that a failed call has cost; recurrent memories keep no part."""
        for chunk, begin, _ in parts:
            if self.context.memory.seq_pos_max(chunk.seq_id) != chunk.start + begin - 1:
                self._outcomes[chunk.request].lost = True


def _first(chunk: Chunk) -> int:
    """Return the first token of a chunk after which one is sampled."""
    return len(chunk.tokens) - 1 - chunk.n_draft if chunk.samples else len(chunk.tokens)


def _confirmed(chunk: Chunk, at: int, outcome: _Outcome) -> bool:
    """Whether token *at* of a chunk, a guess, is what was sampled before it."""
    if outcome.ended or outcome.closed:
        return False
    outcome.closed = outcome.tokens[-1] != chunk.tokens[at]
    outcome.n_accepted += not outcome.closed
    return not outcome.closed


def _halves(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Return *parts* in two, one token at least in each; in one where there is one token."""
    if len(parts) > 1:
        middle = len(parts) // 2
        return [list(parts[:middle]), list(parts[middle:])]
    chunk, begin, end = parts[0]
    middle = (begin + end) // 2
    if middle == begin:
        return [list(parts)]
    return [[_Part(chunk, begin, middle)], [_Part(chunk, middle, end)]]
