"""Write a copy of a GGUF file with other metadata.

What does not change is copied byte for byte, so it needs no knowledge of tensor types.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import difflib
import math
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import ModelLoadError, ValidationError
from .header_check import ARRAY, SCALARS, STRING, GgufSummary
from .reader import MetadataValue, check_gguf
from .strings import find_strings

__all__ = ["copy_gguf"]

_HEAD = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
_FIXED = ("general.alignment", "split.")  # they decide how the file is read
_MAX_KEY_BYTES = 65535  # of the format
_UINT32, _INT32, _FLOAT32, _BOOL, _INT64 = 4, 5, 6, 7, 11


def copy_gguf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    changes: Mapping[str, MetadataValue | None],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a copy of a GGUF file with other metadata and the same tensors.

    A key that the file has keeps its type. New ones get the usual one: uint32 (int32 or int64 where
    the value needs it), float32, bool, string, or an array of int32, float32, bool or string.

    Args:
        source: The file; of a split model one part.
        target: The new file, which appears only when complete.
        changes: Key -> new value; None removes the key.
        overwrite: Replace a file that exists at *target*.

    Returns:
        The new file.

    Raises:
        ModelLoadError: The source is missing or damaged.
        ValidationError: A value does not fit its key, a key decides how the file is read, the new
            metadata is not consistent, or the target cannot be written.
    """
    path, new = Path(source).expanduser(), Path(target).expanduser()
    summary = check_gguf(path)
    _check_target(path, new, overwrite)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as header:
        keys, tensors = _sections(header)
        for key, value in changes.items():
            _check_key(key, value, summary)
            if value is None:
                del keys[key]
            else:
                keys[key] = _entry(key, value, summary)
        head = _HEAD.pack(b"GGUF", summary.version, summary.n_tensors, len(keys))
        head += b"".join(keys.values()) + tensors
        alignment = int(summary.values.get("general.alignment", 32))
        with tempfile.TemporaryDirectory(prefix=f".{new.name[:50]}.", dir=new.parent) as folder:
            part = Path(folder) / new.name
            with part.open("wb") as copy:
                copy.write(head + bytes(-len(head) % alignment))
                _copy_rest(file, copy, summary)
            try:
                check_gguf(part)
            except ModelLoadError as e:
                reason = str(e).replace(str(part), new.name).split(": ", 1)[-1]
                raise ValidationError(f"these changes make no valid file: {reason}") from None
            os.replace(part, new)
    return new


def _copy_rest(source: BinaryIO, target: BinaryIO, summary: GgufSummary) -> None:
    """Copy the tensors' data, whose offsets count from the end of the header."""
    if summary.header_bytes < summary.size_bytes:
        source.seek(summary.header_bytes)
        shutil.copyfileobj(source, target, 1 << 20)


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if not target.name or not target.parent.is_dir():
        raise ValidationError(f"cannot write {target.name!r}: {target.parent} is not a folder")
    if target.exists() and target.samefile(source):
        raise ValidationError(f"{target} is the source; choose another target")
    if target.is_dir() or (target.exists() and not overwrite):
        raise ValidationError(f"{target} exists; overwrite=True replaces a file")


def _check_key(key: object, value: object, summary: GgufSummary) -> None:
    if not isinstance(key, str) or not 0 < len(_utf8("a key", key)) <= _MAX_KEY_BYTES:
        raise ValidationError(f"a key must be a str of 1 to {_MAX_KEY_BYTES} bytes, got {key!r}")
    if key.startswith(_FIXED):
        raise ValidationError(f"{key} decides how the file is read; it cannot be changed")
    if value is None and key not in summary.values and key not in summary.arrays:
        near = difflib.get_close_matches(key, [*summary.values, *summary.arrays], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValidationError(f"the file has no key {key!r} to remove{hint}")


def _sections(header: mmap.mmap) -> tuple[dict[str, bytes], bytes]:
    """Return the bytes of each key of a checked header, and those of its tensor table."""
    _, _, n_tensors, n_keys = _HEAD.unpack_from(header)
    at, keys = _HEAD.size, dict[str, bytes]()
    for _ in range(n_keys):
        start, end = at, _after_string(header, at)
        name = header[start + 8 : end].decode("utf-8", "replace")
        (kind,) = struct.unpack_from("<I", header, end)
        at = _after_value(header, kind, end + 4)
        keys[name] = header[start:at]
    table = at
    for _ in range(n_tensors):
        at = _after_string(header, at)
        (n_dimensions,) = struct.unpack_from("<I", header, at)
        at += 4 + 8 * n_dimensions + 4 + 8
    return keys, header[table:at]


def _after_string(header: mmap.mmap, at: int) -> int:
    return at + 8 + int.from_bytes(header[at : at + 8], "little")


def _after_value(header: mmap.mmap, kind: int, at: int) -> int:
    if kind == STRING:
        return _after_string(header, at)
    if kind != ARRAY:
        return at + struct.calcsize(SCALARS[kind])
    kind, count = struct.unpack_from("<IQ", header, at)
    at += 12
    if kind != STRING:
        return int(at + count * struct.calcsize(SCALARS[kind]))
    found = find_strings(header, at, count, len(header)) if count else None
    return found.end if found is not None else at


def _entry(key: str, value: MetadataValue, summary: GgufSummary) -> bytes:
    """Return the bytes of a key and its value, of the type that it has in the file."""
    name = _utf8("a key", key)
    begin = struct.pack("<Q", len(name)) + name
    if isinstance(value, (str, int, float)):
        if key in summary.arrays:
            raise ValidationError(f"{key} is an array in the file; give a list")
        kind = summary.kinds.get(key, _new_kind(value))
        return begin + struct.pack("<I", kind) + _packed(key, kind, value)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise ValidationError(f"{key}={value!r} must be a number, a str or a list of these")
    if key in summary.values:
        raise ValidationError(f"{key} is not an array in the file; give a single value")
    if key in summary.arrays:
        kind = summary.arrays[key].kind
    elif not value:
        raise ValidationError(f"{key}=[] has no items, so their type is not known")
    else:
        kind = {_UINT32: _INT32}.get(_new_kind(value[0]), _new_kind(value[0]))
    items = b"".join(_packed(key, kind, item) for item in value)
    return begin + struct.pack("<IIQ", ARRAY, kind, len(value)) + items


def _new_kind(value: object) -> int:
    """Return the value type of a new key."""
    if isinstance(value, str):
        return STRING
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _UINT32 if 0 <= value < 2**32 else _INT32 if -(2**31) <= value < 0 else _INT64
    return _FLOAT32


def _packed(key: str, kind: int, value: object) -> bytes:
    """Return a value in its type's bytes.

    Raises:
        ValidationError: It has another type, or does not fit.
    """
    if kind == STRING and isinstance(value, str):
        data = _utf8(key, value)
        return struct.pack("<Q", len(data)) + data
    form = SCALARS.get(kind, "")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if form == "?":
        fits = isinstance(value, bool)
    elif form in ("f", "d"):
        fits = number and not math.isnan(value)  # type: ignore[arg-type]
    else:
        fits = bool(form) and number and not isinstance(value, float)
    if fits:
        try:
            return struct.pack("<" + form, value)
        except (struct.error, OverflowError):
            pass
    raise ValidationError(f"{key}: {value!r} does not fit the type {_NAMES.get(kind, kind)}")


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as e:
        raise ValidationError(f"{name}: {text!r} cannot be encoded as UTF-8: {e}") from None


_NAMES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32",
    7: "bool", 8: "string", 9: "array", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip
