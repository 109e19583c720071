"""Check a GGUF file's structure before C sees it.

Old builds of llama.cpp abort or read past the end on damaged files. This walks the header of the
file (metadata keys, tensor table) through a memory map, without building Python objects for
arrays, and proves that every part lies inside the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError

__all__ = ["GgufSummary", "check_gguf"]

# Value type -> struct format: u8 i8 u16 i16 u32 i32 f32 bool u64 i64 f64.
_KINDS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)
_SCALARS: dict[int, str] = dict(zip(_KINDS, "BbHhIif?Qqd", strict=True))
_UINT32, _INT32, _STRING, _ARRAY = 4, 5, 8, 9
# ggml maps the tensors where they lie in the file and wants this alignment of all of them.
_TENSOR_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_KEY_BYTES = 65535


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata; its items are not kept.

    Attributes:
        kind: The GGUF value type of its items.
        count: Number of items.
        distinct: Number of different items; 0 unless it is `tokenizer.ggml.tokens`.
        shortest: Bytes of the shortest string; 0 for other items.
        values: The different items; empty unless it is `tokenizer.ggml.token_type`.
    """

    kind: int
    count: int
    distinct: int = 0
    shortest: int = 0
    values: frozenset[int] = frozenset()


@dataclass(frozen=True)
class GgufTensor:
    """A row of the tensor table: *shape* in ggml's order, the row length first."""

    name: str
    shape: tuple[int, ...]
    kind: int


@dataclass(frozen=True)
class GgufSummary:
    """What the header says.

    Attributes:
        version: GGUF format version.
        values: The scalar and text metadata.
        arrays: What the metadata's arrays are.
        tensors: The tensor table of this file.
        n_keys: Number of metadata keys.
        spellings: The tokens of a SentencePiece vocabulary that cannot spell every byte; empty
            for all others.
    """

    version: int
    values: Mapping[str, int | float | str]
    arrays: Mapping[str, GgufArray]
    tensors: tuple[GgufTensor, ...]
    n_keys: int
    spellings: frozenset[bytes] = frozenset()

    @property
    def architecture(self) -> str:
        """`general.architecture`, empty when absent."""
        return str(self.values.get("general.architecture", ""))

    @property
    def n_tensors(self) -> int:
        """Number of tensors in this file."""
        return len(self.tensors)


