"""Session: what an engine keeps between two answers, and the adapters over it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..binding import LoraAdapter, Model
from ..errors import ValidationError
from ..validation import as_path

if TYPE_CHECKING:
    from ..binding import Perf
    from .running import AnyEngine

__all__ = ["Session"]


class Session:
    """The evaluated tokens, adapters and counters of an engine.

    Args:
        engine: Whose they are; each call waits until it is idle. One for many requests has no
            single state, and refuses most of them.

    Attributes:
        engine: The same.
        model: Its model.
    """

    def __init__(self, engine: AnyEngine) -> None:
        self.engine = engine
        self.model: Model = engine.model
        self._adapters: dict[str, tuple[LoraAdapter, float]] = {}

    def get_state(self) -> bytes:
        """Return what the cache holds, with its tokens; `set_state` goes on from there.

        Raises:
            ValidationError: Positions were moved, and nothing decoded since then.
        C: llama_state_seq_get_data
        """
        with self.engine.idle() as slot:
            return self.engine.context.save_state(slot.tokens)

    def set_state(self, state: bytes) -> int:
        """Take back what `get_state` returned; return the number of tokens.

        Raises:
            ValidationError: It is damaged, or of another model or context.
        C: llama_state_seq_set_data
        """
        with self.engine.idle() as slot:
            slot.tokens.clear()
            slot.tokens += self.engine.context.load_state(state)
            return len(slot.tokens)

    def save_state(self, path: str | os.PathLike[str] | None = None) -> bytes | None:
        """Write the state to a file, or return it where there is no *path*.

        Raises:
            ValidationError: Positions were moved, and nothing decoded since then.
            OSError: The file cannot be written.
        """
        if path is None:
            return self.get_state()
        with self.engine.idle() as slot:
            self.engine.context.save_state_file(as_path("path", path), slot.tokens)
        return None

    def load_state(self, state: bytes | str | os.PathLike[str]) -> int:
        """Take back what `save_state` wrote to a file or returned; see `set_state`.

        Raises:
            OSError: The file cannot be read.
        """
        if not isinstance(state, bytes):
            state = as_path("state", state).read_bytes()
        return self.set_state(state)

    def reset(self) -> None:
        """Forget what was evaluated; adapters stay on."""
        self.engine.cache_clear()

    kv_cache_clear = reset

    # The cache by hand. Generation uses sequence 0: what these leave of its beginning is reused.

    def kv_cache_seq_rm(self, seq_id: int = 0, p0: int = -1, p1: int = -1) -> bool:
        """Remove positions p0 to p1 - 1 of a sequence; see `Memory.seq_rm`."""
        with self.engine.idle() as slot:
            removed = self.engine.context.memory.seq_rm(seq_id, p0, p1)
            if seq_id <= 0:
                del slot.tokens[max(0, p0) :]
            return removed

    def kv_cache_seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Copy a sequence to another; see `Memory.seq_cp`."""
        with self.engine.idle() as slot:
            self.engine.context.memory.seq_cp(source, target, p0, p1)
            if target == 0 != source:
                del slot.tokens[max(0, p0) :]

    def kv_cache_seq_keep(self, seq_id: int = 0) -> None:
        """Remove all other sequences; see `Memory.seq_keep`."""
        with self.engine.idle() as slot:
            self.engine.context.memory.seq_keep(seq_id)
            if seq_id != 0:
                slot.tokens.clear()

    def kv_cache_seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Move positions p0 to p1 - 1 by *delta*; see `Memory.seq_add`."""
        with self.engine.idle() as slot:
            self.engine.context.memory.seq_add(seq_id, p0, p1, delta)
            if seq_id == 0:
                del slot.tokens[max(0, p0 + min(0, delta)) :]

    def kv_cache_seq_pos_max(self, seq_id: int = 0) -> int:
        """Return the last position of a sequence, -1 when it is empty; see `Memory.seq_pos_max`."""
        with self.engine.idle():
            return self.engine.context.memory.seq_pos_max(seq_id)

    # Adapters and counters

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0) -> str:
        """Switch an adapter on; it stays on after `reset`. Again with another scale changes it.

        Returns:
            What `remove_lora` takes: the path.

        Raises:
            ModelLoadError: It is damaged, or for another model.
            ValidationError: *scale* is no finite number.
        """
        path = as_path("path", path)
        name = str(path)
        with self.engine.idle() as slot:
            known = self._adapters.get(name)
            adapter = known[0] if known else LoraAdapter(self.model, path)
            self._set_adapters({**self._adapters, name: (adapter, scale)})
            slot.clear()  # it was computed without
        return name

    def remove_lora(self, path: str | os.PathLike[str]) -> None:
        """Switch an adapter off.

        Raises:
            ValidationError: It is not on.
        """
        with self.engine.idle() as slot:
            rest = dict(self._adapters)
            if rest.pop(str(as_path("path", path)), None) is None:
                raise ValidationError(f"no adapter {path} is loaded; there are {sorted(rest)}")
            self._set_adapters(rest)
            slot.clear()

    def clear_lora(self) -> None:
        """Switch all adapters off."""
        with self.engine.idle() as slot:
            self._set_adapters({})
            slot.clear()

    def _set_adapters(self, adapters: dict[str, tuple[LoraAdapter, float]]) -> None:
        self.engine.context.set_adapters(dict(adapters.values()))
        self._adapters = adapters

    def perf(self) -> Perf:
        """Return C's counters of this context. C: llama_perf_context."""
        return self.engine.context.perf

    def perf_reset(self) -> None:
        """Set the counters to zero. C: llama_perf_context_reset."""
        self.engine.context.reset_perf()
