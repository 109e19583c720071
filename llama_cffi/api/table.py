"""Rows of any iterable, or of a Series or DataFrame, and a DataFrame of the same library back.

pandas and polars are recognized by their methods and never imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ValidationError
from ..validation import as_list

__all__ = ["Table", "is_missing", "read_table"]


@dataclass(frozen=True)
class Table:
    """Rows, and what they came from.

    Attributes:
        rows: The values; those of a DataFrame are dicts.
        name: The name of a Series; otherwise None.
        source: The Series or DataFrame; None: another iterable.
    """

    rows: list[object]
    name: str | None = None
    source: Any = None

    def frame(self, columns: Mapping[str, Sequence[object]]) -> object:
        """Return a DataFrame of the source's library, with its index if it has one.

        Raises:
            ValidationError: The rows came from another iterable.
        """
        if self.source is None:
            raise ValidationError(
                "the rows were no Series or DataFrame, so no library of frames is known; write "
                "pandas.DataFrame(result.records())"
            )
        source, data = self.source, {name: [*values] for name, values in columns.items()}
        make: Any = type(source if _is_frame(source) else source.to_frame())
        if hasattr(source, "iloc"):
            return make(data, index=source.index)
        return make(data, strict=False)


def read_table(rows: Any) -> Table:
    """Return the rows of any iterable.

    Raises:
        ValidationError: It is not iterable, or only a plan of a query.
    """
    if _is_frame(rows):
        found = (
            rows.iter_rows(named=True) if hasattr(rows, "iter_rows") else rows.to_dict("records")
        )
        return Table([{str(key): value for key, value in row.items()} for row in found], None, rows)
    if hasattr(rows, "to_frame") and (hasattr(rows, "iloc") or hasattr(rows, "alias")):  # a Series
        return Table([*rows], rows.name if isinstance(rows.name, str) else None, rows)
    if hasattr(rows, "collect") and not hasattr(rows, "__iter__"):
        raise ValidationError(f"rows is a {type(rows).__name__}, a query; pass rows.collect()")
    if isinstance(rows, Mapping):
        raise ValidationError("rows is a dict; pass a list of rows, which can be dicts")
    return Table(as_list("rows", rows, "a list or another iterable of rows"))


def is_missing(value: object) -> bool:
    """Whether a value is None, NaN, or pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def _is_frame(rows: Any) -> bool:
    return (hasattr(rows, "iloc") or hasattr(rows, "iter_rows")) and hasattr(rows, "columns")
