"""The engine's environment variables; `POLARIS_X` is read where `LLAMA_CFFI_X` is not set.

They are read on use, so a change of `os.environ` takes effect at the next call. Arguments override
them.
"""

from __future__ import annotations

import os
from typing import overload

from ..errors import ValidationError
from ..validation import check_int

__all__ = ["flag", "number", "text"]

_PREFIXES = ("LLAMA_CFFI_", "POLARIS_")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def text(name: str) -> tuple[str, str]:
    """Return (variable, value) of the setting *name*; an empty value if it is not set."""
    for prefix in _PREFIXES:
        value = os.environ.get(prefix + name, "").strip()
        if value:
            return prefix + name, value
    return _PREFIXES[0] + name, ""


@overload
def number(name: str, given: int | None, default: int, low: int = 0) -> int: ...
@overload
def number(name: str, given: int | None, default: None, low: int = 0) -> int | None: ...
def number(name: str, given: int | None, default: int | None, low: int = 0) -> int | None:
    """Return *given*, else the setting *name*, else *default*.

    Raises:
        ValidationError: The variable is not an integer of at least *low*.
    """
    if given is not None:
        return given
    variable, value = text(name)
    if not value:
        return default
    try:
        found = int(value)
    except ValueError:
        raise ValidationError(f"{variable}={value!r} must be an integer") from None
    return check_int(variable, found, low)


def flag(name: str, given: bool | None, default: bool) -> bool:
    """Return *given*, else the setting *name* (1/0, true/false, yes/no, on/off), else *default*.

    Raises:
        ValidationError: The variable or *given* has another value.
    """
    if given is not None:
        if given not in (True, False):
            raise ValidationError(f"{name.lower()}={given!r} must be True or False")
        return bool(given)
    variable, value = text(name)
    if not value:
        return default
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValidationError(f"{variable}={value!r} must be 1 or 0")
