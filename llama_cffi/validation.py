"""Check and convert arguments before C sees them."""

from __future__ import annotations

import difflib
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from .errors import UnknownOptionError, ValidationError

__all__ = [
    "INT32_MAX",
    "as_callables",
    "as_list",
    "as_path",
    "check_float",
    "check_int",
    "reject_unknown",
    "warn_caller",
]

INT32_MAX = 2**31 - 1


def check_int(name: str, value: SupportsIndex, low: int, high: int = INT32_MAX) -> int:
    """Return *value* as an int from *low* to *high*; bools and numpy integers are accepted.

    Raises:
        ValidationError: It is not an integer, such as 1.0, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValidationError(f"{name}={value!r} must be an integer") from None
    if not low <= number <= high:
        raise ValidationError(f"{name}={number} is outside {low}..{high}")
    return number


def check_float(
    name: str, value: SupportsFloat, low: float, high: float, *, above: bool = False
) -> float:
    """Return *value* as a finite float from *low* to *high*; *above* excludes *low*.

    Raises:
        ValidationError: It is not a number, or out of range.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValidationError(f"{name}={value!r} must be a number") from None
    inside = math.isfinite(number) and low <= number <= high
    if not inside or (above and number == low):
        bracket = "(" if above else "["
        raise ValidationError(f"{name}={number!r} is outside {bracket}{low:g}, {high:g}]")
    return number


def as_callables(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """Return one function, or several, as a tuple; None = none.

    Raises:
        ValidationError: One of them is not callable.
    """
    functions = (value,) if callable(value) else () if value is None else value
    try:
        found = tuple(functions)
    except TypeError:
        raise ValidationError(
            f"{name}={value!r} must be a function or a list of functions"
        ) from None
    for function in found:
        if not callable(function):
            raise ValidationError(f"{name}: {function!r} is not callable")
    return found


def as_list(name: str, values: Any) -> list[Any]:
    """Return *values* as a list.

    Raises:
        ValidationError: They are a str, bytes or not iterable.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValidationError(f"{name}={values!r} must be a list")
    return list(values)


def as_path(name: str, value: Any) -> Path:
    """Return *value* as a path, with ~ expanded.

    Raises:
        ValidationError: It is not a path.
    """
    try:
        return Path(value).expanduser()
    except TypeError:
        raise ValidationError(f"{name}={value!r} must be a path") from None


def reject_unknown(options: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse options that do not exist.

    Args:
        options: The names that were given.
        known: The names that exist.
        where: The function or object that takes them, for the message.

    Raises:
        UnknownOptionError: One does not exist; the message suggests the nearest name.
    """
    names = list(known)
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"
            raise UnknownOptionError(f"{where} has no option {option!r}{hint}")


def warn_caller(message: str) -> None:
    """Warn the code that called the package, through `warnings`: once per line of it.

    Args:
        message: What is likely to go wrong, and what to do.
    """
    package, level = __name__.partition(".")[0], 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)
