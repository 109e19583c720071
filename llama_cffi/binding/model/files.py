"""The files of a model: one, or the parts of a split model, each checked before C opens it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ModelLoadError, ValidationError
from ...gguf.reader import GgufSummary, check_gguf, check_parts, fingerprint
from ...validation import check_float
from .vocab import encode

__all__ = ["AnyPath", "ModelFiles", "Override", "open_files"]

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Override = int | float | bool | str

_UINT16 = 2
_PARSED, _LEAST_BYTES = 10, 2**23  # measured: 8 times the header, mostly for the vocabulary
_MAX_BYTES = 127  # C's fields have 128 bytes with the terminating zero
# GGUF value type -> the Python type of an override that C accepts for it.
_KINDS = {**dict.fromkeys((0, 1, 2, 3, 4, 5, 10, 11), int), 6: float, 12: float, 7: bool, 8: str}
_INT_RANGE = -(2**31), 2**32 - 1  # C truncates values outside


@dataclass(frozen=True)
class ModelFiles:
    """The checked files of a model.

    Attributes:
        paths: The parts in order.
        parts: The header of each file; the first includes the overrides.
        listed: Whether C needs the list because it cannot derive the names of the parts.
    """

    paths: tuple[Path, ...]
    parts: tuple[GgufSummary, ...]
    listed: bool

    @property
    def summary(self) -> GgufSummary:
        """The first part's metadata with the tensors of all parts."""
        return replace(self.parts[0], tensors=tuple(t for p in self.parts for t in p.tensors))

    def load_bytes(self, mapped: bool) -> int:
        """Return the memory that C takes to load them, without buffers whose failure it reports.

        Args:
            mapped: Whether the files are mapped into memory.
        """
        header = sum(part.header_bytes for part in self.parts)
        whole = sum(part.size_bytes for part in self.parts) if mapped else 0
        return whole + _PARSED * header + _LEAST_BYTES

    def fingerprint(self) -> str:
        """Return a SHA-256 over a sample of every file."""
        return fingerprint(self.paths, self.parts)


def open_files(
    path: AnyPath | Sequence[AnyPath], overrides: Mapping[str, Override] | None = None
) -> ModelFiles:
    """Check the files of a model.

    Args:
        path: The file; of a split model the first part (the others are found by llama.cpp's
            naming) or a list of all parts in order.
        overrides: Metadata that replaces the file's.

    Raises:
        ModelLoadError: A file is missing, damaged, or not the expected part.
        ValidationError: C would truncate, reject or ignore an override.
    """
    if isinstance(path, (str, bytes, os.PathLike)):
        given = [_path(path)]
    elif path is None or not isinstance(path, Iterable):
        raise ValidationError(f"path must be a GGUF file, or the list of its parts, got {path!r}")
    elif path:
        given = [_path(p) for p in path]
    else:
        raise ValidationError("the list of the model's parts is empty")
    first = check_gguf(given[0])
    if overrides:
        _check_overrides(first, overrides)
        first = check_gguf(given[0], overrides)
    if len(given) == 1:
        paths, listed = check_parts(given[0], first), False
    else:
        paths, listed = given, True
        _check_part(given[0], first, 0, len(given))
        count = first.values.get("split.count", 1)
        if count != len(given):
            raise ModelLoadError(
                f"{given[0]} belongs to a model in {count} parts; the list has {len(given)}"
            )
        listed = paths != _named(given[0], first)
    parts = [first]
    for i, part in enumerate(paths[1:], 1):
        if not part.exists():
            raise ModelLoadError(
                f"{part} is missing: part {i + 1} of {len(paths)} of {given[0].name}; all parts "
                "must be in one folder"
            )
        parts.append(check_gguf(part))
        _check_part(part, parts[i], i, len(paths))
    expected = first.values.get("split.tensors.count")
    found = sum(part.n_tensors for part in parts)
    if len(parts) > 1 and expected != found:
        raise ModelLoadError(
            f"{given[0]} declares {expected} tensors, but its {len(parts)} parts have {found}"
        )
    return ModelFiles(tuple(paths), tuple(parts), listed)


def _path(path: AnyPath) -> Path:
    return Path(os.fsdecode(path)).expanduser()


def _named(first: Path, summary: GgufSummary) -> list[Path]:
    """Return the parts that C would look for; none if the name does not match."""
    try:
        return check_parts(first, summary)
    except ModelLoadError:
        return []


def _check_part(path: Path, part: GgufSummary, number: int, count: int) -> None:
    """Refuse a part with another number. C asserts that the number has 16 bits."""
    found = part.values.get("split.no")
    if found != number or part.kinds["split.no"] != _UINT16:
        raise ModelLoadError(f"{path} should be part {number} of {count}, but split.no is {found}")


def _check_overrides(summary: GgufSummary, overrides: Mapping[str, Override]) -> None:
    for key, value in overrides.items():
        if not isinstance(key, str) or not 0 < len(encode(key)) <= _MAX_BYTES or "\0" in key:
            raise ValidationError(
                f"kv_overrides: a key must be a str of 1 to {_MAX_BYTES} bytes, got {key!r}"
            )
        where = f"kv_overrides[{key!r}]={value!r}"
        if key.startswith("split.") or key == "general.alignment":
            raise ValidationError(f"{where}: this key decides how the file is read")
        if key in summary.arrays:
            raise ValidationError(f"{where}: the file has an array there, which C cannot override")
        if type(value) not in (int, float, bool, str):
            raise ValidationError(f"{where} must be an int, float, bool or str")
        wanted = _KINDS[summary.kinds[key]] if key in summary.kinds else type(value)
        if type(value) is not wanted:
            raise ValidationError(f"{where} must be of type {wanted.__name__}, as in the file")
        if isinstance(value, str):
            if "\0" in value or len(encode(value)) > _MAX_BYTES:
                raise ValidationError(
                    f"{where}: a str may have at most {_MAX_BYTES} bytes and no NUL"
                )
        elif isinstance(value, float):
            check_float(f"kv_overrides[{key!r}]", value, -3e38, 3e38)
        elif not _INT_RANGE[0] <= value <= _INT_RANGE[1]:
            raise ValidationError(f"{where} is outside {_INT_RANGE[0]}..{_INT_RANGE[1]}")
