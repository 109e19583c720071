"""A GGUF file in parts that may be wrong each by itself, and changes to them."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_cffi.gguf.header_check import ARRAY, SCALARS, STRING
from llama_cffi.gguf.reader import read_gguf

__all__ = ["Edit", "Parts", "Tensor", "array", "change_bytes", "mutations", "text"]

# ggml type -> (elements, bytes) of a block; what can be multiplied, and what cannot.
TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 12: (256, 144), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    19: (256, 50), 20: (32, 18), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 39: (32, 17),
}  # fmt: skip
ODD_TYPES = (4, 5, 31, 33, 38, 40, 41, 99, 255, 2**31, 2**32 - 1)
ODD_NUMBERS = (0, 1, 2, 3, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1)
ODD_FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
ODD_NAMES = (
    b"", b"\0", b"x\0y", b"\xff\xfe", "ß".encode() * 30, b"a" * 63, b"a" * 64, b"a" * 65536, b"%s%n"
)  # fmt: skip


def text(value: bytes) -> bytes:
    """Return a string of the format."""
    return struct.pack("<Q", len(value)) + value


def array(kind: int, values: list[bytes], count: int | None = None) -> bytes:
    """Return an array of the format, of packed *values*."""
    return struct.pack("<IQ", kind, len(values) if count is None else count) + b"".join(values)


@dataclass
class Tensor:
    """An entry of the tensor table, with its data; *offset* is None where it belongs."""

    name: bytes
    shape: list[int]
    kind: int
    data: bytes
    offset: int | None = None


@dataclass
class Parts:
    """A file: (key, value type, packed value) and tensors; counts are None where they are true."""

    keys: list[tuple[bytes, int, bytes]]
    tensors: list[Tensor]
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32

    @classmethod
    def read(cls, path: Path) -> Parts:
        """Take a valid file apart."""
        data, file = path.read_bytes(), read_gguf(path)
        at = struct.calcsize("<4sIQQ")
        keys = []
        for _ in file.metadata:
            size = int.from_bytes(data[at : at + 8], "little")
            name = data[at + 8 : at + 8 + size]
            at += 8 + size
            (kind,) = struct.unpack_from("<I", data, at)
            start = at + 4
            at = _after(data, kind, start)
            keys.append((name, kind, data[start:at]))
        tensors = [
            Tensor(t.name.encode(), list(t.shape), t.kind, data[t.offset :][: t.size_bytes or 0])
            for t in file.tensors
        ]
        return cls(keys, tensors, alignment=file.alignment)

    def put(self, key: bytes, kind: int, value: bytes) -> None:
        """Set a key."""
        entry = (key, kind, value)
        names = [name for name, _, _ in self.keys]
        if key in names:
            self.keys[names.index(key)] = entry
        else:
            self.keys.append(entry)

    def packed(self) -> bytes:
        """Return the bytes of the file."""
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        head = struct.pack("<4sIQQ", b"GGUF", self.version, n_tensors, n_keys)
        for name, kind, value in self.keys:
            head += text(name) + struct.pack("<I", kind) + value
        body = b""
        for tensor in self.tensors:
            offset = len(body) if tensor.offset is None else tensor.offset
            body += tensor.data + bytes(-len(tensor.data) % self.alignment)
            shape = struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
            head += text(tensor.name) + struct.pack("<I", len(tensor.shape)) + shape
            head += struct.pack("<IQ", tensor.kind, offset)
        return head + bytes(-len(head) % self.alignment) + body


def _after(data: bytes, kind: int, at: int) -> int:
    """Return where a value ends."""
    if kind == STRING:
        return at + 8 + int.from_bytes(data[at : at + 8], "little")
    if kind != ARRAY:
        return at + struct.calcsize("<" + SCALARS[kind])
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind != STRING:
        return int(at + count * struct.calcsize("<" + SCALARS[kind]))
    for _ in range(count):
        at += 8 + int.from_bytes(data[at : at + 8], "little")
    return at


Edit = Callable[[Parts, random.Random], str]


def mutations(base: Parts, own: list[Edit], rng: random.Random) -> tuple[str, bytes]:
    """Return one mutation of a file: what was changed, and the bytes.

    Args:
        base: The valid file; it stays as it is.
        own: Changes of this kind of file, besides those of every GGUF.
        rng: Chooses.
    """
    tensors = [Tensor(t.name, list(t.shape), t.kind, t.data) for t in base.tensors]
    parts = Parts(list(base.keys), tensors, base.version, alignment=base.alignment)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        edit = rng.choice(own if own and rng.random() < 0.6 else EDITS)
        done.append(edit(parts, rng))
    data = parts.packed()
    if rng.random() < 0.15:
        what, data = change_bytes(data, rng)
        done.append(what)
    return "; ".join(done), data


def change_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Cut, lengthen or overwrite bytes."""
    changed = bytearray(data)
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 400))
    match rng.randrange(5):
        case 0:
            return f"cut at {at}", data[:at]
        case 1:
            return "bytes appended", data + rng.randbytes(rng.randrange(1, 100))
        case 2:
            changed[at] ^= 1 << rng.randrange(8)
            return f"a bit at {at}", bytes(changed)
        case 3:
            size = rng.choice((4, 8))
            number = rng.choice(ODD_NUMBERS) % 2 ** (8 * size)
            changed[at : at + size] = number.to_bytes(size, "little")
            return f"{number} at {at}", bytes(changed)
        case _:
            size = rng.randrange(1, 64)
            changed[at : at + size] = rng.randbytes(size)
            return f"{size} random bytes at {at}", bytes(changed)


