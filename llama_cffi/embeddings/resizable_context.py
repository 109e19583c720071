"""A context that is replaced by a larger one when a call needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from ..binding import Context
from ..context_managers import contextmanager
from ..errors import ClosedError, DecodeAbortedError, ValidationError
from ..generation.call_lock import CallLock

__all__ = ["ResizableContext"]


class ResizableContext:
    """Owns a context as large as the largest call so far; one thread at a time uses it.

    Args:
        create: Returns a new context for a number of tokens and a number of sequences.
        capacity: Returns how many tokens a context can take.
        n_tokens: Tokens of the first context.
        n_seqs: Sequences of the first context.

    Attributes:
        current: The context that is in use now; only its properties may be read outside `use`.
    """

    def __init__(
        self,
        create: Callable[[int, int], Context],
        capacity: Callable[[Context], int],
        n_tokens: int,
        n_seqs: int,
    ) -> None:
        self._create, self._capacity = create, capacity
        self._lock = CallLock()
        self._closed = False
        self.current = create(n_tokens, n_seqs)

    def close(self) -> None:
        """End running and waiting calls, and free the context. A second call does nothing."""
        self._closed = True
        self.current.abort_flag.set()
        if self._is_used_here:  # a function that reports progress may close it
            self.current.close()
            return
        with self._lock.acquire():
            self.current.close()

    @contextmanager
    def use(self, n_tokens: int, n_seqs: int) -> Iterator[Context]:
        """Lend an empty context for at least *n_tokens* and *n_seqs*; other threads wait.

        Clients, see `RequestScope`, take turns.

        Raises:
            ClosedError: It is closed, or was closed in this block.
            LlamaError: There is not enough memory.
            ValidationError: This thread is in such a block.
        """
        if self._is_used_here:
            raise ValidationError(
                "it is busy in this thread: a function that reports progress cannot call it"
            )
        with self._lock.acquire():
            self._check_open()
            context = self._grow(n_tokens, n_seqs)
            self._check_open()  # a new context's flag is not set
            context.memory.clear(data=False)
            try:
                yield context
            except DecodeAbortedError:
                self._check_open()
                raise

    @property
    def _is_used_here(self) -> bool:
        """Whether this thread is in a block of `use`."""
        return self._lock.owner == threading.get_ident()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Context is closed; open a new one")

    def _grow(self, n_tokens: int, n_seqs: int) -> Context:
        context = self.current
        before = self._capacity(context), context.n_seq_max
        if before[0] < n_tokens or before[1] < n_seqs:
            _ = context.ptr  # raises if its model is closed
            context.close()  # before the next one takes its memory
            try:
                self.current = self._create(max(n_tokens, before[0]), max(n_seqs, before[1]))
            except BaseException:
                self.current = self._create(*before)
                raise
        return self.current