def check_gguf(path: Path) -> GgufSummary:
    """Prove that *path* is a whole GGUF file.

    Raises:
        ModelLoadError: It is missing, a folder, empty, no GGUF, truncated or inconsistent.
    """
    try:
        if path.is_dir():
            raise ModelLoadError(
                f"{path} is a folder, not a GGUF file; name the .gguf file inside it"
            )
        size = path.stat().st_size
        if size == 0:
            raise ModelLoadError(f"{path} is empty (0 bytes); download it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data, size).check()
    except FileNotFoundError:
        raise ModelLoadError(f"no model file at {path}") from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise ModelLoadError(f"cannot read {str(path)!r}: {e}") from e


class _Walk:
    """A cursor over the header; every step is checked against the file's size."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0
        self.values: dict[str, Any] = {}
        self.arrays: dict[str, GgufArray] = {}
        self.tensors: list[GgufTensor] = []
        self.seen: set[bytes] = set()  # the tokens

    def check(self) -> GgufSummary:
        magic = self.data[:4]
        if magic != b"GGUF":
            raise ModelLoadError(
                f"{self.path} is no GGUF file: it begins with {magic!r}, not b'GGUF'. Convert the "
                "model with llama.cpp's convert_hf_to_gguf.py, or download its GGUF version."
            )
        self.at = 4
        version = self.number("<I", "the version")
        if version not in (2, 3):
            hint = " (a big-endian file?)" if version > 0xFFFF else ""
            raise ModelLoadError(f"{self.path} is GGUF version {version}{hint}; 2 and 3 are known")
        n_tensors = self.number("<Q", "the tensor count")
        n_keys = self.number("<Q", "the key count")
        # A key takes at least 13 bytes and a tensor 24: absurd counts end here, not in a loop.
        if n_keys * 13 + n_tensors * 24 > self.size:
            raise self.broken(f"{n_keys} keys and {n_tensors} tensors cannot lie in it")
        alignment = self.keys(n_keys)
        self.check_rwkv()
        last_end = self.tensor_table(n_tensors, alignment)
        data_start = -(-self.at // alignment) * alignment
        if n_tensors and data_start + last_end > self.size:
            raise self.broken(f"its tensors need {data_start + last_end} bytes")
        return GgufSummary(
            version, self.values, self.arrays, tuple(self.tensors), n_keys, self.spellings()
        )

    def spellings(self) -> frozenset[bytes]:
        if self.values.get("tokenizer.ggml.model") != "llama":
            return frozenset()
        whole = all(b"<0x%02X>" % b in self.seen or bytes([b]) in self.seen for b in range(256))
        return frozenset() if whole else frozenset(self.seen)

    def check_rwkv(self) -> None:
        """Refuse an rwkv vocabulary without a token for each byte: C looks for one for ever."""
        if self.values.get("tokenizer.ggml.model") != "rwkv":
            return
        short = {token for token in self.seen if len(token) <= 4 and token != b"\\"}
        bytes_seen = {token for token in map(_unescape, short) if len(token) == 1}
        if len(bytes_seen) < 256:
            raise self.broken(f"its rwkv vocabulary spells {len(bytes_seen)} of 256 bytes")

    def keys(self, count: int) -> int:
        """Walk the metadata; return the alignment of the tensors."""
        for i in range(count):
            where = f"key {i + 1} of {count}"
            key = self.string(where).decode("utf-8", "replace")
            if key in self.values or key in self.arrays:
                raise self.broken(f"{key} is there twice")
            kind = self.number("<I", where)
            if kind == _STRING:
                self.values[key] = self.string(where).decode("utf-8", "replace")
            elif kind == _ARRAY:
                self.arrays[key] = self.array(where, key)
            else:
                self.values[key] = self.number("<" + self.scalar(kind, where), where)
                if key == "general.alignment" and kind != _UINT32:
                    raise self.broken(f"general.alignment has the value type {kind}")
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
        if kind != _STRING:
            start = self.at
            self.skip(struct.calcsize("<" + self.scalar(kind, where)) * count, where)
            if key == "tokenizer.ggml.token_type" and kind in (_UINT32, _INT32):
                types = struct.unpack_from(f"<{count}i", self.data, start)
                return GgufArray(kind, count, values=frozenset(types))
            return GgufArray(kind, count)
        if count * 8 > self.size - self.at:
            raise self.broken(f"{where} is an array of {count} strings")
        # Hot: 262,144 strings in a large vocabulary.
        data, at, size, unpack = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        shortest, seen = size, self.seen
        count_distinct = key == "tokenizer.ggml.tokens"
        for _ in range(count):
            if at + 8 > size:
                raise self.broken(f"it ends inside {where}")
            (length,) = unpack(data, at)
            at += 8 + length
            if length < shortest:
                shortest = length
            if count_distinct:
                seen.add(data[at - length : at])
        self.at = at
        self.skip(0, where)
        distinct = len(seen) if count_distinct else 0
        return GgufArray(kind, count, distinct, shortest if count else 0)

    def tensor_table(self, count: int, alignment: int) -> int:
        """Walk the tensor table; return a lower bound of the bytes that the data part needs."""
        end = 0
        for i in range(count):
            where = f"tensor {i + 1} of {count}"
            name = self.string(where).decode("utf-8", "replace")
            dimensions = self.number("<I", where)
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise self.broken(f"{where} ({name}) has {dimensions} dimensions")
            shape = tuple(self.number("<Q", where) for _ in range(dimensions))
            kind = self.number("<I", where)
            offset = self.number("<Q", where)
            block, block_bytes = _TENSOR_BLOCKS.get(kind, (1, 0))
            elements = math.prod(shape)
            if not 0 < elements < 2**63 or shape[0] % block:
                raise self.broken(f"{where} ({name}) has the shape {shape} and type {kind}")
            if offset % alignment:
                raise self.broken(f"{where} ({name}) begins at {offset}, not aligned")
            end = max(end, offset + elements // block * block_bytes)
            self.tensors.append(GgufTensor(name, shape, kind))
        return end

    def scalar(self, kind: int, where: str) -> str:
        try:
            return _SCALARS[kind]
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

    def broken(self, what: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self.path} is truncated or corrupt: {what}, and the file has {self.size} bytes "
            f"(at byte {self.at}). Download it again and compare its checksum."
        )


def _unescape(token: bytes) -> bytes:
    """Decode the escapes that rwkv vocabularies are written with, such as a backslash and x00."""
    try:
        return token.decode("utf-8").encode("latin-1").decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        return token


# ggml type -> (elements per block, bytes per block), from ggml.h; other types are not checked.
_TENSOR_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
}
