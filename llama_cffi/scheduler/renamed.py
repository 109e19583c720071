"""Former names of arguments, which still work."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["renamed_arguments"]

_F = TypeVar("_F", bound=Callable[..., object])


def renamed_arguments(**names: str) -> Callable[[_F], _F]:
    """Let a function take keyword arguments by former names too, with a DeprecationWarning.

    Args:
        **names: The present name of each former one.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> object:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{old} is the former name of {new}; pass {new} only")
                warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(_F, call)

    return decorate