def _key(parts: Parts, rng: random.Random) -> int:
    if not parts.keys:
        parts.put(b"general.architecture", STRING, text(b"llama"))
    return rng.randrange(len(parts.keys))


def _tensor(parts: Parts, rng: random.Random) -> Tensor:
    if not parts.tensors:
        parts.tensors.append(Tensor(b"x", [1], 0, bytes(4)))
    return rng.choice(parts.tensors)


def value(rng: random.Random, kind: int | None = None) -> tuple[int, bytes, object]:
    """Return a value type, a packed value of it, and the value."""
    kind = rng.choice((*SCALARS, STRING, ARRAY)) if kind is None else kind
    if kind == STRING:
        name = rng.choice(ODD_NAMES)
        return kind, text(name), name[:20]
    if kind == ARRAY:
        inner = rng.choice((*SCALARS, STRING, ARRAY, 13))
        if inner in (ARRAY, 13):
            return kind, array(inner, [bytes(12)]), "nested"
        count = rng.choice((0, 1, 5, 300))
        items = [value(rng, inner)[1] for _ in range(count)]
        wrong = rng.choice((None, None, None, *ODD_NUMBERS))
        return kind, array(inner, items, wrong), f"{count} of {inner}, said to be {wrong}"
    form = SCALARS[kind]
    if form in "fd":
        number = rng.choice(ODD_FLOATS)
        return kind, struct.pack("<" + form, number if form == "d" else number), number
    size = struct.calcsize(form)
    number = rng.choice(ODD_NUMBERS) % 2 ** (8 * size)
    return kind, number.to_bytes(size, "little"), number


def _change_key(parts: Parts, rng: random.Random) -> str:
    at = _key(parts, rng)
    name, old, _ = parts.keys[at]
    kind, packed, said = value(rng, old if rng.random() < 0.5 else None)
    parts.keys[at] = name, kind, packed
    return f"{name!r} is {said!r} of type {kind}, was {old}"


def _drop_key(parts: Parts, rng: random.Random) -> str:
    return f"no {parts.keys.pop(_key(parts, rng))[0]!r}"


def _double_key(parts: Parts, rng: random.Random) -> str:
    parts.keys.append(parts.keys[_key(parts, rng)])
    return f"{parts.keys[-1][0]!r} twice"


def _rename_key(parts: Parts, rng: random.Random) -> str:
    at = _key(parts, rng)
    name, *rest = parts.keys[at]
    new = rng.choice(ODD_NAMES)
    parts.keys[at] = new, *rest  # type: ignore[assignment]
    return f"{name!r} is called {new[:20]!r}"


def _retype_key(parts: Parts, rng: random.Random) -> str:
    at = _key(parts, rng)
    name, old, packed = parts.keys[at]
    kind = rng.choice((*SCALARS, STRING, ARRAY, 13, 255, 2**32 - 1))
    parts.keys[at] = name, kind, packed
    return f"{name!r} has the type {kind} and the bytes of {old}"


def _alignment(parts: Parts, rng: random.Random) -> str:
    number = rng.choice((0, 1, 8, 16, 31, 32, 33, 64, 128, 4096, 2**31, 2**32 - 1))
    parts.put(b"general.alignment", 4, struct.pack("<I", number))
    if 0 < number < 5000 and rng.random() < 0.7:
        parts.alignment = number
    return f"alignment {number}, really {parts.alignment}"


