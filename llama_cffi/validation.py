"""Check and convert arguments before C sees them."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, SupportsFloat, SupportsIndex, TypeVar

from .errors import UnknownOptionError, ValidationError

__all__ = [
    "INT32_MAX",
    "as_callables",
    "as_list",
    "as_path",
    "check_bool",
    "check_choice",
    "check_float",
    "check_int",
    "check_str",
    "check_type",
    "checked_arguments",
    "missing_file",
    "not_picklable",
    "reject_unknown",
    "shown",
    "warn_caller",
]

P = ParamSpec("P")
T = TypeVar("T")

INT32_MAX = 2**31 - 1
_MODEL = "a GGUF file, hf:OWNER/REPO[:FILE], or a loaded Model"
_MOST_LISTED = 20
_MOST_SHOWN = 200  # characters of a value in a message
# What an argument that is missing is, where its name does not say it.
_NEEDED = {
    "model_path": f"model_path: {_MODEL}",
    "model": "model: a loaded Model",
    "path": "path: a GGUF file",
    "prompt": "prompt: a str",
    "type_": "type_: a Python type",
    "messages": 'messages, such as [{"role": "user", "content": "..."}]',
}


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def check_int(name: str, value: SupportsIndex, low: int, high: int = INT32_MAX) -> int:
    """Return *value* as an int from *low* to *high*; bools and numpy integers are accepted.

    Raises:
        ValidationError: It is not an integer, such as 1.0, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValidationError(f"{name}={shown(value)} must be an integer") from None
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
        raise ValidationError(f"{name}={shown(value)} must be a number") from None
    except OverflowError:  # an int
        number = math.inf
    inside = math.isfinite(number) and low <= number <= high
    if not inside or (above and number == low):
        bracket = "(" if above else "["
        raise ValidationError(f"{name}={number!r} is outside {bracket}{low:g}, {high:g}]")
    return number


def check_callable(name: str, value: T) -> T:
    """Return a function, or None.

    Raises:
        ValidationError: It is something else.
    """
    if value is not None and not callable(value):
        raise ValidationError(f"{name} must be callable, got {shown(value)}")
    return value


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


def as_list(name: str, values: Any, kind: str = "a list") -> list[Any]:
    """Return *values* as a list.

    Args:
        name: What they are.
        values: Any iterable.
        kind: What it should be, for the message.

    Raises:
        ValidationError: They are a str, bytes or not iterable.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValidationError(f"{name} must be {kind}, got {shown(values)}")
    return list(values)


def as_path(name: str, value: Any) -> Path:
    """Return *value* as a path, with ~ expanded.

    Raises:
        ValidationError: It is not a path.
    """
    try:
        return Path(value).expanduser()
    except TypeError:
        raise ValidationError(
            f"{name} must be {_NEEDED.get(name, 'a path').partition(': ')[2] or 'a path'}, got "
            f"{shown(value)}{'; did you mean its .model?' if hasattr(value, 'model') else ''}"
        ) from None


def missing_file(path: Path, kind: str = "model") -> str:
    """Say that there is no file at *path*, and what the caller may have meant."""
    if path.is_symlink():
        return f"{path} is a link to a {kind} file that does not exist: {os.readlink(path)}"
    try:
        names = {p.stem.lower(): p.name for p in path.parent.glob("*.gguf")}
    except OSError:
        names = {}
    near = difflib.get_close_matches(path.stem.lower(), names, 1)
    hint = f"did you mean {path.parent / names[near[0]]}?" if near else "check the path"
    return f"no {kind} file at {path}; {hint}"


def check_bool(name: str, value: object) -> bool:
    """Return *value* as a bool; 0 and 1 are accepted.

    Raises:
        ValidationError: It is something else, such as "yes".
    """
    if not isinstance(value, (bool, SupportsIndex)) or value not in (0, 1):
        raise ValidationError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_str(name: str, value: object) -> str:
    """Return *value* if it is a str.

    Raises:
        ValidationError: It is something else; of a number, the message says where it may belong.
    """
    if not isinstance(value, str):
        number = (
            isinstance(value, (int, float)) and not isinstance(value, bool) and name != "prompt"
        )
        kind = "temperature" if isinstance(value, float) else "max_tokens"
        hint = f"; did you mean {kind}={value!r}?" if number else ""
        raise ValidationError(f"{name} must be a str, got {shown(value)}{hint}")
    return value


def check_type(name: str, value: object, kind: type) -> None:
    """Refuse a *value* that is not an instance of *kind*.

    Raises:
        ValidationError: It is something else; the message names both.
    """
    if not isinstance(value, kind):
        inner = getattr(value, name, None)
        hint = f"; did you mean its .{name}?" if isinstance(inner, kind) else ""
        raise ValidationError(f"{name} must be a {kind.__name__}, got {shown(value)}{hint}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Return *value* if it is one of *choices*.

    Raises:
        ValidationError: It is another; the message has all of them, and the nearest.
    """
    known = list(choices)
    if value not in known:
        near = difflib.get_close_matches(value, known, 1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValidationError(f"{name}={shown(value)} is not one of {', '.join(known)}{hint}")
    return value


def reject_unknown(
    options: Iterable[str], known: Iterable[str], where: str, also: Iterable[str] = ()
) -> None:
    """Refuse options that do not exist.

    Args:
        options: The names that were given.
        known: The names that exist.
        where: The function or object that takes them, for the message.
        also: Other names to suggest, such as aliases.

    Raises:
        UnknownOptionError: One does not exist; the message suggests the nearest name.
    """
    names = list(known)
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, [*names, *also], 1, 0.65)
            listed = ", ".join(sorted(names)) if len(names) <= _MOST_LISTED else ""
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else f"; it has {listed}"
                if listed
                else f"; see help({where})"
                if where.isidentifier()
                else "; docs/options.md lists them"
            )
            raise UnknownOptionError(f"{where} has no option {option!r}{hint}")


