"""Numbers from callers, checked before C sees them."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from .errors import UnknownOptionError, ValidationError

__all__ = ["INT32_MAX", "functions", "integer", "items", "path_of", "real", "reject_unknown"]

INT32_MAX = 2**31 - 1


def integer(name: str, value: SupportsIndex, low: int, high: int = INT32_MAX) -> int:
    """Return *value* as an int from *low* to *high*; bools and numpy integers count as integers.

    Raises:
        ValidationError: It is none, such as 1.0, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValidationError(f"{name}={value!r} is no integer") from None
    if not low <= number <= high:
        raise ValidationError(f"{name}={number} is outside {low}..{high}")
    return number


def real(name: str, value: SupportsFloat, low: float, high: float, *, above: bool = False) -> float:
    """Return *value* as a float from *low* (or *above* it) to *high*; never infinite or NaN.

    Raises:
        ValidationError: It is no number, or out of range.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValidationError(f"{name}={value!r} is no number") from None
    inside = math.isfinite(number) and low <= number <= high
    if not inside or (above and number == low):
        bracket = "(" if above else "["
        raise ValidationError(f"{name}={number!r} is outside {bracket}{low:g}, {high:g}]")
    return number


def functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """Return one function, or several, as a tuple; None = none.

    Raises:
        ValidationError: One of them cannot be called.
    """
    every = (value,) if callable(value) else () if value is None else value
    try:
        found = tuple(every)
    except TypeError:
        raise ValidationError(f"{name}={value!r} is no function and no list of them") from None
    for function in found:
        if not callable(function):
            raise ValidationError(f"{name}: {function!r} cannot be called")
    return found


def items(name: str, values: Any) -> list[Any]:
    """Return *values* as a list.

    Raises:
        ValidationError: They are a text, bytes, or nothing that can be iterated.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValidationError(f"{name}={values!r} is no list")
    return list(values)


def path_of(name: str, value: Any) -> Path:
    """Return *value* as a path, with ~ expanded.

    Raises:
        ValidationError: It is none.
    """
    try:
        return Path(value).expanduser()
    except TypeError:
        raise ValidationError(f"{name}={value!r} is no path") from None


def reject_unknown(options: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse options that do not exist.

    Args:
        options: The names that were given.
        known: The names that there are.
        where: What takes them, for the message.

    Raises:
        UnknownOptionError: One is not known; the message suggests the nearest name.
    """
    names = list(known)
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"
            raise UnknownOptionError(f"{where} has no option {option!r}{hint}")
