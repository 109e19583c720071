"""Slot: decodes into one sequence of a context and tracks the content of its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..binding import Batch, Context
from ..errors import DecodeAbortedError, GenerationError, KvCacheFullError
from .backoff import Backoff, is_intact
from .prompt import Prompt, common_prefix_length

if TYPE_CHECKING:
    from .cancellation import CancelToken
    from .stats import GenerationStats

__all__ = ["Slot"]

_MIN_CHUNK = 16
_CHUNK_S = 0.1
_SLOW_STEP_S = 0.02  # Ctrl-C does not interrupt faster steps


class Slot:
    """One sequence of a context, and the cells in its memory.

    Attributes:
        tokens: The cells: `tokens[i]` is at position `tokens.position(i)`.
    """

    def __init__(self, context: Context, batch: Batch, seq_id: int = 0) -> None:
        self.context, self.seq_id = context, seq_id
        self.tokens = Prompt()
        self._tail: tuple[int, Sequence[int]] = 0, ()
        self._batch = batch
        self._one = Batch(1, library=context.library)
        self._one.fill([0], 0, seq_id)
        self._slow = True
        self._paced = min(2 * _MIN_CHUNK, batch.n_tokens_max)

    def clear(self) -> None:
        """Remove all tokens."""
        self._drop(0)

    def detach(self) -> None:
        """Leave the list of cells to the stream that was using it, and continue with a copy."""
        self.tokens = Prompt(self.tokens)

    def forget(self, n: int = 0) -> None:
        """Note that the memory has lost the cells from *n* on."""
        del self.tokens[n:]
        self._tail = 0, ()

    def end_with(self, tokens: Sequence[int]) -> None:
        """Note the tokens that end the session, but are not decoded yet."""
        self._tail = len(self.tokens), tokens

    def continued(self, prompt: Prompt, bos: int | None) -> Prompt:
        """Return the session followed by *prompt*, which then needs no *bos*."""
        at, tail = self._tail
        session = Prompt(self.tokens)
        session += tail if at == len(session) else ()
        session.add(prompt.part(1) if session and prompt[:1] == [bos] else prompt)
        return session

    def reuse(self, prompt: Prompt) -> int:
        """Keep the longest common prefix of *prompt* and the memory; return its length.

        At least one token remains to be decoded, for its logits.
        """
        n = self.tokens.boundary(common_prefix_length(self.tokens, prompt[:-1]))
        n = prompt.boundary(n)
        if not self.context.memory.can_truncate(self.seq_id, self.tokens.position(n)):
            n = 0
        self._drop(n)
        return len(self.tokens)

    def feed(
        self,
        prompt: Sequence[int],
        cancel_token: CancelToken,
        stats: GenerationStats,
        report: Callable[[int], object] | None = None,
    ) -> None:
        """Decode *prompt* in chunks of n_batch, with logits of the last token.

        After each chunk *report* is called with the number of tokens in the memory.

        If the KV cache has no slot, old builds first defragment it; then chunks are halved, down to
        16 tokens, and grow again after a success. After an error the memory is as before.

        Raises:
            KvCacheFullError: Not even 16 tokens fit.
            DecodeAbortedError: *cancel_token* requested a stop.
            GenerationError: Decoding failed.
        """
        start = len(self.tokens)
        try:
            with cancel_token.interruptible():
                if isinstance(prompt, Prompt) and prompt.media:
                    self._feed_media(prompt, cancel_token, stats, report)
                else:
                    self._feed(prompt, cancel_token, stats, report)
        except BaseException:
            self._drop(start)
            raise

    def step(self, token: int, cancel_token: CancelToken, stats: GenerationStats) -> None:
        """Decode one token; errors as of `feed`. Hot: every generated token."""
        try:
            self._one.advance(token, self.tokens.position(len(self.tokens)))
            if self._slow:
                started = time.perf_counter()
                with cancel_token.interruptible():
                    self.context.decode(self._one)
                self._slow = time.perf_counter() - started > _SLOW_STEP_S
            else:
                self.context.decode(self._one)
            self.tokens.append(token)
        except (KvCacheFullError, DecodeAbortedError):
            self._slow = True
            self.feed((token,), cancel_token, stats)
        except BaseException:
            self._drop(len(self.tokens))
            raise

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Remove *n_discard* tokens after the first *n_keep* and shift the rest.

        Raises:
            ValidationError: The memory of this model cannot shift.
            GenerationError: It cannot remove the tokens.
        """
        memory, tokens = self.context.memory, self.tokens
        rest = tokens.without(n_keep, n_keep + n_discard)
        n_removed = len(tokens) - len(rest)
        start = tokens.boundary(n_keep)
        p0, p1 = tokens.position(start), tokens.position(start + n_removed)
        if not memory.seq_rm(self.seq_id, p0, p1):
            raise GenerationError(f"the memory cannot remove positions {p0} to {p1 - 1}")
        memory.seq_add(self.seq_id, p1, -1, p0 - p1)
        self.tokens = rest

    def _feed_media(
        self,
        prompt: Prompt,
        cancel_token: CancelToken,
        stats: GenerationStats,
        report: Callable[[int], object] | None,
    ) -> None:
        done = 0
        for start, end, media in prompt.spans():
            self._feed(prompt[done:start], cancel_token, stats, report)
            cancel_token.check()
            media.decode(self.context, self.seq_id, self.tokens.position(len(self.tokens)))
            self.tokens.add(prompt.part(start, end))
            done = end
            if report is not None:
                report(len(self.tokens))
        self._feed(prompt[done:], cancel_token, stats, report)

    def _feed(
        self,
        tokens: Sequence[int],
        cancel_token: CancelToken,
        stats: GenerationStats,
        report: Callable[[int], object] | None = None,
    ) -> None:
        context, n, done = self.context, len(tokens), 0
        limit = self._batch.n_tokens_max if context.abortable else self._paced
        backoff = Backoff(limit, _MIN_CHUNK, context.memory.defrag)
        while done < n:
            part = tokens[done : done + backoff.n_tokens]
            position = self.tokens.position(len(self.tokens))
            self._batch.fill(part, position, self.seq_id, logits=done + len(part) == n)
            try:
                started = time.perf_counter()
                context.decode(self._batch)
                if not context.abortable:
                    context.synchronize()
                    limit = self._pace(len(part), time.perf_counter() - started)
                    cancel_token.check()
            except KvCacheFullError as e:
                last = self.tokens.last_position(len(self.tokens))
                intact = is_intact(context.memory, self.seq_id, last)
                if not intact or not backoff.refused(len(part)):
                    raise KvCacheFullError(
                        f"the KV cache (n_ctx={context.n_ctx}) has no slot for {len(part)} tokens "
                        f"at position {position}: {done} of {n} tokens fitted. Free "
                        "sequences or create the context with a larger n_ctx."
                    ) from e
                if backoff.n_tokens < len(part):
                    stats.n_backoffs += 1
                else:
                    stats.n_retries += 1
                continue
            except DecodeAbortedError as e:
                n_before = len(self.tokens)
                self._drop(n_before)
                if len(self.tokens) < n_before or not cancel_token.resume_after_interrupt():
                    raise cancel_token.error() from e
                stats.n_retries += 1
                continue
            self.tokens += part
            done += len(part)
            backoff.accepted(limit)
            if report is not None:
                report(len(self.tokens))

    def _pace(self, n: int, seconds: float) -> int:
        """Return the size of the next chunk for backends that cannot be aborted.

        There Ctrl-C and `cancel` take effect only between chunks, so a chunk should take about a
        tenth of a second.
        """
        if seconds < _CHUNK_S / 2 and n == self._paced:
            self._paced = min(2 * n, self.context.n_ubatch, self._batch.n_tokens_max)
        elif seconds > _CHUNK_S:
            self._paced = max(_MIN_CHUNK, n // 2)
        return self._paced

    def _drop(self, n: int) -> None:
        """Keep the first *n* cells, or none if the memory lost or cannot remove a part."""
        memory, position = self.context.memory, self.tokens.position(n)
        last = self.tokens.last_position(n)
        # The list first: if Ctrl-C interrupts this, it is too short and the next call removes more.
        del self.tokens[n:]
        removed = memory.seq_rm(self.seq_id, position, -1)
        if not removed or not is_intact(memory, self.seq_id, last):
            self.tokens.clear()
            memory.seq_rm(self.seq_id, -1, -1)
