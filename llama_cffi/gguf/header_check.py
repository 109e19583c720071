"""Check the structure of a GGUF file before C sees it.

Old builds of llama.cpp abort or read past the end of damaged files. This walks through the header
(metadata keys, tensor table) in a memory map, without creating Python objects for arrays, and
proves that every part lies inside the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError
from ..validation import missing_file
from .strings import Strings, find_strings

__all__ = [
    "ARRAY",
    "SCALARS",
    "STRING",
    "GgufArray",
    "GgufSummary",
    "GgufTensor",
    "bytes_of",
    "check_gguf",
    "parse_header",
    "tensor_bytes",
]

# Value type -> struct format: u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64.
_SCALAR_TYPES = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)
SCALARS: dict[int, str] = dict(zip(_SCALAR_TYPES, "BbHhIif?Qqd", strict=True))
_UINT16, _UINT32, _INT32, _BOOL, STRING, ARRAY = 2, 4, 5, 7, 8, 9
# ggml maps tensors directly from the file and needs this alignment for all of them.
_TENSOR_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_KEY_BYTES = 65535
_FEW_ITEMS = 1024  # more than any model has layers
# Keys that decide how the file is read -> the only value type that C accepts.
_FIXED_KINDS = {"general.alignment": _UINT32, "split.count": _UINT16, "split.no": _UINT16}
# How other files begin that carry a model's name, in lower case.
_OTHER_FILES = {
    b"<!doctype": "a web page, not a GGUF file; download the file itself",
    b"<html": "a web page, not a GGUF file; download the file itself",
    b"version https://git-lfs": "a Git LFS pointer, not the model; fetch it with `git lfs pull`",
}


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, without its items.

    Attributes:
        kind: The GGUF value type of its items.
        count: Number of items.
        offset: Offset of the first item in the file.
        distinct: Number of items that differ for C, which reads up to a NUL; 0 unless it is
            `tokenizer.ggml.tokens`.
        shortest: Length in bytes of the shortest string, up to a NUL; 0 for other items.
        values: The distinct items; empty unless it is `tokenizer.ggml.token_type`.
        items: The items of a short array of integers, such as a number for each layer.
        reals: The items of a short array of floats, such as the mean of each color.
    """

    kind: int
    count: int
    offset: int
    distinct: int = 0
    shortest: int = 0
    values: frozenset[int] = frozenset()
    items: tuple[int, ...] = ()
    reals: tuple[float, ...] = ()


