"""Save the memory of a context, all of it or one sequence, and load it again.

C checks little of what it reads, and some builds die of it, so a state carries a header of our
own: what it was made with, and a checksum over everything. The checksum is a CRC-32, several GB/s:
it finds damage before C sees it. It does not find forgery, and C believes the counts in its bytes
and dies of some: load only states that you made, as with pickles.

Format: magic, version, CRC-32 of what follows, length of the header; the header as JSON; the bytes
of C for each sequence that is not empty.

A whole context is saved sequence by sequence too. C's own format of a context carries outputs that
old builds abort on after a failed decode, and b6673 restores only the last of several caches.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...errors import LlamaError, ValidationError
from ...validation import integer
from .. import compat

if TYPE_CHECKING:
    from .context import Context

__all__ = ["load", "load_file", "save", "save_file"]

_MAGIC, _VERSION = b"llmcffi\0", 1
_START = struct.Struct("<8sIIQ")  # magic, version, CRC-32, bytes of the header


def save(context: Context, tokens: Sequence[int], seq_id: int | None) -> bytes:
    """Return the state of *context*, or of one sequence. See `Context.save_state`."""
    out = io.BytesIO()
    _write(context, out, tokens, seq_id)
    return out.getvalue()


def save_file(
    context: Context, path: str | os.PathLike[str], tokens: Sequence[int], seq_id: int | None
) -> None:
    """Write the state to a file, one sequence at a time; the file is whole or not there."""
    path = Path(path).expanduser()
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(number, "wb") as file:
            _write(context, file, tokens, seq_id)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def load(context: Context, data: Any, seq_id: int | None) -> list[int]:
    """Replace the memory of *context*, or of one sequence. See `Context.load_state`."""
    header, payload = _parse(data)
    _check_fits(context, header, seq_id)
    memory = context.memory

    def forget() -> None:
        memory.clear() if seq_id is None else memory.seq_rm(seq_id)

    forget()
    try:
        for saved_id, last, part in _parts(header, payload):
            _set(context, saved_id if seq_id is None else seq_id, last, part)
    except BaseException:
        forget()
        raise
    return list(header["tokens"])


def load_file(context: Context, path: str | os.PathLike[str], seq_id: int | None) -> list[int]:
    """Load a state that `save_file` wrote; it is read into memory once."""
    return load(context, Path(path).expanduser().read_bytes(), seq_id)


def _write(context: Context, out: BinaryIO, tokens: Sequence[int], seq_id: int | None) -> None:
    _check_idle(context)
    tokens = [integer("token", t, 0, context.n_vocab - 1) for t in tokens]
    lib, memory = context.library.lib, context.memory
    sequences = range(context.n_seq_max) if seq_id is None else (seq_id,)
    last = {s: p for s in sequences if (p := memory.seq_pos_max(s)) >= 0}
    sizes = {s: int(lib.llama_state_seq_get_size(context.ptr, s)) for s in last}
    header = {
        **_identity(context),
        "n_ctx": context.n_ctx,
        "whole": seq_id is None,
        "parts": [[s, last[s], sizes[s]] for s in last],
        "tokens": tokens,
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    out.write(_START.pack(_MAGIC, _VERSION, 0, len(text)))
    out.write(text)
    crc = zlib.crc32(text)
    for s, size in sizes.items():
        part = _get(context, s, size)
        crc = zlib.crc32(part, crc)
        out.write(part)
    out.seek(0)
    out.write(_START.pack(_MAGIC, _VERSION, crc, len(text)))


def _get(context: Context, seq_id: int, size: int) -> bytearray:
    """Return C's bytes of one sequence. C: llama_state_seq_get_data."""
    library = context.library
    part = bytearray(size)
    mark = library.logs.count
    buffer = library.ffi.from_buffer("uint8_t[]", part, require_writable=True)
    ptr, held = context.ptr, context.hold()
    written = library.lib.llama_state_seq_get_data(ptr, buffer, size, seq_id)
    del held
    if written != size:
        why = "; ".join(library.logs.since(mark)) or "llama.cpp gave no reason"
        raise LlamaError(
            f"sequence {seq_id} was not saved: {written} bytes instead of {size}: {why}"
        )
    return part


