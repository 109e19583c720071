"""The flag that stops a running decode from outside.

C polls its abort callback while it computes, thousands of times per token, so the callback must
not be Python: it would wait for the GIL. It is ggml's own `ggml_is_scalar`, and the flag is a
tensor whose last dimension is 1 (scalar: stop) or 0 (not a scalar: run).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..loading.library import Library

if TYPE_CHECKING:
    from ..ffi_types import CData

__all__ = ["AbortFlag"]


class AbortFlag:
    """Stops the computation of its context: `context.abort_flag.set()`.

    Any thread or signal handler may set and clear it. It stays set until it is cleared, and every
    decode raises `DecodeAbortedError` meanwhile, including those that start later.

    Attributes:
        is_set: Whether it is set; read-only.
        polled: Whether C polls it while it computes; else it takes effect after that.
        holder: The generation that may set it, if several share the context.
    """

    def __init__(self, library: Library) -> None:
        self._tensor = library.ffi.new("struct ggml_tensor *")
        self._tensor.ne = [1, 1, 1, 0]
        self.holder: object | None = None
        self.is_set = False  # an attribute instead of a property, because every decode reads it
        self.polled = True
        self._library = library
        # C keeps it and the tensor, so the flag outlives the context.
        self._callback = library.ffi.cast("ggml_abort_callback", library.lib.ggml_is_scalar)

    def attach(self, ptr: CData) -> None:
        """Let C poll the flag, if it may. C: llama_set_abort_callback."""
        if self.polled:
            self._library.lib.llama_set_abort_callback(ptr, self._callback, self._tensor)
        else:
            self.detach(ptr)

    def detach(self, ptr: CData) -> None:
        """Let C ignore the flag. C: llama_set_abort_callback."""
        null = self._library.ffi.NULL
        self._library.lib.llama_set_abort_callback(ptr, null, null)

    def set(self) -> None:
        """Stop the running decode and every later one until `clear`."""
        self.is_set = True
        self._tensor.ne[3] = 1

    def clear(self) -> None:
        """Allow decodes again."""
        self._tensor.ne[3] = 0
        self.is_set = False
