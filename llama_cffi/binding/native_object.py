"""Ownership: every C object has one Python owner, which frees it once and its children first."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..context_managers import contextmanager
from ..errors import ClosedError, LlamaError
from ..validation import not_picklable

if TYPE_CHECKING:
    from typing_extensions import Self

    from .ffi_types import CData

__all__ = ["EXITING", "FORKED", "NativeObject", "abandon", "close_all", "ggml_contexts", "in_call"]

FORKED = (
    "this process was forked after llama.cpp was loaded, and its threads and locks do not survive "
    "that; start it with multiprocessing's 'spawn', or load llama.cpp after the fork"
)
EXITING = (
    "the interpreter is exiting, and llama.cpp has ended; register an atexit function that uses it "
    "after the first model is opened"
)


class NativeObject:
    """The Python owner of one C object.

    A child keeps its parent alive. `close` is idempotent and closes the children first; an object
    that is never closed is freed when it is garbage-collected or at exit.

    Args:
        ptr: The C object, owned by this object from now on.
        free: The C function that frees it.
        parent: Closes this object when it closes; freed after it.
        keeps_parent: Whether this object refers to its parent, and not only to the C object.
        keeps: Also freed after this object.
        n_ggml_contexts: Number of ggml contexts that the C object holds; see `ggml_contexts`.
    """

    def __init__(
        self,
        ptr: Any,
        free: Callable[[Any], object],
        *,
        parent: NativeObject | None = None,
        keeps_parent: bool = True,
        keeps: Iterable[NativeObject] = (),
        n_ggml_contexts: int = 0,
    ) -> None:
        above = [*([parent] if parent else []), *keeps]
        self._ptr: CData | None = ptr
        self._parent = parent if keeps_parent else None
        self._label = type(self).__name__
        self._children: weakref.WeakSet[NativeObject] = weakref.WeakSet()
        # The collector calls finalizers in any order, so they free nothing themselves: each drops
        # a reference, and a C object is freed once its owner and all objects below it are gone.
        owned = _Owned(ptr, free, [owner.hold() for owner in above], n_ggml_contexts)
        self._finalizer = weakref.finalize(self, _drop, owned)
        self._finalizer.atexit = False  # `close_all` does it, and leaves closed objects
        self._owned = weakref.ref(owned)  # a strong reference would let the collector free it
        _alive.add(self)
        if parent is not None:
            parent._children.add(self)
        if _exiting:  # by a daemon thread that was already in C
            self.close()
            raise self._closed_error()

    __reduce__ = not_picklable("pass the model's path to the other process and open it there")

    @property
    def ptr(self) -> CData:
        """The C pointer, owned by this object.

        Raises:
            ClosedError: The object is closed.
            LlamaError: The process was forked after the object was made.
        """
        if self._ptr is None:
            raise self._closed_error()
        return self._ptr

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._ptr is None

    def close(self) -> None:
        """Free the C object, its children first. A second call does nothing."""
        for child in list(self._children):
            child.close()
        self._ptr = None
        self._finalizer()

    def _swap_kept(self, old: Iterable[NativeObject], new: Iterable[NativeObject]) -> None:
        """Keep *new* alive until this object is freed, and *old* no longer."""
        above = self.hold().above
        for kept in old:
            above.remove(kept.hold())
        above.extend(kept.hold() for kept in new)

    def hold(self) -> _Owned:
        """Return a reference that defers freeing: while it exists, `close` frees nothing in C.

        Hold it during C calls that run Python code or release the GIL: a callback or another
        thread may close this object meanwhile. Delete it in a `finally`: the traceback of a
        Ctrl-C would keep it, and the end of the interpreter waits for it.

        Raises:
            ClosedError: The object is closed.
            LlamaError: The process was forked after the object was made.
        """
        owned = self._owned()
        if self._ptr is None or owned is None:
            raise self._closed_error()
        return owned

    def _stop(self) -> None:
        """Let the C call that is running on this object end early, if it can."""

    def _closed_error(self) -> LlamaError:
        if _abandoned:
            return LlamaError(FORKED)
        if _exiting:
            return ClosedError(f"this {self._label} is closed: {EXITING}")
        return ClosedError(f"this {self._label} is closed; open a new one")

    def __enter__(self) -> Self:
        _ = self.ptr  # raises if closed
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Owned:
    """A C object, freed with its last reference and before the objects above it."""

    __slots__ = ("__weakref__", "above", "free", "n_ggml_contexts", "ptr")

    def __init__(
        self,
        ptr: Any,
        free: Callable[[Any], object],
        above: list[_Owned],
        n_ggml_contexts: int = 0,
    ) -> None:
        self.ptr, self.free, self.above = ptr, free, above
        self.n_ggml_contexts = n_ggml_contexts
        _unfreed.add(self)

    def __del__(self) -> None:
        if not _abandoned:
            self.free(self.ptr)


_alive: weakref.WeakSet[NativeObject] = weakref.WeakSet()
_unfreed: weakref.WeakSet[_Owned] = weakref.WeakSet()
_abandoned = False
_exiting = False
_EXIT_S = 10.0  # at exit, a longer call into C is not waited for
_GRACE_S = 0.02  # for threads that have read a pointer, and are about to call C with it


def ggml_contexts() -> int:
    """Return the number of ggml contexts that are in use, of which the oldest builds have few."""
    return sum(owned.n_ggml_contexts for owned in list(_unfreed))


def abandon() -> None:
    """Close every object without calling C, in a fork of the process that owns them."""
    global _abandoned
    _abandoned = True
    for native in list(_alive):
        native._ptr = None


def close_all() -> None:
    """Free every object at exit: functions that Python runs after this find them closed.

    Daemon threads still run. C ends as soon as Python has, under what they compute, so their
    calls are stopped or waited for.
    """
    global _exiting
    _exiting = True
    alive = list(_alive)
    for native in alive:
        native._ptr = None
        native._stop()
    if alive and threading.active_count() > 1:
        time.sleep(_GRACE_S)
    for native in alive:
        native._finalizer()
    deadline = time.monotonic() + _EXIT_S
    while not _abandoned and len(_unfreed) and time.monotonic() < deadline:
        time.sleep(0.001)


@contextmanager
def in_call() -> Iterator[None]:
    """Let the interpreter's end wait for the C call in this block, which loads an object."""
    held = _Owned(None, lambda _: None, [])
    try:
        yield
    finally:
        del held


def _drop(_owned: _Owned) -> None:
    """Drop the finalizer's reference, which is what frees the object."""
