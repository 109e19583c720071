"""`contextlib.contextmanager`, without the reference cycle that it leaves in Python 3.10."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

__all__ = ["contextmanager"]

T = TypeVar("T")

if TYPE_CHECKING or sys.version_info >= (3, 11):
    from contextlib import contextmanager
else:

    class _Manager(contextlib._GeneratorContextManager):
        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> bool | None:
            try:
                return super().__exit__(kind, error, traceback)
            finally:
                if error is not None:  # its traceback has a frame that refers to it
                    error.__traceback__ = traceback

    def contextmanager(function: Callable[P, Iterator[T]]) -> Callable[P, _Manager]:
        """Make a context manager of a generator function. Source: contextlib."""

        @wraps(function)
        def make(*args: P.args, **kwargs: P.kwargs) -> _Manager:
            return _Manager(function, args, kwargs)

        return make