def checked_arguments(
    *more: Iterable[str], of_model: Iterable[str] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function refuse misspelt, missing and misplaced arguments with the nearest name.

    Args:
        *more: The names that its `**options` take; without any, only its parameters exist.
        of_model: Names that belong to `Model`, which the caller can pass instead of a path.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters.values()
        skip = 1 if next(iter(inspect.signature(function).parameters), "") == "self" else 0
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][
            skip:
        ]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters) and not more
        names = [p.name for p in plain] + [name for names in more for name in names]
        known = frozenset(names)
        elsewhere = frozenset(of_model) - known
        place = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> T:
            if not (takes_any or known.issuperset(options)):
                for name in elsewhere.intersection(options):
                    raise UnknownOptionError(
                        f"{place} has no option {name!r}, but Model has: pass a loaded model, "
                        f"{place}(Model(path, {name}=...))"
                    )
                reject_unknown(options, dict.fromkeys(names), place)
            try:
                return function(*args, **options)
            except TypeError as error:
                # Raised by this call itself, and not inside the function.
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
                raise TypeError(_misplaced(place, plain, len(args) - skip, options)) from None

        return call

    return decorate


def _misplaced(
    where: str, parameters: list[inspect.Parameter], n_args: int, options: Mapping[str, object]
) -> str:
    """Say which arguments are missing, given twice, or must be given by name."""
    by_place = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    placed = ", ".join(p.name for p in by_place) or "none"
    if n_args > len(by_place):
        return (
            f"{where} takes by position only {placed}, got {n_args} arguments; give the others by "
            "name" + (", such as max_tokens=100 or temperature=0.7" if "." in where else "")
        )
    if twice := [p.name for p in by_place[:n_args] if p.name in options]:
        return f"{where} got {twice[0]} by position and by name; give it once"
    lacking = [
        p.name
        for i, p in enumerate(parameters)
        if p.default is p.empty and p.name not in options and (i >= n_args or p not in by_place)
    ]
    what = ", ".join(_NEEDED.get(name, name) for name in lacking)
    return f"{where} needs {what}"


def not_picklable(
    advice: str, reason: str = "it owns memory of llama.cpp"
) -> Callable[..., NoReturn]:
    """Return a `__reduce__` that refuses to pickle or copy an object, and says what to do.

    Args:
        advice: What to do instead.
        reason: Why.
    """

    def reduce(self: object) -> NoReturn:
        raise TypeError(
            f"this {type(self).__name__} cannot be pickled or copied: {reason}; {advice}"
        )

    return reduce


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
