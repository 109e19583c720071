"""Check a GGUF file's structure before C sees it.

Old builds of llama.cpp abort or read past the end on damaged files. This walks the header of the
file (metadata keys, tensor table) through a memory map, without building Python objects for
arrays, and proves that every part lies inside the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelLoadError

__all__ = ["GgufSummary", "check_gguf"]

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_KEY_BYTES = 65535


@dataclass(frozen=True)
class GgufSummary:
    """What the header says.

    Attributes:
        version: GGUF format version.
        architecture: `general.architecture`, empty when absent.
        n_tensors: Number of tensors in this file.
        n_keys: Number of metadata keys.
    """

    version: int
    architecture: str
    n_tensors: int
    n_keys: int


def check_gguf(path: Path) -> GgufSummary:
    """Prove that *path* is a whole GGUF file.

    Raises:
        ModelLoadError: It is missing, a folder, empty, no GGUF, truncated or inconsistent.
    """
    if path.is_dir():
        raise ModelLoadError(f"{path} is a folder, not a GGUF file; name the .gguf file inside it")
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelLoadError(f"{path} is empty (0 bytes); download it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data, size).check()
    except FileNotFoundError:
        raise ModelLoadError(f"no model file at {path}") from None
    except OSError as e:
        raise ModelLoadError(f"cannot read {path}: {e}") from e


class _Walk:
    """A cursor over the header; every step is checked against the file's size."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

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
        architecture, alignment = self.keys(n_keys)
        last_end = self.tensors(n_tensors)
        data_start = -(-self.at // alignment) * alignment
        if n_tensors and data_start + last_end > self.size:
            raise self.broken(f"its tensors need {data_start + last_end} bytes")
        return GgufSummary(version, architecture, n_tensors, n_keys)

    def keys(self, count: int) -> tuple[str, int]:
        architecture, alignment = "", 32
        for i in range(count):
            where = f"key {i + 1} of {count}"
            key = self.string(where)
            kind = self.number("<I", where)
            if kind == _STRING:
                value = self.string(where)
                if key == b"general.architecture":
                    architecture = value.decode("utf-8", "replace")
            elif key == b"general.alignment" and kind == 4:
                alignment = self.number("<I", where)
                if alignment < 1 or alignment & (alignment - 1):
                    raise self.broken(f"general.alignment is {alignment}, not a power of two")
            elif kind == _ARRAY:
                self.array(where)
            else:
                self.skip(self.scalar_bytes(kind, where), where)
        return architecture, alignment

    def array(self, where: str) -> None:
        kind = self.number("<I", where)
        count = self.number("<Q", where)
        if kind != _STRING:
            self.skip(self.scalar_bytes(kind, where) * count, where)
            return
        if count * 8 > self.size - self.at:
            raise self.broken(f"{where} is an array of {count} strings")
        # Hot: 262,144 strings in a large vocabulary.
        data, at, size, unpack = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise self.broken(f"it ends inside {where}")
            at += 8 + unpack(data, at)[0]
        self.at = at
        self.skip(0, where)

    def tensors(self, count: int) -> int:
        """Walk the tensor table; return a lower bound of the bytes that the data part needs."""
        end = 0
        for i in range(count):
            where = f"tensor {i + 1} of {count}"
            name = self.string(where).decode("utf-8", "replace")
            dimensions = self.number("<I", where)
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                raise self.broken(f"{where} ({name}) has {dimensions} dimensions")
            elements = 1
            for _ in range(dimensions):
                elements *= self.number("<Q", where)
            kind = self.number("<I", where)
            offset = self.number("<Q", where)
            end = max(end, offset + self.tensor_bytes(kind, elements))
        return end

    @staticmethod
    def tensor_bytes(kind: int, elements: int) -> int:
        block, block_bytes = _TENSOR_BLOCKS.get(kind, (1, 0))
        return elements // block * block_bytes

    def scalar_bytes(self, kind: int, where: str) -> int:
        try:
            return _SCALAR_BYTES[kind]
        except KeyError:
            raise self.broken(f"{where} has the unknown value type {kind}") from None

    def number(self, form: str, where: str) -> int:
        size = struct.calcsize(form)
        if self.at + size > self.size:
            raise self.broken(f"it ends inside {where}")
        value: int = struct.unpack_from(form, self.data, self.at)[0]
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
