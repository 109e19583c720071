"""PromptStore: states of prompts that left the KV cache, in RAM and in files.

A prefix is found by the hashes of its blocks, as in `KVCache`, and then compared token by token.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from ..binding import Context
from ..binding.context.memory_estimate import memory_bytes
from ..errors import LlamaError, ValidationError
from ..generation.prompt import Prompt, block_hashes, common_prefix_length
from ..validation import as_path, check_int, not_picklable
from .adapter_ids import AdapterIds
from .prompt_files import PromptFile, PromptFiles

__all__ = [
    "PromptCacheOptions",
    "PromptStore",
    "StoredPrefix",
    "open_prompt_store",
    "sequence_state",
]

_log = logging.getLogger("llama_cffi.scheduler")
_BLOCK = 32
_MIB = 2**20
_DEFAULT_RAM_MIB, _RAM_SHARE = 1024, 16
_UNLIMITED = 2**62


@dataclass(frozen=True)
class PromptCacheOptions:
    """The arguments of `InferenceEngine` about stored prompts; see there.

    Raises:
        ValidationError: A number is out of range, or the folder is a file.
    """

    cache_ram: int | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_disk: int = 8192

    def __post_init__(self) -> None:
        if self.cache_ram is not None:
            check_int("cache_ram", self.cache_ram, -1)
        check_int("cache_disk", self.cache_disk, -1)
        if self.cache_dir is not None:
            folder = as_path("cache_dir", self.cache_dir)
            if folder.exists() and not folder.is_dir():
                raise ValidationError(f"cache_dir={str(folder)!r} is a file; give a folder")


@dataclass(eq=False, slots=True)
class _Entry:
    tokens: Prompt
    lora: str
    first_cut: int
    state: bytes | None = None
    file: PromptFile | None = None
    hashes: list[int] = field(default_factory=list)

    def can_cut(self, n: int) -> bool:
        """Whether a sequence with this state can continue after its first *n* tokens."""
        return self.tokens.position(n) >= self.first_cut


class StoredPrefix(NamedTuple):
    """A stored prompt that begins like another one.

    Attributes:
        entry: What `PromptStore.restore` needs.
        tokens: The tokens of the state.
        n: How many of them to keep, the common prefix.
    """

    entry: Hashable
    tokens: Prompt
    n: int


class PromptStore:
    """Keeps states of sequences, within limits of bytes; the least recently used ones go first.

    Only the engine's thread uses it. Whatever goes wrong with a state costs its prompt's prefill,
    nothing else.

    Args:
        context: The context of the sequences.
        max_ram_bytes: Most bytes of the states in RAM; 0: none are kept there.
        files: Keeps them on disk too; None: nothing is written.

    Attributes:
        n_bytes: Bytes of the states in RAM.
        n_restored_tokens: Prompt tokens restored so far.
        adapter_ids: Identifies LoRA adapters in another process, too.
    """

    def __init__(
        self, context: Context, max_ram_bytes: int, files: PromptFiles | None = None
    ) -> None:
        self.n_bytes = self.n_restored_tokens = 0
        self.adapter_ids = AdapterIds()
        self._context, self._max_ram_bytes, self._files = context, max_ram_bytes, files
        # In order of use.
        self._entries: dict[_Entry, None] = {}
        self._in_ram: dict[_Entry, None] = {}
        self._index: dict[int, dict[_Entry, None]] = {}
        self._reading: tuple[_Entry, Future[bytes | None]] | None = None
        self._keeps_states, self._window = context.model.keeps_states, context.memory.window
        for file in [] if files is None else files.scan():
            self._add(_Entry(file.prompt, file.lora, file.first_cut, file=file))

    __reduce__ = not_picklable("make another one", "it stores states of one context")

    def __repr__(self) -> str:
        return f"<PromptStore {len(self)} prompts, {self.n_bytes} bytes in RAM>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def lasts(self) -> bool:
        """Whether prompts are also kept on disk."""
        return self._files is not None

    @property
    def can_restore(self) -> bool:
        """Whether states can be loaded before the next decode."""
        return not self._context.update_waits

    def needs_checkpoints(self, n_tokens: int) -> bool:
        """Whether a sequence of this length can be cut at its end only, or in a window there."""
        return self._keeps_states or 0 < self._window < n_tokens

    def find(self, tokens: Sequence[int], lora_key: Hashable, n_min: int) -> StoredPrefix | None:
        """Return the stored prompt that has the longest usable prefix of *tokens*.

        Args:
            tokens: A prompt; its last token does not count.
            lora_key: See `Request`.
            n_min: The least length of the prefix.
        """
        lora = self.adapter_ids.of(lora_key)
        if lora is None or not self._entries:
            return None
        most = len(tokens) - 1
        seen: set[_Entry] = set()
        best, n_best = None, n_min - 1
        for found in reversed([*self._levels(tokens[:most], lora)]):
            for entry in found.keys() - seen:
                n = min(common_prefix_length(entry.tokens, tokens), most)
                n = entry.tokens.boundary(n)
                if n > n_best and (n == len(entry.tokens) or entry.can_cut(n)):
                    best, n_best = entry, n
            if best is not None:  # the others have fewer tokens in common
                return StoredPrefix(best, best.tokens, n_best)
            seen |= found.keys()
        return None

    def n_common(self, tokens: Sequence[int], lora_key: Hashable) -> int:
        """Return how many tokens a prompt shares with any stored one, usable or not."""
        levels = [*self._levels(tokens, self.adapter_ids.of(lora_key) or "")]
        lengths = [common_prefix_length(e.tokens, tokens) for found in levels[-1:] for e in found]
        return max(lengths, default=0)

    def is_ready(self, prefix: StoredPrefix) -> bool:
        """Whether `restore` works now, without waiting for the disk; if not, ask again later."""
        if not self.can_restore:
            return False
        entry = _entry(prefix)
        if entry.state is not None or entry.file is None or self._files is None:
            return True
        if self._reading is None or self._reading[0] is not entry:
            self._reading = entry, self._files.read_later(entry.file)
        return self._reading[1].done()

    def read(self, prefix: StoredPrefix) -> bytes | None:
        """Return the state of a prompt; None: its file is gone or damaged, and it is forgotten."""
        entry = _entry(prefix)
        reading, self._reading = self._reading, None
        state = entry.state
        if state is None and entry.file is not None and self._files is not None:
            ready = reading is not None and reading[0] is entry
            state = reading[1].result() if reading and ready else self._files.read(entry.file)
        if state is None:
            _log.info("a stored prompt of %d tokens is gone or damaged", len(entry.tokens))
            self._remove(entry)
        return state

    def restore(self, prefix: StoredPrefix, state: bytes, seq_id: int) -> bool:
        """Load what `read` returned into an empty sequence; False: C cannot; it is forgotten."""
        entry = _entry(prefix)
        try:
            if self._context.load_state(state, seq_id=seq_id) != entry.tokens.packed():
                raise ValidationError("it is the state of another prompt")
        except LlamaError as e:
            _log.info("a stored prompt of %d tokens is dropped: %s", len(entry.tokens), e)
            self._remove(entry)
            return False
        if entry in self._entries:
            self._keep(entry, state)
        self.n_restored_tokens += prefix.n
        return True

    def save(self, seq_id: int, tokens: Prompt, lora_key: Hashable, *, wait: bool = False) -> None:
        """Store the state of a sequence, unless that is not possible.

        Args:
            seq_id: The sequence.
            tokens: All tokens of it.
            lora_key: See `Request`.
            wait: See `PromptFiles.write`.
        """
        context, memory = self._context, self._context.memory
        lora = self.adapter_ids.of(lora_key)
        if lora is None or context.updates(seq_id):
            return
        most = max(self._max_ram_bytes, 0 if self._files is None else self._files.max_bytes)
        if context.state_bytes(seq_id) > most:
            return
        try:
            state = sequence_state(context, seq_id, tokens)
        except LlamaError as e:
            _log.debug("a prompt of %d tokens is not stored: %s", len(tokens), e)
            return
        packed = tokens.packed()
        entry = _Entry(Prompt.unpacked(packed), lora, memory.first_cut(seq_id))  # without pixels
        if self._files is not None:
            entry.file = self._files.write(packed, lora, entry.first_cut, state, wait=wait)
        for found in [*self._levels(tokens, lora)]:
            for other in [*found]:
                n = len(other.tokens)
                if entry.can_cut(n) and entry.tokens[:n] == other.tokens:  # the new one does
                    self._remove(other, keep_file=other.file == entry.file)
        self._add(entry)
        self._keep(entry, state)
        if entry.state is None and entry.file is None:
            self._forget(entry)

    def discard(self, tokens: Sequence[int], lora_key: Hashable) -> None:
        """Forget the states in RAM of what a prompt begins with; those on disk remain."""
        for found in [*self._levels(tokens, self.adapter_ids.of(lora_key) or "")]:
            for entry in [*found]:
                if entry in self._in_ram and entry.tokens == [*tokens[: len(entry.tokens)]]:
                    self._release(entry)

    def clear(self) -> None:
        """Forget the states in RAM; those on disk remain."""
        for entry in [*self._in_ram]:
            self._release(entry)

    def close(self) -> None:
        """Wait until everything is on disk, and free everything."""
        if self._files is not None:
            self._files.close()
        self._entries.clear()
        self._in_ram.clear()
        self._index.clear()
        self._reading = None
        self.n_bytes = 0

    # Entries

    def _add(self, entry: _Entry) -> None:
        for key in block_hashes(entry.tokens, _BLOCK, hash(entry.lora)):
            entry.hashes.append(key)
            self._index.setdefault(key, {})[entry] = None
        self._entries[entry] = None

    def _levels(self, tokens: Sequence[int], lora: str) -> Iterator[dict[_Entry, None]]:
        """Yield the entries with the first block of *tokens*, with the first two, and so on."""
        for key in block_hashes(tokens, _BLOCK, hash(lora)):
            found = self._index.get(key)
            if not found:
                return
            yield found

    def _keep(self, entry: _Entry, state: bytes) -> None:
        """Mark an entry as used now, and keep its state in RAM within the limit."""
        self._entries.pop(entry, None)
        self._entries[entry] = None
        if len(state) > self._max_ram_bytes:
            return
        if entry.state is None:
            entry.state = state
            self.n_bytes += len(state)
        self._in_ram.pop(entry, None)
        self._in_ram[entry] = None
        while self.n_bytes > self._max_ram_bytes:
            self._release(next(iter(self._in_ram)))

    def _release(self, entry: _Entry) -> None:
        """Free the RAM of an entry, which is forgotten if it is nowhere else."""
        self._in_ram.pop(entry, None)
        if entry.state is not None:
            self.n_bytes -= len(entry.state)
            entry.state = None
        if entry.file is None:
            self._forget(entry)

    def _remove(self, entry: _Entry, keep_file: bool = False) -> None:
        if entry.file is not None and self._files is not None and not keep_file:
            self._files.remove(entry.file)
        entry.file = None
        self._release(entry)

    def _forget(self, entry: _Entry) -> None:
        self._entries.pop(entry, None)
        for key in entry.hashes:
            found = self._index.get(key, {})
            found.pop(entry, None)
            if not found:
                self._index.pop(key, None)
        entry.hashes.clear()


def _entry(prefix: StoredPrefix) -> _Entry:
    assert isinstance(prefix.entry, _Entry)
    return prefix.entry


def sequence_state(context: Context, seq_id: int, tokens: Prompt) -> bytes:
    """Return the state of a sequence.

    Args:
        context: The context.
        seq_id: The sequence.
        tokens: All tokens of it.

    Raises:
        LlamaError: C holds other tokens than these, or does not save it.
    """
    last, expected = context.memory.seq_pos_max(seq_id), tokens.last_position(len(tokens))
    if last != expected:  # a failed step left more or less
        raise ValidationError(
            f"the last position of sequence {seq_id} in C is {last} instead of {expected}"
        )
    return context.save_state(tokens.packed(), seq_id=seq_id)


def open_prompt_store(context: Context, options: PromptCacheOptions) -> PromptStore | None:
    """Return the store of a context; None: nothing is to be stored."""
    ram, folder = options.cache_ram, options.cache_dir
    if ram is None:
        n_ram_bytes = min(_DEFAULT_RAM_MIB * _MIB, memory_bytes(context.library) // _RAM_SHARE)
    else:
        n_ram_bytes = _n_bytes(ram)
    n_disk_bytes = _n_bytes(options.cache_disk)
    files = None
    if folder is not None and n_disk_bytes:
        files = PromptFiles(folder, context.state_key, n_disk_bytes)
    return PromptStore(context, n_ram_bytes, files) if n_ram_bytes or files else None


def _n_bytes(mib: int) -> int:
    return _UNLIMITED if mib < 0 else mib * _MIB
