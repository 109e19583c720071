"""Saved states: of a context or a sequence, over several kinds of memory, then changed.

Most changes have a valid checksum, which only somebody who forges a state would write. Where C's
bytes hold several caches one after the other, only their beginning is forged: C trusts the number
of cells of each, and only that of the first can be checked (docs of `Context.load_state`).
"""

from __future__ import annotations

import functools
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_cffi import Context, LlamaError
from llama_cffi.binding.context.state import _PREFIX
from tools.fuzz import models
from tools.fuzz.gguf_edits import change_bytes

__all__ = ["cases", "run"]

Q8 = {"type_k": "q8_0", "type_v": "q8_0"}
# Name -> model, options of the context, sequence (None: all).
SETUPS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "whole": ("llama", {"kv_unified": True}, None),
    "separate": ("llama", {"kv_unified": False}, None),
    "one": ("llama", {"kv_unified": True}, 1),
    "quantized": ("llama", {**Q8, "flash_attn": True, "kv_unified": True}, None),
    "transposed": ("llama", {"flash_attn": False, "kv_unified": True}, 0),
    "gemma2": ("gemma2", {}, None),
    "mamba": ("mamba", {}, None),
    "mamba_one": ("mamba", {}, 0),
    "lfm2": ("lfm2", {}, None),
    "demo": ("demo", {"kv_unified": True}, 0),
}
SEVERAL_CACHES = {"separate", "gemma2", "lfm2"}
N_CTX, TOKENS = 256, list(range(1, 41))
NUMBERS = (
    0,
    1,
    2,
    39,
    40,
    41,
    256,
    257,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
)


