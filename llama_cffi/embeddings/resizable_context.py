"""A context that is replaced by a larger one when a call needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..binding import Context

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
        self._lock = threading.Lock()
        self.current = create(n_tokens, n_seqs)

    def close(self) -> None:
        """Free the context. A second call does nothing."""
        with self._lock:
            self.current.close()

    @contextmanager
    def use(self, n_tokens: int, n_seqs: int) -> Iterator[Context]:
        """Lend an empty context for at least *n_tokens* and *n_seqs*; other threads wait.

        Raises:
            ValidationError: It is closed.
            LlamaError: There is not enough memory.
        """
        with self._lock:
            context = self._grow(n_tokens, n_seqs)
            context.memory.clear(data=False)
            yield context

    def _grow(self, n_tokens: int, n_seqs: int) -> Context:
        context = self.current
        before = self._capacity(context), context.n_seq_max
        if before[0] < n_tokens or before[1] < n_seqs:
            _ = context.ptr  # raises if closed
            context.close()  # before the next one takes its memory
            try:
                self.current = self._create(max(n_tokens, before[0]), max(n_seqs, before[1]))
            except BaseException:
                self.current = self._create(*before)
                raise
        return self.current
