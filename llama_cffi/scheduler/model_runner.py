"""Executor: decodes the chunks of a plan and samples for each; a failure stays with its request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..binding import Batch, Context
from ..errors import DecodeAbortedError, KvCacheFullError
from ..generation.sequence import Step
from .kv_cache import KVCache
from .request import Request
from .request_handle import Handle
from .scheduler import Chunk, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Observe = Callable[[Request, int, Sequence[NDArray[np.float32]]], None]

__all__ = ["Executor"]


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
            self._decode(chunks)
        except DecodeAbortedError:  # the engine closes, and who runs is told so
            return {}
        return self._outcomes

    def _decode_rest(self, chunks: Sequence[Chunk]) -> None:
        """Decode those of *chunks* whose requests go on, after a call that failed."""
        chunks = [chunk for chunk in chunks if not self._outcomes[chunk.request].ended]
        if chunks:
            self._decode(chunks)

    def _decode(self, chunks: Sequence[Chunk]) -> None:
        """Decode *chunks* in one call, or where C refuses in several."""
        self._fill(chunks)
        try:
            self.context.decode(self._batch)
        except DecodeAbortedError:
            raise
        except KvCacheFullError as error:
            self._note_lost(chunks)
            halves = _halves(chunks)
            if not self._made_room:
                # Finished sequences may lie in between; old builds want the room in one piece.
                self._made_room = True
                self.cache.clear()
                self.context.memory.defrag()
                self._decode_rest(chunks)
            elif len(halves) > 1:
                for half in halves:
                    self._decode_rest(half)
            else:
                self._fail(chunks[0], error)
        except Exception as error:
            self._note_lost(chunks)
            if len(chunks) == 1:
                self._fail(chunks[0], error)
            for chunk in chunks if len(chunks) > 1 else ():
                self._decode_rest([chunk])
        else:
            if self.observe is not None:
                self._show_hidden(chunks, self.observe)
            self._sample(chunks)

    def _show_hidden(self, chunks: Sequence[Chunk], observe: Observe) -> None:
        row = 0
        for chunk in chunks:
            rows = [self.context.embedding(row + i) for i in range(len(chunk.tokens))]
            observe(chunk.request, chunk.start, rows)
            row += len(rows)

    def _fill(self, chunks: Sequence[Chunk]) -> None:
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        wanted = bytearray()
        for _, seq_id, start, part, n_draft, samples in chunks:
            n = len(part)
            tokens += part
            positions += range(start, start + n)
            seq_ids += (seq_id,) * n
            n_wanted = min(n, n_draft + 1) if samples else 0
            wanted += bytes(n - n_wanted) + b"\x01" * n_wanted
        self._batch.put(tokens, positions, seq_ids, bytes(wanted))

    def _sample(self, chunks: Sequence[Chunk]) -> None:
        handles, outcomes, row = self._handles, self._outcomes, 0
        for chunk in chunks:
            request, _, _, tokens, n_draft, samples = chunk
            row += len(tokens)
            if not samples:
                continue
            try:
                if n_draft:
                    self._verify(chunk, row - len(tokens), outcomes[request])
                else:
                    self._next(handles[request], row - 1, outcomes[request])
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcomes[request].error = error

    def _verify(self, chunk: Chunk, row: int, outcome: _Outcome) -> None:
        """Sample after the last token that is no guess, and after the guesses that hold."""
        handle, n = self._handles[chunk.request], len(chunk.tokens)
        first = n - 1 - chunk.n_draft
        if first >= 0:
            self._next(handle, row + first, outcome)
        for at in range(first + 1, n):
            if outcome.ended or outcome.closed:
                return
            if outcome.tokens[-1] != chunk.tokens[at]:
                outcome.closed = True
                return
            outcome.n_accepted += 1
            self._next(handle, row + at, outcome)

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

    def _fail(self, chunk: Chunk, error: BaseException) -> None:
        self._outcomes[chunk.request].error = error

    def _note_lost(self, chunks: Sequence[Chunk]) -> None:
        """Find the sequences that a failed call has cost; recurrent memories keep no part."""
        for chunk in chunks:
            if self.context.memory.seq_pos_max(chunk.seq_id) != chunk.start - 1:
                self._outcomes[chunk.request].lost = True


def _halves(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Return *chunks* in two, one token at least in each; in one where there is one token."""
    middle = len(chunks) // 2
    if middle:
        return [list(chunks[:middle]), list(chunks[middle:])]
    request, seq_id, start, tokens, n_draft, samples = chunks[0]
    middle = len(tokens) // 2
    if not middle:
        return [list(chunks)]
    # Guesses are the last ones; where nothing but guesses is left, all of them are.
    n_left = middle - (len(tokens) - n_draft)
    left = Chunk(request, seq_id, start, tokens[:middle], max(n_left, 0), samples and n_left >= 0)
    n_right = min(n_draft, len(tokens) - middle)
    return [[left], [Chunk(request, seq_id, start + middle, tokens[middle:], n_right, samples)]]
