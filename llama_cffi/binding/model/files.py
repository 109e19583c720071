"""The files of a model: one, or the parts of a split one, each checked before C sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import ModelLoadError, ValidationError
from ...gguf.reader import GgufSummary, check_gguf, check_parts, fingerprint
from ...validation import real
from .vocab import encode

__all__ = ["AnyPath", "ModelFiles", "Override", "open_files"]

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Override = int | float | bool | str

_UINT16 = 2
_MAX_BYTES = 127  # C's fields have 128, and end with a zero
# Value types of the file -> the Python type of an override that C takes for them.
_KINDS = {**dict.fromkeys((0, 1, 2, 3, 4, 5, 10, 11), int), 6: float, 12: float, 7: bool, 8: str}
_INT_RANGE = -(2**31), 2**32 - 1  # C cuts larger ones off


@dataclass(frozen=True)
class ModelFiles:
    """The checked files of a model.

    Attributes:
        paths: The parts in order.
        parts: What each file's header says; overrides are in the first.
        listed: Whether C cannot find the parts by their names.
    """

    paths: tuple[Path, ...]
    parts: tuple[GgufSummary, ...]
    listed: bool

    @property
    def summary(self) -> GgufSummary:
        """The first part's metadata with the tensors of all parts."""
        return replace(self.parts[0], tensors=tuple(t for p in self.parts for t in p.tensors))

    def fingerprint(self) -> str:
        """Return a SHA-256 over a sample of every file."""
        return fingerprint(self.paths, self.parts)


def open_files(
    path: AnyPath | Sequence[AnyPath], overrides: Mapping[str, Override] | None = None
) -> ModelFiles:
    """Check the files of a model.

    Args:
        path: The file; of a split model the first part, whose others are found by llama.cpp's
            naming, or a list of all parts in order.
        overrides: Metadata that counts instead of the file's.

    Raises:
        ModelLoadError: A file is missing, damaged, or not the part that it should be.
        ValidationError: An override that C would cut off, refuse or ignore.
    """
    if isinstance(path, (str, bytes, os.PathLike)):
        given = [_path(path)]
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
            raise ModelLoadError(f"{given[0]} is of a model in {count} parts, not {len(given)}")
        listed = paths != _named(given[0], first)
    parts = [first]
    for i, part in enumerate(paths[1:], 1):
        if not part.exists():
            raise ModelLoadError(
                f"{part} is missing: part {i + 1} of {len(paths)} of {given[0].name}; all parts "
                "must lie in one folder"
            )
        parts.append(check_gguf(part))
        _check_part(part, parts[i], i, len(paths))
    expected = first.values.get("split.tensors.count")
    found = sum(part.n_tensors for part in parts)
    if len(parts) > 1 and expected != found:
        raise ModelLoadError(
            f"{given[0]} announces {expected} tensors, its {len(parts)} parts have {found}"
        )
    return ModelFiles(tuple(paths), tuple(parts), listed)


def _path(path: AnyPath) -> Path:
    return Path(os.fsdecode(path)).expanduser()


def _named(first: Path, summary: GgufSummary) -> list[Path]:
    """The parts that C would look for; none when the name does not fit."""
    try:
        return check_parts(first, summary)
    except ModelLoadError:
        return []


def _check_part(path: Path, part: GgufSummary, number: int, count: int) -> None:
    """Refuse a part that is another one. C asserts that its number has 16 bits."""
    found = part.values.get("split.no")
    if found != number or part.kinds["split.no"] != _UINT16:
        raise ModelLoadError(f"{path} should be part {number} of {count}, but split.no is {found}")


def _check_overrides(summary: GgufSummary, overrides: Mapping[str, Override]) -> None:
    for key, value in overrides.items():
        if not isinstance(key, str) or not 0 < len(encode(key)) <= _MAX_BYTES or "\0" in key:
            raise ValidationError(f"kv_overrides: {key!r} is no key of 1 to {_MAX_BYTES} bytes")
        where = f"kv_overrides[{key!r}]={value!r}"
        if key.startswith("split.") or key == "general.alignment":
            raise ValidationError(f"{where}: it tells how the file is read")
        if key in summary.arrays:
            raise ValidationError(f"{where}: the file has an array there, which C does not replace")
        if type(value) not in (int, float, bool, str):
            raise ValidationError(f"{where} is neither int, float, bool nor str")
        wanted = _KINDS[summary.kinds[key]] if key in summary.kinds else type(value)
        if type(value) is not wanted:
            raise ValidationError(f"{where}: the file has a {wanted.__name__} there")
        if isinstance(value, str):
            if "\0" in value or len(encode(value)) > _MAX_BYTES:
                raise ValidationError(f"{where}: text has at most {_MAX_BYTES} bytes and no NUL")
        elif isinstance(value, float):
            real(f"kv_overrides[{key!r}]", value, -3e38, 3e38)
        elif not _INT_RANGE[0] <= value <= _INT_RANGE[1]:
            raise ValidationError(f"{where} is outside {_INT_RANGE[0]}..{_INT_RANGE[1]}")
