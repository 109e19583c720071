"""Feed tokens to a context: the one core under the Engine and the scheduler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..binding import Batch, Context
from ..errors import DecodeAbortedError, GenerationError, KvCacheFullError
from .prompt import common_prefix_length

if TYPE_CHECKING:
    from .cancellation import CancelToken
    from .stats import GenerationStats

__all__ = ["Slot"]

_MIN_CHUNK = 16
_CHUNK_S = 0.1
_SLOW_STEP_S = 0.02  # below, Ctrl-C may wait for the end of the step


class Slot:
    """One sequence of a context, and the tokens that its memory holds.

    Attributes:
        tokens: `tokens[i]` was decoded at position i.
    """

    def __init__(self, context: Context, batch: Batch, seq_id: int = 0) -> None:
        self.context, self.seq_id = context, seq_id
        self.tokens: list[int] = []
        self._batch = batch
        self._one = Batch(1, library=context.library)
        self._one.fill([0], 0, seq_id)
        self._slow = True
        self._paced = min(2 * _MIN_CHUNK, batch.n_tokens_max)

    def clear(self) -> None:
        """Forget everything."""
        self._drop(0)

    def reuse(self, tokens: Sequence[int]) -> int:
        """Keep the longest common beginning of *tokens* and the memory; return its length.

        At least one token is left to decode, since only decoding gives logits.
        """
        n = common_prefix_length(self.tokens, tokens[:-1])
        if not self.context.memory.can_truncate(self.seq_id, n):
            n = 0
        self._drop(n)
        return len(self.tokens)

    def feed(self, tokens: Sequence[int], stop: CancelToken, stats: GenerationStats) -> None:
        """Decode *tokens* after those in memory, in chunks of n_batch; keep the last one's output.

        On "no KV slot" the chunk is halved, down to 16, and the same tokens are tried again; after
        a success it grows back. Old builds then close the gaps in the cache and try once more.
        When it fails, the memory is as before the call.

        Raises:
            KvCacheFullError: Not even 16 tokens fit.
            DecodeAbortedError: *stop* was asked for.
            GenerationError: Decoding failed.
        """
        start = len(self.tokens)
        try:
            with stop.interruptible():
                self._feed(tokens, stop, stats)
        except BaseException:
            self._drop(start)
            raise

    def step(self, token: int, stop: CancelToken, stats: GenerationStats) -> None:
        """Decode one token; errors are those of `feed`. Hot: every generated token."""
        try:
            self._one.advance(token, len(self.tokens))
            if self._slow:
                started = time.perf_counter()
                with stop.interruptible():
                    self.context.decode(self._one)
                self._slow = time.perf_counter() - started > _SLOW_STEP_S
            else:
                self.context.decode(self._one)
            self.tokens.append(token)
        except (KvCacheFullError, DecodeAbortedError):
            self._slow = True
            self.feed((token,), stop, stats)
        except BaseException:
            self._drop(len(self.tokens))
            raise

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Drop *n_discard* tokens after the first *n_keep* and move the rest up.

        Raises:
            ValidationError: The memory of this model cannot shift.
            GenerationError: It refused to remove the tokens.
        """
        memory, end = self.context.memory, n_keep + n_discard
        if not memory.seq_rm(self.seq_id, n_keep, end):
            raise GenerationError(f"the memory cannot remove positions {n_keep} to {end - 1}")
        memory.seq_add(self.seq_id, end, -1, -n_discard)
        del self.tokens[n_keep:end]

    def _feed(self, tokens: Sequence[int], stop: CancelToken, stats: GenerationStats) -> None:
        context, n, done = self.context, len(tokens), 0
        limit = self._batch.n_tokens_max if context.abortable else self._paced
        chunk, defragged = limit, False
        while done < n:
            part = tokens[done : done + chunk]
            self._batch.fill(part, len(self.tokens), self.seq_id, logits=done + len(part) == n)
            try:
                started = time.perf_counter()
                context.decode(self._batch)
                if not context.abortable:
                    context.synchronize()
                    limit = self._pace(len(part), time.perf_counter() - started)
                    stop.check()
            except KvCacheFullError as e:
                if len(part) <= _MIN_CHUNK and not defragged and context.memory.defrag():
                    chunk, defragged = limit, True
                    stats.n_retries += 1
                    continue
                if len(part) <= _MIN_CHUNK:
                    raise KvCacheFullError(
                        f"the KV cache (n_ctx={context.n_ctx}) has no slot for {len(part)} tokens "
                        f"at position {len(self.tokens)}: {done} of {n} tokens fitted. Free "
                        "sequences or make the context larger."
                    ) from e
                chunk = max(_MIN_CHUNK, len(part) // 2)
                stats.n_backoffs += 1
                continue
            except DecodeAbortedError as e:
                held = len(self.tokens)
                self._drop(held)
                if len(self.tokens) < held or not stop.resume_after_interrupt():
                    raise stop.error() from e
                stats.n_retries += 1
                continue
            self.tokens += part
            done += len(part)
            chunk = min(limit, chunk * 2)

    def _pace(self, n: int, seconds: float) -> int:
        """Return how many tokens to decode at once where C cannot be stopped.

        Ctrl-C and cancel count between chunks, so one shall not take much longer than a tenth of a
        second. What fits into that is found out as it goes.
        """
        if seconds < _CHUNK_S / 2 and n == self._paced:
            self._paced = min(2 * n, self.context.n_ubatch, self._batch.n_tokens_max)
        elif seconds > _CHUNK_S:
            self._paced = max(_MIN_CHUNK, n // 2)
        return self._paced

    def _drop(self, n: int) -> None:
        """Keep the first *n* tokens, or none where the memory lost or cannot remove a part."""
        memory = self.context.memory
        # The list first: cut short by Ctrl-C it says too little, which the next call removes.
        del self.tokens[n:]
        if not memory.seq_rm(self.seq_id, n, -1) or memory.seq_pos_max(self.seq_id) != n - 1:
            self.tokens.clear()
            memory.seq_rm(self.seq_id, -1, -1)
