"""Read the header of a GGUF file: metadata, tensor table, parts of a split model.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError
from .header_check import (
    SCALARS,
    STRING,
    GgufArray,
    GgufSummary,
    GgufTensor,
    bytes_of,
    check_gguf,
    tensor_bytes,
)
from .strings import find_strings

__all__ = [
    "GgufArray",
    "GgufFile",
    "GgufSummary",
    "GgufTensor",
    "MetadataValue",
    "bytes_of",
    "check_gguf",
    "check_parts",
    "decode_array",
    "fingerprint",
    "read_gguf",
    "tensor_bytes",
]

MetadataValue = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

_PART = re.compile(r"(?s)(.*)-(\d{5})-of-(\d{5})\.gguf")
_ALIGNMENT = 32
_EDGE, _PAGE, _PAGES = 64 * 1024, 4096, 64


class GgufFile:
    """The header of a GGUF file, read without llama.cpp. The file does not stay open.

    Attributes:
        path: The file.
        version: GGUF format version.
        architecture: Architecture of the model, such as `llama`; empty if the file has none.
        decision_type: Type of a decision model, such as `lev`; empty for all other files.
        metadata: Key -> int, float, bool, str, or a list of those. An array is read from the file
            when it is first used.
        tensors: The tensor table of this file.
        alignment: Alignment of the tensors' data in bytes.
        size_bytes: Size of this file in bytes.
        split: (number from 0, count) for a part of a split model, else None.
    """

    def __init__(self, path: Path, summary: GgufSummary) -> None:
        self.path = path
        self.version = summary.version
        self.architecture = summary.architecture
        self.decision_type = summary.decision_type
        self.metadata: Mapping[str, MetadataValue] = _Metadata(path, summary)
        self.tensors: tuple[GgufTensor, ...] = summary.tensors
        self.alignment = int(summary.values.get("general.alignment", _ALIGNMENT))
        self.size_bytes = summary.size_bytes
        count = summary.values.get("split.count", 0)
        self.split = (int(summary.values.get("split.no", 0)), int(count)) if count else None

    def __repr__(self) -> str:
        return f"<GgufFile {self.path.name}: {self.architecture}, {len(self.tensors)} tensors>"


def read_gguf(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> GgufFile:
    """Read the header of a GGUF file and check every part of it.

    Raises:
        ModelLoadError: It is missing, a folder, empty, not a GGUF, truncated or inconsistent.
    """
    file = Path(os.fsdecode(path)).expanduser()
    return GgufFile(file, check_gguf(file))


def check_parts(first: Path, summary: GgufSummary) -> list[Path]:
    """Return the files of a model by llama.cpp's naming; only the first if it is not split.

    Raises:
        ModelLoadError: *first* is not the first part, or not named as llama.cpp does.
    """
    count = int(summary.values.get("split.count", 0))
    if count < 2:
        return [first]
    number = int(summary.values.get("split.no", 0))
    named = _PART.fullmatch(first.name)
    prefix = named[1] if named else first.stem
    names = [first.with_name(f"{prefix}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    if number:
        raise ModelLoadError(f"{first} is part {number + 1} of {count}; load {names[0].name}")
    if first != names[0]:
        raise ModelLoadError(
            f"{first} is the first of {count} parts, but is not named NAME-00001-of-{count:05d}"
            ".gguf, so the others cannot be found; rename them, or pass a list of all parts"
        )
    return names


def fingerprint(paths: Sequence[Path], summaries: Sequence[GgufSummary]) -> str:
    """Return a SHA-256 that identifies a model, over its headers and a sample of its data.

    Of each file it covers the size, the header, the first and last 64 KiB of the data and 64 pages
    in between. It is equal for copies of the files, and differs for a fine-tune with the same
    header.

    Raises:
        ModelLoadError: A file can no longer be read.
    """
    digest = hashlib.sha256()
    for path, summary in zip(paths, summaries, strict=True):
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(struct.pack("<QQ", size, summary.header_bytes))
                digest.update(file.read(summary.header_bytes))
                begin, end = summary.header_bytes, size
                step = max((end - begin) // (_PAGES + 1), 1)
                places = [(begin, _EDGE), (max(begin, end - _EDGE), _EDGE)]
                places += [(begin + step * (i + 1), _PAGE) for i in range(_PAGES)]
                for at, count in places:
                    file.seek(at)
                    digest.update(file.read(count))
        except OSError as e:
            raise ModelLoadError(f"cannot read {str(path)!r}: {e}") from e
    return digest.hexdigest()


class _Metadata(Mapping[str, MetadataValue]):
    """The metadata of a file; arrays are decoded when they are first used, and kept."""

    def __init__(self, path: Path, summary: GgufSummary) -> None:
        self._path, self._summary = path, summary
        self._lists: dict[str, list[Any]] = {}

    def __getitem__(self, key: str) -> MetadataValue:
        if key in self._summary.values:
            return self._summary.values[key]
        if key not in self._lists:
            self._lists[key] = self._decode(self._summary.arrays[key])
        return self._lists[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._summary.values
        yield from self._summary.arrays

    def __len__(self) -> int:
        return self._summary.n_keys

    def _decode(self, array: GgufArray) -> list[Any]:
        with self._path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != self._summary.size_bytes:
                raise ModelLoadError(
                    f"{self._path} was changed after its header was read; read it again"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return decode_array(self._path, data, array, size)


def decode_array(path: Path, data: mmap.mmap, array: GgufArray, size: int) -> list[Any]:
    """Return the items of an array.

    Args:
        path: The file, for messages.
        data: Its content, as far as the array.
        array: The array.
        size: Number of bytes that *data* has.

    Raises:
        ModelLoadError: The file was changed.
    """
    if array.kind != STRING:
        form = f"<{array.count}{SCALARS[array.kind]}"
        return list(struct.unpack_from(form, data, array.offset))
    found = find_strings(data, array.offset, array.count, size)
    if found is None:
        raise ModelLoadError(f"{path} was changed after its header was read; read it again")
    return [string.decode("utf-8", "replace") for string in found]
