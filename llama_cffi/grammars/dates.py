"""Dates that are on the calendar: what the formats of JSON Schema leave open."""

from __future__ import annotations

from typing import Any

__all__ = ["DATE_PATTERNS"]

_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
# Multiples of four but not of a hundred, and multiples of four hundred.
_FOURS = "(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"([0-9]{{2}}{_FOURS}|{_FOURS}00)"
_DAY = "(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"({_YEAR}-(02-{_DAY}|(0[13-9]|1[0-2])-[0-3][0-9])|{_LEAP_YEAR}-02-29)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"

#: Format -> what else has to hold of the text. llguidance's own rules allow 29 February in every
#: year, the year 0000 and the second 60 in any minute (RFC 3339, 5.7: only where a leap second
#: was); most programs refuse each of them.
DATE_PATTERNS: dict[Any, str] = {
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}[Tt]{_TIME}",
    "time": f"^{_TIME}",
}
