"""The flag that stops a running decode from outside.

C polls it while it computes, so it must be read without Python: the abort callback is ggml's own
`ggml_is_scalar`, and the flag is a tensor whose last dimension is 1 (stop) or 0 (run).
"""

from __future__ import annotations

from typing import Any

from ..loading.library import Library

__all__ = ["AbortFlag"]


class AbortFlag:
    """Stops what its context computes: `context.abort_flag.set()`.

    Any thread may set and clear it, and so may a signal handler. It stays set until it is cleared,
    and every decode that sees it raises `DecodeAbortedError`, also one that begins later.

    Attributes:
        is_set: Whether it was set and not cleared since; only to be read.
    """

    def __init__(self, library: Library) -> None:
        self._tensor = library.ffi.new("struct ggml_tensor *")
        self._tensor.ne = [1, 1, 1, 0]
        self.is_set = False  # no property: every decode reads it
        # For llama_set_abort_callback; C keeps both, so the flag outlives the context.
        self.callback: Any = library.ffi.cast("ggml_abort_callback", library.lib.ggml_is_scalar)
        self.data: Any = self._tensor

    def set(self) -> None:
        """Stop what runs now, and every later decode until `clear`."""
        self.is_set = True
        self._tensor.ne[3] = 1

    def clear(self) -> None:
        """Let decodes run again."""
        self._tensor.ne[3] = 0
        self.is_set = False
