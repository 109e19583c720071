"""Save the memory of a context, or of one sequence, and load it again.

C checks little of what it reads, and some builds crash on it. So a state has a header of our own:
what it was saved with, and a CRC-32 over everything, which finds damage before C sees it (at
several GB/s) but not forgery. C trusts the numbers of cells in its bytes: the first is checked
here, those of further caches (sliding windows, hybrids, separate sequences) stand where only C
knows. Load only states that you made, as with pickles.

Format: magic, version, CRC-32 of what follows, length of the header; the header as JSON; C's
bytes of each sequence that is not empty.

A whole context is also saved sequence by sequence. C's own format for a context includes outputs,
which old builds abort on after a failed decode, and b6673 restores only the last of several
caches.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...atomic_files import replacing
from ...errors import LlamaError, ValidationError
from ...validation import check_int
from .. import compat

if TYPE_CHECKING:
    from .context import Context

__all__ = ["key", "load", "load_file", "save", "save_file"]

_MAGIC, _VERSION = b"llmcffi\0", 1
_LEAST_MAGIC = 2**24  # more than any number of cells or streams
_MOST = 2**63 - 1
_MEDIA_NUMBERS = 4  # that stand for a picture or sound; see `generation.prompt.Prompt.packed`
_WORDS = 1024  # of C's bytes: more than a context has streams
_PREFIX = struct.Struct("<8sIIQ")  # magic, version, CRC-32, bytes of the header


def key(context: Context) -> str:
    """Return the key of what a state depends on. See `Context.state_key`."""
    facts = {
        **_identity(context),
        **compat.position_params(context.library, context.params),
        "metadata": sorted(context.model.gguf.values.items()),
        "n_ctx": (context.n_ctx, context.n_seq_max),  # LongRoPE depends on them
    }
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def save(context: Context, tokens: Sequence[int], seq_id: int | None) -> bytes:
    """Return the state of *context*, or of one sequence. See `Context.save_state`."""
    out = io.BytesIO()
    _write(context, out, tokens, seq_id)
    return out.getvalue()


def save_file(
    context: Context, path: str | os.PathLike[str], tokens: Sequence[int], seq_id: int | None
) -> None:
    """Write the state to a file, one sequence at a time, and move it into place at the end."""
    path = Path(path).expanduser()
    with replacing(path) as file:
        _write(context, file, tokens, seq_id)


def load(context: Context, data: Any, seq_id: int | None) -> list[int]:
    """Replace the memory of *context*, or of one sequence. See `Context.load_state`."""
    header, payload = _parse(data)
    _check_fits(context, header, seq_id)
    memory = context.memory

    def clear() -> None:
        memory.clear() if seq_id is None else memory.seq_rm(seq_id)

    clear()
    try:
        for saved_id, last, part in _parts(header, payload):
            target = saved_id if seq_id is None else seq_id
            _check_cells(context, target, part)
            _set(context, target, last, part)
    except BaseException:
        clear()
        raise
    return list(header["tokens"])


def load_file(context: Context, path: str | os.PathLike[str], seq_id: int | None) -> list[int]:
    """Load a state that `save_file` wrote; the file is read into memory."""
    return load(context, Path(path).expanduser().read_bytes(), seq_id)


def _write(context: Context, out: BinaryIO, tokens: Sequence[int], seq_id: int | None) -> None:
    _check_no_pending_update(context, seq_id)
    tokens = _checked(tokens, context.n_vocab)
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
    out.write(_PREFIX.pack(_MAGIC, _VERSION, 0, len(text)))
    out.write(text)
    crc = zlib.crc32(text)
    for s, size in sizes.items():
        part = _get(context, s, size)
        crc = zlib.crc32(part, crc)
        out.write(part)
    out.seek(0)
    out.write(_PREFIX.pack(_MAGIC, _VERSION, crc, len(text)))


def _checked(tokens: Sequence[int], n_vocab: int) -> list[int]:
    """Return what a header may have as tokens: ids, and media, of four negative numbers each.

    Raises:
        ValidationError: With the one that is wrong.
    """
    found = [check_int("token", t, -_MOST, n_vocab - 1) for t in tokens]
    for is_media, run in groupby(found, lambda token: token < 0):
        if is_media and len(wrong := [*run]) % _MEDIA_NUMBERS:
            check_int("token", wrong[-1], 0, n_vocab - 1)
    return found


def _get(context: Context, seq_id: int, size: int) -> bytearray:
    """Return C's bytes of one sequence. C: llama_state_seq_get_data."""
    library = context.library
    part = bytearray(size)
    mark = library.logs.count
    buffer = library.ffi.from_buffer("uint8_t[]", part, require_writable=True)
    ptr, held = context.ptr, context.hold()
    try:
        written = library.lib.llama_state_seq_get_data(ptr, buffer, size, seq_id)
    finally:
        del held
    if written != size:
        reason = "; ".join(library.logs.since(mark)) or "llama.cpp gave no reason"
        raise LlamaError(
            f"sequence {seq_id} was not saved: {written} bytes instead of {size}: {reason}"
        )
    return part


