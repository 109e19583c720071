"""Patterns that restrict JSON Schema's date formats to dates that exist."""

from __future__ import annotations

__all__ = ["DATE_PATTERNS"]

_YEAR = "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
# Multiples of 4 but not of 100, and multiples of 400.
_FOURS = "(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"([0-9]{{2}}{_FOURS}|{_FOURS}00)"
_DAY = "(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"({_YEAR}-(02-{_DAY}|(0[13-9]|1[0-2])-[0-3][0-9])|{_LEAP_YEAR}-02-29)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"

#: A pattern that a string of each format must also match. llguidance's own rules allow 29 February
#: in every year, the year 0000, and second 60 in any minute (RFC 3339, 5.7: only at a leap second);
#: most parsers reject them.
DATE_PATTERNS: dict[str, str] = {
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}[Tt]{_TIME}",
    "time": f"^{_TIME}",
}