@dataclass(frozen=True)
class GgufTensor:
    """An entry of the tensor table.

    Attributes:
        name: Name of the tensor, such as `blk.0.attn_q.weight`.
        shape: Shape in ggml's order, the row length first.
        kind: Number of the ggml type.
        offset: Offset of its data in the file.
        size_bytes: Size of its data in bytes; None if the type is unknown here.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size_bytes: int | None

    @property
    def type_name(self) -> str:
        """The ggml type, such as `F16` or `Q4_K`; the number of an unknown one."""
        return _TENSOR_TYPES[self.kind][0] if self.kind in _TENSOR_TYPES else str(self.kind)


@dataclass(frozen=True)
class GgufSummary:
    """The parsed header of a GGUF file.

    Attributes:
        version: GGUF format version.
        values: The scalar and string metadata.
        arrays: The arrays of the metadata, without their items.
        tensors: The tensor table of this file.
        kinds: The GGUF value type of each scalar and string.
        size_bytes: Size of this file in bytes.
        header_bytes: Bytes before the data of the tensors.
        spellings: The tokens of a SentencePiece vocabulary that cannot spell every byte; empty
            for all others.
    """

    version: int
    values: Mapping[str, int | float | str]
    arrays: Mapping[str, GgufArray]
    tensors: tuple[GgufTensor, ...]
    kinds: Mapping[str, int]
    size_bytes: int
    header_bytes: int
    spellings: frozenset[bytes] = frozenset()

    @property
    def architecture(self) -> str:
        """`general.architecture`; empty if absent."""
        return str(self.values.get("general.architecture", ""))

    def number(self, key: str) -> int:
        """Return the whole number `<architecture>.<key>`; 0 if it is absent or something else."""
        value = self.values.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else 0

    @property
    def decision_type(self) -> str:
        """`<architecture>.decision.type`, such as `lev`; empty for all but decision models."""
        return str(self.values.get(f"{self.architecture}.decision.type", ""))

    @property
    def n_keys(self) -> int:
        """Number of metadata keys."""
        return len(self.values) + len(self.arrays)

    @property
    def n_tensors(self) -> int:
        """Number of tensors in this file."""
        return len(self.tensors)


def check_gguf(
    path: Path,
    overrides: Mapping[str, int | float | str] | None = None,
    *,
    kind: str = "model",
) -> GgufSummary:
    """Prove that *path* is a complete GGUF file.

    Args:
        path: The file.
        overrides: Metadata that replaces the file's.
        kind: What the file should be, for the message.

    Raises:
        ModelLoadError: It is missing, a folder, empty, not a GGUF, truncated or inconsistent.
    """
    try:
        if path.is_dir():
            raise ModelLoadError(
                f"{path} is a folder, not a GGUF file; name the .gguf file inside it"
            )
        size = path.stat().st_size
        if not path.is_file():
            raise ModelLoadError(f"{path} is a pipe or device, not a GGUF file")
        if size == 0:
            raise ModelLoadError(f"{path} is empty (0 bytes); download it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _HeaderParser(path, data, size).parse(overrides or {})
    except FileNotFoundError:
        raise ModelLoadError(missing_file(path, kind)) from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise ModelLoadError(f"cannot read {str(path)!r}: {e}") from e


def parse_header(path: Path, data: mmap.mmap, size: int) -> GgufSummary:
    """Parse the header of a file of which *data* is the beginning.

    Args:
        path: Its name, for messages.
        data: Bytes from its start.
        size: Its size in bytes.

    Raises:
        ModelLoadError: It is not a GGUF, or inconsistent.
        struct.error, IndexError, ValueError: The header goes on beyond *data*.
    """
    return _HeaderParser(path, data, size).parse({})


def bytes_of(tensor: GgufTensor, type_name: str) -> int:
    """Return the bytes of the tensor's data in another ggml type.

    Args:
        tensor: The tensor.
        type_name: A known type, such as `Q4_K`.
    """
    (found,) = [t for t in _TENSOR_TYPES.values() if t[0] == type_name]
    _, block, block_bytes = found
    return math.prod(tensor.shape) // block * block_bytes


def tensor_bytes(tensors: Iterable[GgufTensor], ftype: str) -> int:
    """Return the bytes that the tensors take at least after quantizing matrices to *ftype*.

    Args:
        tensors: The original tensors.
        ftype: A file type such as `Q4_K_M`; they keep their size if its name does not begin with
            a tensor type.
    """
    types = [t for t in _TENSOR_TYPES.values() if f"{ftype}_".startswith(f"{t[0]}_")]
    total = 0
    for tensor in tensors:
        size = tensor.size_bytes or 0
        if types and len(tensor.shape) > 1:
            _, block, block_bytes = types[0]
            size = min(size, math.prod(tensor.shape) // block * block_bytes)
        total += size
    return total


class _HeaderParser:
    """A cursor over the header; every step is checked against the size of the file."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0
        self.values: dict[str, Any] = {}
        self.kinds: dict[str, int] = {}
        self.arrays: dict[str, GgufArray] = {}
        self.tensors: list[GgufTensor] = []
        self.tokens: Strings | None = None

    def parse(self, overrides: Mapping[str, int | float | str]) -> GgufSummary:
        magic = self.data[:4]
        if magic != b"GGUF":
            start = self.data[:64].lstrip().lower()
            for prefix, advice in _OTHER_FILES.items():
                if start.startswith(prefix):
                    raise ModelLoadError(f"{self.path} is {advice}")
            raise ModelLoadError(
                f"{self.path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'. Convert "
                "the model with llama.cpp's convert_hf_to_gguf.py, or download its GGUF version."
            )
        self.at = 4
        version = self.number("<I", "the version")
        if version not in (2, 3):
            hint = " (a big-endian file?)" if version > 0xFFFF else ""
            raise ModelLoadError(
                f"{self.path} has GGUF version {version}{hint}; 2 and 3 are supported"
            )
        n_tensors = self.number("<Q", "the tensor count")
        n_keys = self.number("<Q", "the key count")
        # A key takes at least 13 bytes and a tensor 24: absurd counts end here, not in a loop.
        if n_keys * 13 + n_tensors * 24 > self.size:
            raise self.broken(f"{n_keys} keys and {n_tensors} tensors do not fit into it")
        alignment = self.keys(n_keys)
        self.values |= overrides
        self.check_rwkv()
        self.tensor_table(n_tensors, alignment)
        return GgufSummary(
            version,
            self.values,
            self.arrays,
            tuple(self.tensors),
            self.kinds,
            self.size,
            -(-self.at // alignment) * alignment,
            self.spellings(),
        )

    def spellings(self) -> frozenset[bytes]:
        if self.values.get("tokenizer.ggml.model") != "llama" or self.tokens is None:
            return frozenset()
        short = self.tokens.up_to(6)
        whole = all(b"<0x%02X>" % b in short or bytes([b]) in short for b in range(256))
        return frozenset() if whole else frozenset(self.tokens.up_to(self.size))

    def check_rwkv(self) -> None:
        """Refuse an rwkv vocabulary without a token for each byte: C searches for it forever."""
        if self.values.get("tokenizer.ggml.model") != "rwkv" or self.tokens is None:
            return
        short = self.tokens.up_to(4) - {b"\\"}
        bytes_seen = {token for token in map(_unescape, short) if len(token) == 1}
        if len(bytes_seen) < 256:
            raise self.broken(f"its rwkv vocabulary spells {len(bytes_seen)} of 256 bytes")

    def keys(self, count: int) -> int:
        """Read the metadata; return the alignment of the tensors."""
        for i in range(count):
            where = f"key {i + 1} of {count}"
            key = self.string(where).decode("utf-8", "replace")
            if not key:
                raise self.broken(f"{where} has no name")
            if key in self.values or key in self.arrays:
                raise self.broken(f"{key} occurs twice")
            kind = self.number("<I", where)
            if kind != ARRAY:
                self.kinds[key] = kind
            if kind == STRING:
                self.values[key] = self.string(where).decode("utf-8", "replace")
            elif kind == ARRAY:
                self.arrays[key] = self.array(where, key)
            else:
                self.values[key] = self.number("<" + self.scalar(kind, where), where)
                if kind == _BOOL and self.data[self.at - 1] > 1:  # invalid by the format
                    raise self.broken(f"{key} is a bool of the value {self.data[self.at - 1]}")
            if kind != _FIXED_KINDS.get(key, kind):
                raise self.broken(f"{key} has the value type {kind}, not {_FIXED_KINDS[key]}")
        alignment = self.values.get("general.alignment", _TENSOR_ALIGNMENT)
        whole = alignment if isinstance(alignment, int) else 0
        if whole < _TENSOR_ALIGNMENT or whole & (whole - 1):
            raise self.broken(
                f"general.alignment is {alignment}, not a power of two from {_TENSOR_ALIGNMENT}"
            )
        return whole

    def array(self, where: str, key: str) -> GgufArray:
        kind = self.number("<I", where)
        count = self.number("<Q", where)
        start = self.at
        if kind != STRING:
            self.skip(struct.calcsize("<" + self.scalar(kind, where)) * count, where)
            if key == "tokenizer.ggml.token_type" and kind in (_UINT32, _INT32):
                types = frozenset(struct.unpack_from(f"<{count}i", self.data, start))
                return GgufArray(kind, count, start, values=types)
            if count > _FEW_ITEMS:
                return GgufArray(kind, count, start)
            items = struct.unpack_from(f"<{count}{SCALARS[kind]}", self.data, start)
            if SCALARS[kind] in "fd":
                return GgufArray(kind, count, start, reals=items)
            return GgufArray(kind, count, start, items=items if kind != _BOOL else ())
        if count * 8 > self.size - self.at:
            raise self.broken(f"{where} is an array of {count} strings")
        found = find_strings(self.data, start, count, self.size)
        if found is None:
            raise self.broken(f"it ends inside {where}")
        if not count:
            return GgufArray(kind, 0, start)
        self.at = found.end
        distinct = 0
        if key == "tokenizer.ggml.tokens":
            self.tokens, distinct = found, found.count_distinct()
        return GgufArray(kind, count, start, distinct, found.shortest)

    def tensor_table(self, count: int, alignment: int) -> None:
        """Read the tensor table; every tensor must lie in the file."""
        rows, names = [], set[bytes]()
        for i in range(count):
            where = f"tensor {i + 1} of {count}"
            raw = self.string(where)
            name = raw.decode("utf-8", "replace")
            if raw in names:
                raise self.broken(f"the tensor {name} occurs twice")
            names.add(raw)
            dimensions = self.number("<I", where)
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise self.broken(f"{where} ({name}) has {dimensions} dimensions")
            shape = tuple(self.number("<Q", where) for _ in range(dimensions))
            kind = self.number("<I", where)
            offset = self.number("<Q", where)
            _, block, block_bytes = _TENSOR_TYPES.get(kind, ("", 1, None))
            elements = math.prod(shape)
            if not 0 < elements < 2**63 or shape[0] % block:
                raise self.broken(f"{where} ({name}) has the shape {shape} and type {kind}")
            if offset % alignment:
                raise self.broken(
                    f"{where} ({name}) begins at {offset}, not a multiple of {alignment}"
                )
            size = None if block_bytes is None else elements // block * block_bytes
            rows.append((name, shape, kind, offset, size))
        data = -(-self.at // alignment) * alignment
        self.tensors = [GgufTensor(n, s, k, data + at, size) for n, s, k, at, size in rows]
        end = max((t.offset + (t.size_bytes or 0) for t in self.tensors), default=0)
        if end > self.size:
            raise self.broken(f"its tensors need {end} bytes")

    def scalar(self, kind: int, where: str) -> str:
        try:
            return SCALARS[kind]
        except KeyError:
            raise self.broken(f"{where} has the unknown value type {kind}") from None

    def number(self, form: str, where: str) -> Any:
        size = struct.calcsize(form)
        if self.at + size > self.size:
            raise self.broken(f"it ends inside {where}")
        value = struct.unpack_from(form, self.data, self.at)[0]
        self.at += size
        return value

    def string(self, where: str) -> bytes:
        length = self.number("<Q", where)
        start = self.at
        self.skip(length, where)
        return self.data[start : start + min(length, _MAX_KEY_BYTES)]

    def skip(self, count: int, where: str) -> None:
        if self.at + count > self.size:
            raise self.broken(f"it ends inside {where}")
        self.at += count

    def broken(self, problem: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self.path} is truncated or corrupt: {problem}, and the file has {self.size} bytes "
            f"(at byte {self.at}). Download it again and compare its checksum."
        )


def _unescape(token: bytes) -> bytes:
    r"""Decode the escapes that rwkv vocabularies use, such as \x00."""
    try:
        return token.decode("utf-8").encode("latin-1").decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        return token


# ggml type -> (name, elements per block, bytes per block), from ggml.h; others are not checked.
_TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