def _set(context: Context, seq_id: int, last: int, part: memoryview) -> None:
    """Give C the bytes of one sequence, and check the result. C: llama_state_seq_set_data."""
    library = context.library
    mark = library.logs.count
    buffer = library.ffi.from_buffer("uint8_t[]", part)
    ptr, held = context.ptr, context.hold()
    try:
        read = library.lib.llama_state_seq_set_data(ptr, buffer, len(part), seq_id)
    finally:
        del held
    found = context.memory.seq_pos_max(seq_id)
    if read != len(part) or found != last:
        reason = "; ".join(library.logs.since(mark)) or "llama.cpp gave no reason"
        raise LlamaError(
            f"the state of sequence {seq_id} was not loaded ({read} of {len(part)} bytes, last "
            f"position {found} instead of {last}), and what it was to replace is empty now: "
            f"{reason}. Use a context as large as the saved one and with the same type of cache, "
            "or decode the tokens again."
        )


def _check_cells(context: Context, seq_id: int, part: memoryview) -> None:
    """Refuse a part with a number of cells that C would abort on, or allocate far too much for.

    What stands before the number differs between builds and memories. C writes the same for a
    sequence that is empty: sometimes a magic number and the sequence, then the number of streams
    with the cells of each, or just the number of cells.

    Raises:
        LlamaError: With the number.
    """
    size = int(context.library.lib.llama_state_seq_get_size(context.ptr, seq_id))
    empty, words = _words(_get(context, seq_id, size)), _words(part)
    at = 2 if empty and empty[0] >= _LEAST_MAGIC else 0
    n_streams = empty[at] if at < len(empty) else 0
    found = words[at + 1 : at + 1 + n_streams] if n_streams else words[at : at + 1]
    cells, most = sum(found), 1 if context.model.is_recurrent else context.n_ctx
    fits = words[at : at + 1] == [n_streams] if n_streams else True
    if not (fits and 1 <= cells <= most and words[: at // 2] == empty[: at // 2]):  # the magic
        raise LlamaError(
            f"the state of sequence {seq_id} has {cells} cells in {len(part)} bytes, which this "
            f"context of up to {most} does not write; what it was to replace is empty now"
        )


def _words(data: bytes | bytearray | memoryview) -> list[int]:
    """Return the first numbers of C's bytes."""
    head = bytes(data[: 4 * _WORDS])
    return list(struct.unpack(f"<{len(head) // 4}I", head[: len(head) // 4 * 4]))


def _identity(context: Context) -> dict[str, Any]:
    """Return what a state depends on, by the names that the error message uses."""
    library, model = context.library, context.model
    layout = compat.cache_layout(library, context.params)
    # C writes one part for each cache, even of a single sequence.
    layout["caches"] = "1" if context.kv_unified else str(context.n_seq_max)
    if library.lib.llama_model_is_recurrent(model.ptr):
        layout = {}  # it has neither keys nor values
    return {
        "build": library.build.tag or _crc(library.path),
        "abi": library.abi.name,
        "model": f"{model.gguf.architecture} {model.fingerprint}",
        **layout,
    }


@cache
def _crc(path: Path) -> int:
    """Return the CRC-32 of a library that was loaded from this file."""
    return zlib.crc32(path.read_bytes())


def _check_no_pending_update(context: Context, seq_id: int | None = None) -> None:
    """Refuse while keys are still to be rotated or copied: C would save the old ones.

    Args:
        context: The context.
        seq_id: The only sequence whose cells are read; None: all, or some are written.
    """
    if context.update_waits if seq_id is None else context.updates(seq_id):
        raise ValidationError(
            "positions were shifted, divided or copied, which the next decode applies to the data; "
            "decode a token before saving or loading a state"
        )


def _check_fits(context: Context, header: dict[str, Any], seq_id: int | None) -> None:
    """Refuse a state that this context cannot load.

    Raises:
        ValidationError: With both values.
    """
    _check_no_pending_update(context)
    for name, ours in _identity(context).items():
        theirs = header.get(name)
        unknown = (
            name == "flash_attn" and theirs in ("auto", "on", "off") and "auto" in (theirs, ours)
        )
        if theirs != ours and not unknown:
            raise ValidationError(
                f"the state was saved with {name} {theirs}; this context has {ours}"
            )
    if header["whole"] and seq_id is not None:
        raise ValidationError("this is the state of a whole context; load it without seq_id")
    if not header["whole"] and seq_id is None:
        raise ValidationError(
            "this is the state of one sequence; pass the sequence to replace as seq_id"
        )
    if seq_id is not None:
        context.memory.seq_pos_max(seq_id)  # raises if it does not exist
    else:
        used = 1 + max((part[0] for part in header["parts"]), default=-1)
        if used > context.n_seq_max:
            raise ValidationError(
                f"the state uses {used} sequences; the context has n_seq_max={context.n_seq_max}"
            )


def _parse(data: Any) -> tuple[dict[str, Any], memoryview]:
    """Return header and payload of an undamaged state.

    Raises:
        ValidationError: It is not a state, has another format version, or is truncated or damaged.
    """
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise ValidationError(f"a state must be bytes, got {type(data).__name__}") from None
    if len(view) < _PREFIX.size or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise ValidationError(f"these {len(view)} bytes are not a state saved by llama_cffi")
    _, version, crc, n_header = _PREFIX.unpack_from(view)
    if version != _VERSION:
        raise ValidationError(f"the state has format {version}; this llama_cffi reads {_VERSION}")
    found = zlib.crc32(view[_PREFIX.size :])
    if found != crc:
        raise ValidationError(
            f"the state is damaged or truncated: CRC-32 {found:08x} instead of {crc:08x}"
        )
    payload = view[_PREFIX.size + n_header :]
    try:
        header = json.loads(bytes(view[_PREFIX.size : _PREFIX.size + n_header]))
        numbers = [n for part in header["parts"] for n in part] + header["tokens"]
        if not all(type(n) is int and abs(n) <= _MOST for n in numbers):
            raise ValueError("parts and tokens must be integers")
        if any(n < 0 for part in header["parts"] for n in part):
            raise ValueError("parts must be integers from 0")
        _checked(header["tokens"], _MOST)
        if type(header["whole"]) is not bool:
            raise ValueError("it does not say whether it is the state of a whole context")
        if sum(size for _, _, size in header["parts"]) != len(payload):
            raise ValueError("the sizes of the parts do not add up to the size of the state")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValidationError(f"the state has an invalid header: {e}") from e
    return header, payload


def _parts(header: dict[str, Any], payload: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    start = 0
    for seq_id, last, size in header["parts"]:
        yield seq_id, last, payload[start : start + size]
        start += size
