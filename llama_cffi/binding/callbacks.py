"""Python exceptions carried through C frames.

1. `ExceptionRelay.guard` wraps a Python function in a C callback.
2. C calls it. If it raises, the relay keeps the exception and C gets the value that means "stop".
3. C unwinds and returns its failure code.
4. The caller's `with relay:` block re-raises the exception unchanged.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ExceptionRelay"]


class ExceptionRelay:
    """Keeps the first exception that a callback raised during a C call.

    Attributes:
        error: That exception.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def guard(self, ffi: Any, ctype: Any, function: Any, on_error: Any) -> Any:
        """Return a C callback of type *ctype*; C gets *on_error* when *function* raises.

        The caller owns the callback and must keep it for as long as C may call it.
        """
        return ffi.callback(ctype, function, error=on_error, onerror=self._keep)

    def _keep(self, _type: Any, error: BaseException, _traceback: Any) -> None:
        if self.error is None:
            self.error = error

    def __enter__(self) -> ExceptionRelay:
        return self

    def check(self) -> None:
        """Raise the kept exception, once."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback refers to this frame, and to all that the callers hold

    def __exit__(self, *_: object) -> None:
        self.check()
