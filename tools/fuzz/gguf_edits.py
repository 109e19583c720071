"""Changes to any GGUF file, and files with such changes; see `gguf_codec` for their parts."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path

from tools.fuzz.gguf_codec import ARRAY, SCALARS, STRING, TYPES, Array, Gguf, Tensor, Value

__all__ = ["Edit", "change_bytes", "resize", "write_cases"]

Edit = Callable[[random.Random, Gguf], str]

_ODD_TYPES = (4, 5, 31, 33, 38, 99, 255, 2**31, 2**32 - 1)
_NUMBERS = (0, 1, 2, 3, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1)
_REALS = (0.0, -0.0, -1.0, 1e-45, 1e38, -1e38, math.inf, -math.inf, math.nan)
_NAMES = (
    b"", b"\0", b"x\0y", b"\xff\xfe", "\u00df".encode() * 30, b"a" * 63, b"a" * 64, b"a" * 65536,
    b"%s%n",
)  # fmt: skip


def write_cases(
    bases: Mapping[str, Gguf], own: Sequence[Edit], seed: int, count: int, folder: Path
) -> Iterator[tuple[str, Path]]:
    """Yield *count* changed files, of a description and a path each.

    Args:
        bases: The valid files; the name of one follows the number in a file's name.
        own: Changes for this kind of file, besides those to any GGUF.
        seed: Decides everything.
        count: Number of files.
        folder: Where they are written.
    """
    names = list(bases)
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        name = rng.choice(names)
        what, data = _changed(bases[name], own, rng)
        path = folder / f"{i}-{name}.gguf"
        path.write_bytes(data)
        yield f"{name}: {what}", path


def _changed(base: Gguf, own: Sequence[Edit], rng: random.Random) -> tuple[str, bytes]:
    tensors = [Tensor(t.name, list(t.shape), t.kind, t.data) for t in base.tensors]
    gguf = Gguf({key: copy(value) for key, value in base.keys.items()}, tensors)
    done = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        edit = rng.choice(own if rng.random() < 0.75 else EDITS)
        done.append(edit(rng, gguf))
    data = gguf.encode()
    if rng.random() < 0.1:
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
            number = rng.choice(_NUMBERS) % 2 ** (8 * size)
            changed[at : at + size] = number.to_bytes(size, "little")
            return f"{number} at {at}", bytes(changed)
        case _:
            size = rng.randrange(1, 64)
            changed[at : at + size] = rng.randbytes(size)
            return f"{size} random bytes at {at}", bytes(changed)


def _key(rng: random.Random, gguf: Gguf) -> str:
    return rng.choice([*gguf.keys] or ["general.name"])


def _tensor(rng: random.Random, gguf: Gguf) -> Tensor:
    if not gguf.tensors:
        gguf.tensors.append(Tensor(b"x", [1], 0, bytes(4)))
    return rng.choice(gguf.tensors)


def _value(rng: random.Random, kind: int) -> Value:
    if kind == STRING:
        return Value(kind, rng.choice(_NAMES))
    if kind == ARRAY:
        inner = rng.choice((*SCALARS, STRING))
        items = [_value(rng, inner).value for _ in range(rng.choice((0, 1, 5, 300)))]
        return Value(kind, Array(inner, items, rng.choice((None, None, None, *_NUMBERS))))
    return Value(kind, rng.choice(_REALS if SCALARS.get(kind, "B") in "fd" else _NUMBERS))


def _change_key(rng: random.Random, gguf: Gguf) -> str:
    key = _key(rng, gguf)
    kind = gguf.keys[key].kind if key in gguf.keys and rng.random() < 0.5 else None
    value = _value(rng, rng.choice((*SCALARS, STRING, ARRAY, 13, 255)) if kind is None else kind)
    gguf.keys[key] = value
    return f"{key} is {str(value.value)[:60]} of type {value.kind}"


def _drop_key(rng: random.Random, gguf: Gguf) -> str:
    key = _key(rng, gguf)
    gguf.keys.pop(key, None)
    return f"no {key}"


def _rename_key(rng: random.Random, gguf: Gguf) -> str:
    key, new = _key(rng, gguf), rng.choice(_NAMES).decode("utf-8", "surrogateescape")
    gguf.keys[new] = gguf.keys.pop(key, Value(STRING, "x"))
    return f"{key} is called {new[:20]!r}"


def _drop_tensor(rng: random.Random, gguf: Gguf) -> str:
    tensor = _tensor(rng, gguf)
    gguf.tensors.remove(tensor)
    return f"no {tensor.name!r}"


def _double_tensor(rng: random.Random, gguf: Gguf) -> str:
    tensor = _tensor(rng, gguf)
    gguf.tensors.append(tensor)
    return f"{tensor.name!r} twice"


def _rename_tensor(rng: random.Random, gguf: Gguf) -> str:
    tensor = _tensor(rng, gguf)
    old, tensor.name = tensor.name, rng.choice(_NAMES)
    return f"{old!r} is called {tensor.name[:20]!r}"


def _swap_names(rng: random.Random, gguf: Gguf) -> str:
    one, other = _tensor(rng, gguf), _tensor(rng, gguf)
    one.name, other.name = other.name, one.name
    return f"{one.name!r} and {other.name!r} swapped"


def resize(tensor: Tensor) -> None:
    """Give the data the size that shape and type ask for, where that is not absurd."""
    block, size = TYPES.get(tensor.kind, (1, 4))
    n_bytes = math.prod(tensor.shape) // block * size
    if 0 < n_bytes < 1 << 20:
        tensor.data = (tensor.data * (n_bytes // max(1, len(tensor.data)) + 1))[:n_bytes]


def _reshape(rng: random.Random, gguf: Gguf) -> str:
    tensor = _tensor(rng, gguf)
    old = list(tensor.shape)
    match rng.randrange(6):
        case 0:
            tensor.shape.reverse()
        case 1:
            tensor.shape[rng.randrange(len(old))] = rng.choice(_NUMBERS)
        case 2:
            tensor.shape.append(rng.choice((1, 2, 3)))
        case 3:
            tensor.shape = [math.prod(old)]
        case 4:
            at = rng.randrange(len(old))
            tensor.shape[at] = max(0, tensor.shape[at] + rng.choice((-1, 1, 32, -32)))
        case _:
            tensor.shape = [rng.choice((1, 2, 32, 64)) for _ in range(rng.randrange(1, 6))]
    if rng.random() < 0.8:
        resize(tensor)
    return f"{tensor.name[:40]!r} has the shape {tensor.shape}, was {old}"


def _retype(rng: random.Random, gguf: Gguf) -> str:
    tensor = _tensor(rng, gguf)
    old, tensor.kind = tensor.kind, rng.choice((*TYPES, *_ODD_TYPES))
    if rng.random() < 0.9:
        resize(tensor)
    return f"{tensor.name[:40]!r} has the type {tensor.kind}, was {old}"


def _offset(rng: random.Random, gguf: Gguf) -> str:
    tensor = _tensor(rng, gguf)
    tensor.offset = rng.choice((*_NUMBERS, 32, 64, 4096, 2**64 - 32))
    return f"{tensor.name[:40]!r} begins at {tensor.offset}"


def _numbers(rng: random.Random, gguf: Gguf) -> str:
    tensor, number = _tensor(rng, gguf), rng.choice(_REALS)
    tensor.data = (struct.pack("<f", number) * (len(tensor.data) // 4 + 1))[: len(tensor.data)]
    return f"{tensor.name[:40]!r} holds {number}"


def _version(rng: random.Random, gguf: Gguf) -> str:
    gguf.version = rng.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))
    return f"version {gguf.version}"


def _nothing(rng: random.Random, gguf: Gguf) -> str:
    return "as it was"


EDITS: list[Edit] = [
    _change_key, _change_key, _drop_key, _rename_key, _drop_tensor, _double_tensor, _rename_tensor,
    _swap_names, _reshape, _reshape, _reshape, _retype, _retype, _offset, _numbers, _version,
    _nothing,
]  # fmt: skip
