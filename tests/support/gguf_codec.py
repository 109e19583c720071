"""GGUF files as plain Python objects that may be wrong in any way, and their bytes."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

from gguf import GGML_QUANT_SIZES

__all__ = ["FLOATS", "INTEGERS", "TYPES", "Array", "Gguf", "Tensor", "Value", "decode"]

U32, FLOAT, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
INTEGERS, FLOATS = (0, 1, 2, 3, 4, 5, 10, 11), (6, 12)
# ggml type -> (elements, bytes) of a block.
TYPES: dict[int, tuple[int, int]] = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}


@dataclass
class Array:
    """An array of the metadata; *count* is what the file says, if it lies."""

    kind: int
    items: list[Any]
    count: int | None = None


@dataclass
class Value:
    """A metadata value of a GGUF value type."""

    kind: int
    value: Any


@dataclass
class Tensor:
    """A tensor with its data; *offset* is what the file says, if it lies."""

    name: bytes
    shape: list[int]
    kind: int
    data: bytes
    offset: int | None = None


@dataclass
class Gguf:
    """A file."""

    keys: dict[str, Value] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3

    def encode(self) -> bytes:
        """Return its bytes, whatever they say."""
        out = bytearray(
            b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        )
        for key, value in self.keys.items():
            _put_string(out, key)
            out += struct.pack("<I", value.kind)
            _put(out, value.kind, value.value)
        at, places = 0, []
        for tensor in self.tensors:
            _put_string(out, tensor.name)
            out += struct.pack("<I", len(tensor.shape))
            out += b"".join(_number("Q", n) for n in tensor.shape)
            out += _number("I", tensor.kind)
            out += _number("Q", at if tensor.offset is None else tensor.offset)
            places.append(at)
            at += -(-len(tensor.data) // 32) * 32
        out += bytes(-len(out) % 32)
        begin = len(out)
        for place, tensor in zip(places, self.tensors, strict=True):
            out += bytes(begin + place - len(out)) + tensor.data
        return bytes(out + bytes(-len(out) % 32))


def decode(data: bytes) -> Gguf:
    """Read a valid file."""
    at = 8

    def number(form: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return found

    def string() -> bytes:
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at]

    def value(kind: int) -> Any:
        if kind == STRING:
            return string()
        if kind == ARRAY:
            items = number("I")
            return Array(items, [value(items) for _ in range(number("Q"))])
        return number(SCALARS[kind])

    n_tensors, n_keys = number("Q"), number("Q")
    keys = {}
    for _ in range(n_keys):
        key = string().decode()
        kind = number("I")
        keys[key] = Value(kind, value(kind))
    table = []
    for _ in range(n_tensors):
        name = string()
        shape = [number("Q") for _ in range(number("I"))]
        table.append((name, shape, number("I"), number("Q")))
    begin = -(-at // 32) * 32
    tensors = []
    for name, shape, kind, offset in table:
        block, size = TYPES[kind]
        n_bytes = math.prod(shape) // block * size
        tensors.append(Tensor(name, shape, kind, data[begin + offset : begin + offset + n_bytes]))
    return Gguf(keys, tensors)


def _put_string(out: bytearray, text: str | bytes) -> None:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    out += struct.pack("<Q", len(raw)) + raw


def _put(out: bytearray, kind: int, value: Any) -> None:
    if kind == STRING:
        _put_string(out, value if isinstance(value, (str, bytes)) else str(value))
    elif kind == ARRAY:
        out += struct.pack("<I", value.kind)
        out += _number("Q", len(value.items) if value.count is None else value.count)
        for item in value.items:
            _put(out, value.kind, item)
    else:
        out += _number(SCALARS.get(kind, "I"), value)


def _number(form: str, value: Any) -> bytes:
    """Pack a number; one that does not fit is cut, like C does."""
    if form in "fd":
        return struct.pack("<" + form, float(value))
    size = struct.calcsize("<" + form)
    whole = int(value) if isinstance(value, int) or math.isfinite(value) else 0
    return (whole % 2 ** (8 * size)).to_bytes(size, "little")
