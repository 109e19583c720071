"""The error of a prompt that is too long, in the words that programs search for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import ContextOverflowError

__all__ = ["overflow_of"]


@contextmanager
def overflow_of(count: Callable[[], int], n_ctx: int) -> Iterator[None]:
    """Begin the message of a ContextOverflowError with llama-cpp-python's.

    Its server finds the numbers there, and answers with status 400.

    Args:
        count: Returns the number of tokens of the prompt; called only after the error.
        n_ctx: Context size, tokens.

    Raises:
        ContextOverflowError: The prompt is too long.
    """
    try:
        yield
    except ContextOverflowError as e:
        n = count()
        if n < n_ctx:
            raise
        raise ContextOverflowError(
            f"Requested tokens ({n}) exceed context window of {n_ctx}: {e}"
        ) from None
