"""Ownership: every C object has one Python owner that frees it once, children first."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import ClosedError, LlamaError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FORKED", "Handle", "abandon"]

FORKED = (
    "this process was forked after llama.cpp was loaded, and its threads and locks do not survive "
    "that; start it with multiprocessing's 'spawn', or load llama.cpp after the fork"
)


class Handle:
    """Owner of one C object.

    A child holds its parent, so the parent lives as long as its children. `close` is idempotent
    and closes the children first; a forgotten object is freed when it is collected or at exit.

    Args:
        ptr: The C object, owned by this handle from now on.
        free: The C function that frees it.
        parent: Closes this handle when it closes; freed after it.
        keeps: Freed after this handle too.
    """

    def __init__(
        self,
        ptr: Any,
        free: Callable[[Any], object],
        *,
        parent: Handle | None = None,
        keeps: Iterable[Handle] = (),
    ) -> None:
        above = [*([parent] if parent else []), *keeps]
        self._ptr = ptr
        self._parent = parent
        self._children: weakref.WeakSet[Handle] = weakref.WeakSet()
        # The collector calls finalizers in any order, so they free nothing themselves: each drops
        # a reference, and an object goes when its handle and all objects below it are gone.
        owned = _Owned(ptr, free, [handle.hold() for handle in above])
        self._finalizer = weakref.finalize(self, _drop, owned)
        self._owned = weakref.ref(owned)  # a strong reference would let the collector free it
        _alive.add(self)
        if parent is not None:
            parent._children.add(self)

    @property
    def ptr(self) -> Any:
        """The C pointer, owned by this object.

        Raises:
            ValidationError: It was closed.
            LlamaError: The process was forked since.
        """
        if self._ptr is None:
            raise self._gone()
        return self._ptr

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._ptr is None

    def close(self) -> None:
        """Free the C object, its children first. Calling it again does nothing."""
        for child in list(self._children):
            child.close()
        self._ptr = None
        self._finalizer()

    def _swap_kept(self, old: Iterable[Handle], new: Iterable[Handle]) -> None:
        """Free *new* after this handle, and *old* no more."""
        above = self.hold().above
        for handle in old:
            above.remove(handle.hold())
        above.extend(handle.hold() for handle in new)

    def hold(self) -> _Owned:
        """Return what owns the C object: as long as it is referred to, `close` frees nothing.

        For calls during which Python runs: its functions, or another thread, may close this.

        Raises:
            ValidationError: It was closed.
            LlamaError: The process was forked since.
        """
        owned = self._owned()
        if self._ptr is None or owned is None:
            raise self._gone()
        return owned

    def _gone(self) -> LlamaError:
        if _abandoned:
            return LlamaError(FORKED)
        return ClosedError(f"this {type(self).__name__} is closed; open a new one")

    def __enter__(self) -> Self:
        _ = self.ptr  # raises when it is closed
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Owned:
    """A C object; freed with its last reference, before the objects above it."""

    __slots__ = ("__weakref__", "above", "free", "ptr")

    def __init__(self, ptr: Any, free: Callable[[Any], object], above: list[_Owned]) -> None:
        self.ptr, self.free, self.above = ptr, free, above

    def __del__(self) -> None:
        if not _abandoned:
            self.free(self.ptr)


_alive: weakref.WeakSet[Handle] = weakref.WeakSet()
_abandoned = False


def abandon() -> None:
    """Close every handle without a call to C: the process is a fork of the one that owns them."""
    global _abandoned
    _abandoned = True
    for handle in list(_alive):
        handle._ptr = None


def _drop(_owned: _Owned) -> None:
    """Be the finalizer that held the object until now."""
