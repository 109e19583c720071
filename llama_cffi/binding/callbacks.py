"""The relay: Python exceptions carried through C frames.

1. A Python function is wrapped in a C callback with `ExceptionRelay.guard`.
2. C calls it; when it raises, the exception is kept here and C gets the value that means "stop".
3. C unwinds and returns its failure code.
4. The caller's `with relay:` block re-raises the exception unchanged.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ExceptionRelay"]


class ExceptionRelay:
    """Keeps the first exception that callbacks raised during one C call.

    Attributes:
        error: What is kept.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def guard(self, ffi: Any, kind: str, function: Any, on_error: Any) -> Any:
        """Return a C callback of type *kind*; C gets *on_error* when *function* raises.

        The caller owns the callback and keeps it for as long as C may call it.
        """
        return ffi.callback(kind, function, error=on_error, onerror=self._keep)

    def _keep(self, _type: Any, error: BaseException, _traceback: Any) -> None:
        if self.error is None:
            self.error = error

    def __enter__(self) -> ExceptionRelay:
        return self

    def check(self) -> None:
        """Raise what was kept, once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __exit__(self, *_: object) -> None:
        self.check()