def _set(context: Context, seq_id: int, last: int, part: memoryview) -> None:
    """Give C the bytes of one sequence, and check what it made of them.

    C: llama_state_seq_set_data
    """
    library = context.library
    mark = library.logs.count
    buffer = library.ffi.from_buffer("uint8_t[]", part)
    ptr, held = context.ptr, context.hold()
    read = library.lib.llama_state_seq_set_data(ptr, buffer, len(part), seq_id)
    del held
    found = context.memory.seq_pos_max(seq_id)
    if read != len(part) or found != last:
        why = "; ".join(library.logs.since(mark)) or "llama.cpp gave no reason"
        raise LlamaError(
            f"the state of sequence {seq_id} was not loaded ({read} of {len(part)} bytes, last "
            f"position {found} instead of {last}), what was to be replaced is empty now: {why}. "
            "Make the context as large as the saved one, with the same cache, or decode again."
        )


def _identity(context: Context) -> dict[str, Any]:
    """Return what a state depends on, in words for the error message."""
    library, model = context.library, context.model
    layout = compat.cache_layout(library, context.params)
    # C writes one part for each cache, also of a single sequence.
    layout["caches"] = "1" if context.kv_unified else str(context.n_seq_max)
    if library.lib.llama_model_is_recurrent(model.ptr):
        layout = {}  # neither keys nor values
    return {
        "build": library.build.tag or zlib.crc32(library.path.read_bytes()),
        "abi": library.abi.name,
        "model": f"{model.gguf.architecture} {model.fingerprint}",
        **layout,
    }


def _check_idle(context: Context) -> None:
    """Refuse while keys wait to be rotated or copied: C would save and load them as they are."""
    if context.update_waits:
        raise ValidationError(
            "positions were shifted, divided or copied and the data follows with the next decode; "
            "decode a token before the state is saved or loaded"
        )


def _check_fits(context: Context, header: dict[str, Any], seq_id: int | None) -> None:
    """Refuse a state that this context cannot take over.

    Raises:
        ValidationError: With both values.
    """
    _check_idle(context)
    for name, ours in _identity(context).items():
        theirs = header.get(name)
        if theirs != ours and not (name == "flash_attn" and "auto" in (theirs, ours)):
            raise ValidationError(f"the state was saved with {name} {theirs}; this is {ours}")
    if header["whole"] and seq_id is not None:
        raise ValidationError("this is the state of a whole context; load it without seq_id")
    if not header["whole"] and seq_id is None:
        raise ValidationError("this is the state of one sequence; name the one to replace: seq_id")
    if seq_id is not None:
        context.memory.seq_pos_max(seq_id)  # refuses what does not exist
    else:
        used = 1 + max((part[0] for part in header["parts"]), default=-1)
        if used > context.n_seq_max:
            raise ValidationError(
                f"the state uses {used} sequences; the context has n_seq_max={context.n_seq_max}"
            )


def _parse(data: Any) -> tuple[dict[str, Any], memoryview]:
    """Return header and payload of an undamaged state.

    Raises:
        ValidationError: It is no state, of another version of the format, cut off or damaged.
    """
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise ValidationError(f"a state is bytes, not {type(data).__name__}") from None
    if len(view) < _START.size or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise ValidationError(f"these {len(view)} bytes are no state saved by llama_cffi")
    _, version, crc, n_header = _START.unpack_from(view)
    if version != _VERSION:
        raise ValidationError(f"the state has format {version}; this llama_cffi reads {_VERSION}")
    found = zlib.crc32(view[_START.size :])
    if found != crc:
        raise ValidationError(
            f"the state is damaged or cut off: CRC-32 {found:08x} instead of {crc:08x}"
        )
    payload = view[_START.size + n_header :]
    try:
        header = json.loads(bytes(view[_START.size : _START.size + n_header]))
        numbers = [n for part in header["parts"] for n in part] + header["tokens"]
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a number is none")
        if sum(size for _, _, size in header["parts"]) != len(payload):
            raise ValueError("the sizes are not those of the state")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValidationError(f"the header of the state is not ours: {e}") from e
    return header, payload


def _parts(header: dict[str, Any], payload: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    start = 0
    for seq_id, last, size in header["parts"]:
        yield seq_id, last, payload[start : start + size]
        start += size
