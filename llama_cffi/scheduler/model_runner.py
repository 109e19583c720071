"""ModelRunner: decodes the chunks of a step and samples; a failure stays with its request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..binding import Batch, Context
from ..errors import DecodeAbortedError, KvCacheFullError
from ..generation.backoff import Backoff, is_intact
from ..generation.sequence import Step
from .kv_cache import KVCache
from .request import Request
from .request_handle import RequestHandle
from .scheduler import ScheduledTokens, TokenResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Observe = Callable[[Request, int, Sequence[NDArray[np.float32]]], None]

__all__ = ["ModelRunner"]


@dataclass(slots=True)
class _Outcome(TokenResult):
    """The result of a chunk while it is computed."""

    closed: bool = False  # the remaining draft tokens do not count

    @property
    def ended(self) -> bool:
        return bool(self.finish_reason) or self.error is not None or self.lost


class ModelRunner:
    """Decodes and samples.

    Args:
        context: Decodes.
        cache: Evicts finished sequences when C finds no slot.
        n_batch: Maximum number of tokens in a step.
        observe: Receives the hidden states of a request from a token on; None = not needed.
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
        self._handles: Mapping[Request, RequestHandle]
        self._backoff: Backoff | None = None  # None = nothing was refused in this step

    def run(
        self, chunks: Sequence[ScheduledTokens], handles: Mapping[Request, RequestHandle]
    ) -> Mapping[Request, TokenResult]:
        """Decode *chunks*, ordered by sequence; return the results of those that were decoded."""
        self._handles, self._backoff = handles, None
        self._outcomes = {chunk.request: _Outcome() for chunk in chunks}
        try:
            media = [chunk for chunk in chunks if chunk.tokens[0] < 0]
            for chunk in media:
                self._decode_media(chunk)
            self._decode([c for c in chunks if c.tokens[0] >= 0] if media else chunks)
        except DecodeAbortedError:  # the engine is being closed and cancels its requests
            return {}
        outcomes, self._outcomes = self._outcomes, {}  # kept, their errors would keep readers
        return outcomes

    def _decode(self, chunks: Sequence[ScheduledTokens]) -> None:
        """Decode *chunks*, in one call unless C refuses it."""
        while chunks:
            backoff = self._backoff
            part, rest = (chunks, ()) if backoff is None else _split(chunks, backoff.n_tokens)
            self._fill(part)
            try:
                self.context.decode(self._batch)
            except DecodeAbortedError:
                raise
            except KvCacheFullError as error:
                self._note_lost(part)
                if self._refused():
                    rest = chunks
                else:
                    self._fail(part[0], error)
            except Exception as error:
                self._note_lost(part)
                if len(part) == 1:
                    self._fail(part[0], error)
                else:
                    for chunk in part:  # alone, to find the one that fails
                        self._decode(self._unfinished([chunk]))
            else:
                if self.observe is not None:
                    self._show_hidden(part, self.observe)
                self._sample(part)
                if backoff is not None:
                    backoff.accepted(self._batch.n_tokens_max)
            chunks = self._unfinished(rest)

    def _decode_media(self, chunk: ScheduledTokens) -> None:
        """Decode a picture or a sound, in a call of its own."""
        request, seq_id, start, *_ = chunk
        (span,) = request.tokens.part(start, start + len(chunk.tokens)).spans()
        position = request.tokens.position(start)
        for is_last in (False, True):
            try:
                return span.media.decode(self.context, seq_id, position)
            except DecodeAbortedError:
                raise
            except Exception as error:
                self._note_lost([chunk])
                if is_last or not isinstance(error, KvCacheFullError):
                    return self._fail(chunk, error)
                self._free_cells()

    def _refused(self) -> bool:
        """Adapt to a batch that C has no slot for; False = it is a single token."""
        n = len(self._batch)
        if self._backoff is None:
            self._backoff = Backoff(n, 1, self._free_cells)
        return self._backoff.refused(n)

    def _free_cells(self) -> bool:
        # Finished sequences may lie in between, and old builds need a slot in one piece.
        self.cache.clear()
        self.context.memory.defrag()
        return True

    def _unfinished(self, chunks: Sequence[ScheduledTokens]) -> list[ScheduledTokens]:
        """Return those of *chunks* whose requests have not ended in this step."""
        return [chunk for chunk in chunks if not self._outcomes[chunk.request].ended]

    def _show_hidden(self, chunks: Sequence[ScheduledTokens], observe: Observe) -> None:
        row = 0
        for chunk in chunks:
            n = len(chunk.tokens)
            if not chunk.request.tokens.media:  # there nothing is drafted
                rows = [self.context.embedding(row + i) for i in range(n)]
                observe(chunk.request, chunk.start, rows)
            row += n

    def _fill(self, chunks: Sequence[ScheduledTokens]) -> None:
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        wanted = bytearray()
        for request, seq_id, start, part, n_draft, samples in chunks:
            n = len(part)
            tokens += part
            positions += request.positions(start, start + n)
            seq_ids += (seq_id,) * n
            n_wanted = min(n, n_draft + 1) if samples else 0
            wanted += bytes(n - n_wanted) + b"\x01" * n_wanted
        self._batch.put(tokens, positions, seq_ids, bytes(wanted))

    def _sample(self, chunks: Sequence[ScheduledTokens]) -> None:
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

    def _verify(self, chunk: ScheduledTokens, row: int, outcome: _Outcome) -> None:
        """Sample after the last token that is not a draft token, and after accepted ones."""
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

    def _next(self, handle: RequestHandle, row: int, outcome: _Outcome) -> None:
        """Sample from an output of the batch, and add the forced tokens that follow."""
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
            outcome.closed = True  # forced tokens win over draft tokens

    def _fail(self, chunk: ScheduledTokens, error: BaseException) -> None:
        self._outcomes[chunk.request].error = error

    def _note_lost(self, chunks: Sequence[ScheduledTokens]) -> None:
        """Mark the sequences that a failed decode has lost."""
        for request, seq_id, start, *_ in chunks:
            last = request.tokens.last_position(start)
            if not is_intact(self.context.memory, seq_id, last):
                self._outcomes[request].lost = True


def _split(
    chunks: Sequence[ScheduledTokens], n: int
) -> tuple[Sequence[ScheduledTokens], Sequence[ScheduledTokens]]:
    """Return the first *n* tokens of *chunks*, at least one, and the others."""
    for i, chunk in enumerate(chunks):
        if n < len(chunk.tokens):
            if n == 0:
                return chunks[:i], chunks[i:]
            left, right = _cut(chunk, n)
            return [*chunks[:i], left], [right, *chunks[i + 1 :]]
        n -= len(chunk.tokens)
    return chunks, ()


def _cut(chunk: ScheduledTokens, n: int) -> tuple[ScheduledTokens, ScheduledTokens]:
    """Return the first *n* tokens of a chunk, and the others; the last tokens are the drafts."""
    request, seq_id, start, tokens, n_draft, samples = chunk
    n_left = n - (len(tokens) - n_draft)
    left_samples = samples and n_left >= 0
    left = ScheduledTokens(request, seq_id, start, tokens[:n], max(n_left, 0), left_samples)
    n_right = min(n_draft, len(tokens) - n)
    right = ScheduledTokens(request, seq_id, start + n, tokens[n:], n_right, samples)
    return left, right