def _drop_tensor(parts: Parts, rng: random.Random) -> str:
    tensor = _tensor(parts, rng)
    parts.tensors.remove(tensor)
    return f"no {tensor.name!r}"


def _double_tensor(parts: Parts, rng: random.Random) -> str:
    tensor = _tensor(parts, rng)
    parts.tensors.append(tensor)
    return f"{tensor.name!r} twice"


def _rename_tensor(parts: Parts, rng: random.Random) -> str:
    tensor = _tensor(parts, rng)
    old, tensor.name = tensor.name, rng.choice(ODD_NAMES)
    return f"{old!r} is called {tensor.name[:20]!r}"


def _swap_names(parts: Parts, rng: random.Random) -> str:
    one, other = _tensor(parts, rng), _tensor(parts, rng)
    one.name, other.name = other.name, one.name
    return f"{one.name!r} and {other.name!r} swapped"


def resize(tensor: Tensor, rng: random.Random) -> None:
    """Give the data the size that shape and type ask for, where that is not absurd."""
    block, size = TYPES.get(tensor.kind, (1, 4))
    n_bytes = math.prod(tensor.shape) // block * size
    if 0 < n_bytes < 1 << 20:
        tensor.data = (tensor.data * (n_bytes // max(1, len(tensor.data)) + 1))[:n_bytes]


def _reshape(parts: Parts, rng: random.Random) -> str:
    tensor = _tensor(parts, rng)
    old = list(tensor.shape)
    match rng.randrange(6):
        case 0:
            tensor.shape.reverse()
        case 1:
            tensor.shape[rng.randrange(len(old))] = rng.choice(ODD_NUMBERS)
        case 2:
            tensor.shape.append(rng.choice((1, 2, 3)))
        case 3:
            tensor.shape = [math.prod(old)]
        case 4:
            at = rng.randrange(len(old))
            tensor.shape[at] = max(0, tensor.shape[at] + rng.choice((-1, 1, 32, -32)))
        case _:
            tensor.shape = [rng.choice((1, 2, 32, 64)) for _ in range(rng.randrange(6))]
    if rng.random() < 0.8:
        resize(tensor, rng)
    return f"{tensor.name[:40]!r} has the shape {tensor.shape}, was {old}"


def _retype(parts: Parts, rng: random.Random) -> str:
    tensor = _tensor(parts, rng)
    old, tensor.kind = tensor.kind, rng.choice((*TYPES, *TYPES, *ODD_TYPES))
    if rng.random() < 0.9:
        resize(tensor, rng)
    return f"{tensor.name[:40]!r} has the type {tensor.kind}, was {old}"


def _offset(parts: Parts, rng: random.Random) -> str:
    tensor = _tensor(parts, rng)
    tensor.offset = rng.choice((*ODD_NUMBERS, 32, 64, 4096, 2**64 - 32))
    return f"{tensor.name[:40]!r} begins at {tensor.offset}"


def _numbers(parts: Parts, rng: random.Random) -> str:
    tensor = _tensor(parts, rng)
    number = rng.choice(ODD_FLOATS)
    tensor.data = (struct.pack("<f", number) * (len(tensor.data) // 4 + 1))[: len(tensor.data)]
    return f"{tensor.name[:40]!r} holds {number}"


def _counts(parts: Parts, rng: random.Random) -> str:
    number = rng.choice((*ODD_NUMBERS, len(parts.keys) + 1, len(parts.tensors) + 1))
    if rng.random() < 0.5:
        parts.n_keys = number
        return f"{number} keys"
    parts.n_tensors = number
    return f"{number} tensors"


def _version(parts: Parts, rng: random.Random) -> str:
    parts.version = rng.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))
    return f"version {parts.version}"


def _nothing(parts: Parts, rng: random.Random) -> str:
    return "as it was"


EDITS: list[Edit] = [
    _change_key, _change_key, _drop_key, _double_key, _rename_key, _retype_key, _alignment,
    _drop_tensor, _double_tensor, _rename_tensor, _swap_names, _reshape, _reshape, _reshape,
    _retype, _retype, _offset, _numbers, _counts, _version, _nothing,
]  # fmt: skip


def write_cases(
    bases: dict[str, Parts], own: list[Edit], seed: int, count: int, folder: Path
) -> Iterator[tuple[str, Path]]:
    """Yield *count* mutations of the files; the name of a base is the suffix of its file's stem."""
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        name = rng.choice(list(bases))
        what, data = mutations(bases[name], own, rng)
        path = folder / f"{i}-{name}.gguf"
        path.write_bytes(data)
        yield f"{name}: {what}", path
