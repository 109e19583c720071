"""Ownership: every C object has one Python owner that frees it once, children first."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Handle"]


class Handle:
    """Owner of one C object.

    A child holds its parent, so the parent lives as long as its children. `close` is idempotent
    and closes the children first; a forgotten object is freed when it is collected or at exit.
    """

    def __init__(
        self, ptr: Any, free: Callable[[Any], object], *, parent: Handle | None = None
    ) -> None:
        self._ptr = ptr
        self._parent = parent
        self._children: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._finalizer = weakref.finalize(self, free, ptr)
        if parent is not None:
            parent._children.add(self)

    @property
    def ptr(self) -> Any:
        """The C pointer, owned by this object.

        Raises:
            ValidationError: It was closed.
        """
        if self._ptr is None:
            raise ValidationError(f"this {type(self).__name__} is closed; open a new one")
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
