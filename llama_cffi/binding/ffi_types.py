"""Types of what cffi creates at run time, for annotations.

Their attributes come from C declarations that are chosen when the library is loaded, so a type
checker cannot know them. cffi's own stubs would reject them.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["FFI", "CData", "CLibrary"]


class CData(Protocol):
    """A C pointer, struct or array; its attributes are the fields of its type."""

    def __getattr__(self, name: str, /) -> Any: ...

    def __setattr__(self, name: str, value: Any, /) -> None: ...

    def __getitem__(self, index: Any, /) -> Any: ...

    def __setitem__(self, index: Any, value: Any, /) -> None: ...

    def __add__(self, other: int, /) -> Any: ...

    def __sub__(self, other: Any, /) -> Any: ...


class CLibrary(Protocol):
    """The functions and constants of a C library: `library.lib.llama_time_us()`."""

    def __getattr__(self, name: str, /) -> Any: ...


class FFI(Protocol):
    """cffi's `FFI` with the declarations of a build: `new`, `cast`, `typeof`, `string`, ..."""

    def __getattr__(self, name: str, /) -> Any: ...