def cases(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield *count* states, most of them damaged."""
    valid = _valid()
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        name = rng.choice(list(valid))
        what, data = _changed(valid, name, rng)
        path = folder / f"{i}-{name}.state"
        path.write_bytes(data)
        yield f"{name}: {what}", path


def run(path: Path) -> str:
    """Load a state over another, then decode, shift, remove and save."""
    _, _, seq_id = SETUPS[name := path.stem.split("-")[1]]
    at = seq_id or 0
    try:
        with _context(name) as context:
            models.decode(context, [7, 8, 9], 0, at)
            outcome = "loaded"
            try:
                context.load_state_file(path, seq_id=seq_id)
            except LlamaError as error:
                outcome = type(error).__name__
            memory = context.memory
            for _ in range(2):
                models.decode(context, [5], memory.seq_pos_max(at) + 1, at)
            memory.seq_cp(at, 1 - at)
            models.decode(context, [6], memory.seq_pos_max(1 - at) + 1, 1 - at)
            context.load_state(context.save_state())
            if not memory.seq_rm(at, 2, 5):
                memory.clear()
            models.decode(context, TOKENS, memory.seq_pos_max(at) + 1, at)
    except LlamaError as error:
        return f"{outcome}, then {type(error).__name__}"
    return outcome


def _context(name: str) -> Context:
    model, options, _ = SETUPS[name]
    return Context(models.model(model), n_ctx=N_CTX, n_seq_max=2, n_threads=1, **options)


@functools.cache
def _valid() -> dict[str, bytes]:
    """Return the state of each setup that this build has."""
    states = {}
    for name, (_, _, seq_id) in SETUPS.items():
        try:
            context = _context(name)
        except LlamaError:
            continue
        with context:
            models.decode(context, TOKENS, 0, seq_id or 0)
            if seq_id is None:
                models.decode(context, TOKENS[:9], 0, 1)
            states[name] = context.save_state(TOKENS, seq_id=seq_id)
    return states


def _changed(valid: dict[str, bytes], name: str, rng: random.Random) -> tuple[str, bytes]:
    data = valid[name]
    match rng.choice(("bytes", "header", "header", "parts", "parts", "parts", "other", "none")):
        case "bytes":
            return change_bytes(data, rng)
        case "header":
            header, parts = _split(data)
            what = _change_header(header, rng)
            return what, _joined(header, parts)
        case "parts":
            header, parts = _split(data)
            change = _change_beginning if name in SEVERAL_CACHES else _change_parts
            what = "; ".join(change(header, parts, rng) for _ in range(rng.choice((1, 1, 2))))
            return what, _joined(header, parts)
        case "other":
            other = rng.choice(list(valid))
            header, parts = _split(data)
            theirs, foreign = _split(valid[other])
            if rng.random() < 0.5 and foreign and parts:
                parts[0] = foreign[0]
                header["parts"][0][1:] = [theirs["parts"][0][1], len(foreign[0])]
                return f"with a part of {other}", _joined(header, parts)
            return f"{other}", valid[other]
        case _:
            return "as it was", data


def _split(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    n = _PREFIX.unpack_from(data)[3]
    header = json.loads(data[_PREFIX.size : _PREFIX.size + n])
    at, parts = _PREFIX.size + n, []
    for _, _, size in header["parts"]:
        parts.append(data[at : at + size])
        at += size
    return header, parts


def _joined(header: object, parts: list[bytes]) -> bytes:
    """Return the bytes, with a valid checksum."""
    text = json.dumps(header).encode()
    body = text + b"".join(parts)
    return _PREFIX.pack(b"llmcffi\0", 1, zlib.crc32(body), len(text)) + body


def _change_header(header: dict[str, Any], rng: random.Random) -> str:
    odd: tuple[Any, ...] = (
        None,
        True,
        0,
        -1,
        0.5,
        2**31,
        2**64,
        10**30,
        "",
        "x",
        [],
        {},
        [[]],
        [[0]],
        [0, 1, 2],
    )
    if header["parts"] and rng.random() < 0.5:
        i, j = rng.randrange(len(header["parts"])), rng.randrange(3)
        value = rng.choice((*NUMBERS, *odd))
        header["parts"][i][j] = value
        return f"parts[{i}][{j}] = {value}"
    key = rng.choice([*header])
    match rng.randrange(5):
        case 0:
            del header[key]
            return f"no {key}"
        case 1:
            header["parts"].append(rng.choice(([0, 0, 0], [1, 5, 0], [0, 39, 0], [7, 1, 0])))
            return "one part more"
        case 2:
            header["tokens"] = [rng.choice((0, 258, 259, 2**31, 2**64)) for _ in range(5)]
            return "odd tokens"
        case _:
            header[key] = value = rng.choice(odd)
            return f"{key} = {value!r}"


def _change_beginning(header: dict[str, Any], parts: list[bytes], rng: random.Random) -> str:
    """Change the first numbers, or cut before the first cache ends."""
    i = rng.randrange(len(parts))
    part = bytearray(parts[i])
    if rng.random() < 0.3:
        parts[i] = bytes(part[: rng.randrange(len(part) // 3)])
        header["parts"][i][2] = len(parts[i])
        return f"part {i}: cut at {len(parts[i])}"
    at, number = 4 * rng.randrange(5), rng.choice(NUMBERS) % 2**32
    part[at : at + 4] = number.to_bytes(4, "little")
    parts[i] = bytes(part)
    return f"part {i}: {number} at {at}"


def _change_parts(header: dict[str, Any], parts: list[bytes], rng: random.Random) -> str:
    """Change C's bytes of a sequence; the header goes along with their size."""
    if not parts:
        return "no parts"
    i = rng.randrange(len(parts))
    part = bytearray(parts[i] or bytes(16))
    match rng.randrange(8):
        case 0:
            what, changed = change_bytes(bytes(part), rng)
        case 1:
            cut = rng.choice((0, 1, 4, 8, 12, len(part) - 1, rng.randrange(len(part))))
            what, changed = f"cut at {cut}", bytes(part[:cut])
        case 2 | 3 | 4 | 5:  # mostly where C keeps its counts
            size = rng.choice((4, 4, 8))
            places = (0, len(part), 4 * 8, 4 * 40 * 3)
            at = 4 * rng.randrange(max(1, min(len(part) - 8, rng.choice(places[1:])) // 4))
            number = rng.choice(NUMBERS) % 2 ** (8 * size)
            part[at : at + size] = number.to_bytes(size, "little")
            what, changed = f"{number} at {at} of {len(part)}", bytes(part)
        case 6:
            (found,) = struct.unpack_from("<I", part)
            number = found + rng.choice((-1, 1, 2, 100))
            part[:4] = (number % 2**32).to_bytes(4, "little")
            what, changed = f"{number} cells instead of {found}", bytes(part)
        case _:
            size = rng.randrange(1, 300)
            at = rng.randrange(len(part))
            changed = bytes(part[:at]) + rng.randbytes(size) + bytes(part[at:])
            what = f"{size} bytes put in at {at}"
    parts[i] = changed
    header["parts"][i][2] = len(changed)
    return f"part {i}: {what}"
