"""PromptFiles: states of prompts in a folder, which outlive the process.

The states of one kind of context (`Context.state_key`) have a folder of their own, so that models
can share a cache. A file is complete or absent: it is written under another name and moved. What is
damaged, foreign or of another format is removed, and the prompt is computed again.

Format: magic, version, CRC-32 and length of the header; the header as JSON; the state, which has
its own checksum (`binding/context/state.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic_files import replacing
from ..binding.loading.cache_files import refuse_writable_by_others
from ..errors import ValidationError
from ..generation.prompt import Prompt
from ..validation import not_picklable

__all__ = ["PromptFile", "PromptFiles", "read_prompt_file", "write_prompt_file"]

_log = logging.getLogger("llama_cffi.scheduler")

_MAGIC, _VERSION = b"llmcffip", 1
_PREFIX = struct.Struct("<8sIIQ")  # magic, version, CRC-32 of the header, its length
_SUFFIX, _UNFINISHED = ".prompt", ".tmp"
_ABANDONED_S = 3600.0  # an unfinished file this old belongs to a process that has died
_KEY_DIGITS = 32
_MAX_PENDING_BYTES = 2**29


class PromptFile(NamedTuple):
    """What the header of a file says.

    Attributes:
        name: The name of the file.
        tokens: The prompt, as `Prompt.packed` returns it.
        lora: Identifies the LoRA adapters.
        first_cut: See `Memory.first_cut`.
        n_bytes: Size of the state.
    """

    name: str
    tokens: list[int]
    lora: str
    first_cut: int
    n_bytes: int

    @property
    def prompt(self) -> Prompt:
        """The prompt.

        Raises:
            ValidationError: Its numbers are damaged.
        """
        return Prompt.unpacked(self.tokens)


class PromptFiles:
    """Reads and writes the states of one kind of context; no call but `read` waits for the disk.

    A folder that cannot be used gives one warning; nothing is written then.

    Args:
        folder: The cache, made if missing.
        key: Identifies the kind of context.
        max_bytes: Most bytes of all files in the cache, those of other kinds too; the least
            recently used ones are removed.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._root, self._key = Path(folder).expanduser(), key
        self._folder = self._root / key[:_KEY_DIGITS]
        self._failed = False
        self._lock = threading.Lock()
        self._pending: dict[str, bytes] = {}  # not written yet
        # One thread each, so that removing a file comes after writing it.
        self._writer = ThreadPoolExecutor(1, "llama_cffi-prompt-writer")
        self._reader = ThreadPoolExecutor(1, "llama_cffi-prompt-reader")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_writable_by_others(self._folder)
        except OSError as e:
            self._fail(e)

    __reduce__ = not_picklable("make another one", "it has threads")

    def __repr__(self) -> str:
        return f"PromptFiles({str(self._folder)!r})"

    def scan(self) -> list[PromptFile]:
        """Return what the files contain, the least recently used first; remove damaged ones."""
        found: list[PromptFile] = []
        if self._failed:
            return found
        for path in self._folder.glob(f"*{_UNFINISHED}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
        for _, _, path in sorted(self._files(self._folder.name)):
            with suppress(OSError):  # another process has removed it
                if (file := self._header(path)) is not None:
                    found.append(file)
                else:
                    _log.info("%s is damaged or foreign and is removed", path)
                    path.unlink()
        return found

    def write(
        self, tokens: Sequence[int], lora: str, first_cut: int, state: bytes, *, wait: bool = False
    ) -> PromptFile | None:
        """Write a state in the background; None: it is not written.

        Args:
            tokens: See `PromptFile`.
            lora: See `PromptFile`.
            first_cut: See `PromptFile`.
            state: From `Context.save_state`.
            wait: If too much waits to be written, wait for that.
        """
        digest = hashlib.sha256(repr((lora, [*tokens])).encode()).hexdigest()
        name = f"{digest[:_KEY_DIGITS]}{_SUFFIX}"
        file = PromptFile(name, [*tokens], lora, first_cut, len(state))
        with self._lock:
            full = bool(self._pending) and len(state) > _MAX_PENDING_BYTES - sum(
                map(len, self._pending.values())
            )
        if full and wait:
            self._writer.submit(lambda: None).result()
        elif full:
            return None
        if self._failed or len(state) > self.max_bytes:
            return None
        with self._lock:
            self._pending[name] = state
        try:
            self._writer.submit(self._write, file, state)
        except RuntimeError:  # the interpreter exits
            self._pending.pop(name, None)
            return None
        return file

    def read(self, file: PromptFile) -> bytes | None:
        """Return the state of a file; None: it is gone or damaged."""
        with self._lock:
            pending = self._pending.get(file.name)
        if pending is not None:
            return pending
        path = self._folder / file.name
        try:
            refuse_writable_by_others(self._folder)
            if self._header(path) != file:
                return None
            state = _read_state(path, file)
            os.utime(path)
        except OSError as e:
            _log.debug("a stored prompt was not read: %s", e)
            return None
        return state

    def read_later(self, file: PromptFile) -> Future[bytes | None]:
        """Do `read` in the background."""
        return self._reader.submit(self.read, file)

    def remove(self, file: PromptFile) -> None:
        """Remove a file in the background."""
        with suppress(RuntimeError):  # the interpreter exits
            self._writer.submit(self._remove, file.name)

    def close(self) -> None:
        """Wait until everything is written, and end the threads."""
        self._writer.shutdown()
        self._reader.shutdown()

    def _write(self, file: PromptFile, state: bytes) -> None:
        try:
            if not self._failed:
                self._save(file, state)
        except OSError as e:
            self._fail(e)
        finally:
            with self._lock:
                self._pending.pop(file.name, None)

    def _save(self, file: PromptFile, state: bytes) -> None:
        head = _head(file, self._key)
        self._make_space(len(head) + len(state))
        _write_whole(self._folder / file.name, head, state)

    def _make_space(self, n_bytes: int) -> None:
        """Remove the least recently used files until this many bytes fit."""
        files = sorted(self._files())
        n_used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if n_used + n_bytes <= self.max_bytes:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                n_used -= size

    def _files(self, folder: str = "*") -> Iterator[tuple[float, int, Path]]:
        """Yield time of use, size and path of the files of one kind, or of all."""
        for path in self._root.glob(f"{folder}/*{_SUFFIX}"):
            with suppress(OSError):  # another process has removed it
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def _header(self, path: Path) -> PromptFile | None:
        """Return the header of a file; None: it is not a complete file of this cache."""
        found = _read_header(path)
        return found[0] if found and (found[0].name, found[1]) == (path.name, self._key) else None

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            _log.warning("prompts are no longer written to %s: %s", self._root, error)


def write_prompt_file(path: Path, file: PromptFile, key: str, state: bytes) -> None:
    """Write one file, which is complete or absent.

    Args:
        path: The file; replaced if it exists.
        file: The header.
        key: See `PromptFiles`.
        state: From `Context.save_state`.

    Raises:
        OSError: It cannot be written.
    """
    _write_whole(path, _head(file, key), state)


def read_prompt_file(path: Path) -> tuple[PromptFile, str, bytes]:
    """Return header, key and state of one file.

    Raises:
        OSError: It cannot be read.
        ValidationError: It is damaged, or something else.
    """
    found = _read_header(path)
    if found is None:
        raise ValidationError(f"{path.name} is damaged, or not a file with a saved prompt")
    return *found, _read_state(path, found[0])


def _head(file: PromptFile, key: str) -> bytes:
    text = json.dumps({**file._asdict(), "key": key}, separators=(",", ":")).encode()
    return _PREFIX.pack(_MAGIC, _VERSION, zlib.crc32(text), len(text)) + text


def _write_whole(path: Path, head: bytes, state: bytes) -> None:
    with replacing(path, _UNFINISHED) as stream:
        stream.write(head)
        stream.write(state)


def _read_header(path: Path) -> tuple[PromptFile, str] | None:
    """Return the header of a file and its key; None: it is not a complete file."""
    with path.open("rb") as stream:
        n_file = os.fstat(stream.fileno()).st_size
        prefix = stream.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            return None
        magic, version, crc, n_header = _PREFIX.unpack(prefix)
        if (magic, version) != (_MAGIC, _VERSION) or n_header > n_file:
            return None
        text = stream.read(n_header)
    if zlib.crc32(text) != crc:
        return None
    try:
        header: Any = json.loads(text)
        key = header.pop("key")
        file = PromptFile(**header)
        if not all(type(n) is int for n in (*file.tokens, file.first_cut, file.n_bytes)):
            return None
        _ = file.prompt
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None
    return (file, key) if _PREFIX.size + n_header + file.n_bytes == n_file else None


def _read_state(path: Path, file: PromptFile) -> bytes:
    with path.open("rb") as stream:
        stream.seek(-file.n_bytes, os.SEEK_END)
        return stream.read()
