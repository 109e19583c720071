"""Delegate: an attribute that forwards to the `llama_cffi.Llama` below."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..api.llama import Llama as NativeLlama
    from .llama import Llama

__all__ = ["Delegate"]

T = TypeVar("T")


class Delegate(Generic[T]):
    """A method or property of `Llama.native`, with its type, overloads included.

    Args:
        get: Returns it.
    """

    def __init__(self, get: Callable[[NativeLlama], T]) -> None:
        self._get = get

    @overload
    def __get__(self, llm: None, owner: type) -> Self: ...

    @overload
    def __get__(self, llm: Llama, owner: type) -> T: ...

    def __get__(self, llm: Llama | None, owner: type) -> Self | T:
        return self if llm is None else self._get(llm.native)
