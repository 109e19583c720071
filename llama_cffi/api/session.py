"""Session: KV cache, state, adapters and counters of an engine."""

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
    """The KV cache, state, adapters and counters of an engine.

    Args:
        engine: The engine; each call waits until it is idle. An `InferenceEngine` with several
            sequences has no single state and refuses most calls.

    Attributes:
        engine: The engine.
        model: Its model.
    """

    def __init__(self, engine: AnyEngine) -> None:
        self.engine = engine
        self.model: Model = engine.model
        self._adapters: dict[str, tuple[LoraAdapter, float]] = {}

    def get_state(self) -> bytes:
        """Return the KV cache and its tokens, for `set_state`.

        Raises:
            ValidationError: Positions were shifted, and nothing was decoded since.
        C: llama_state_seq_get_data
        """
        with self.engine.idle() as slot:
            return self.engine.context.save_state(slot.tokens)

    def set_state(self, state: bytes) -> int:
        """Restore a state of `get_state`; return the number of tokens.

        Raises:
            ValidationError: The state is damaged, or from another model or context.
        C: llama_state_seq_set_data
        """
        with self.engine.idle() as slot:
            slot.forget()
            slot.tokens += self.engine.context.load_state(state)
            return len(slot.tokens)

    def save_state(self, path: str | os.PathLike[str] | None = None) -> bytes | None:
        """Write the state to a file, or return it without a *path*.

        Raises:
            ValidationError: Positions were shifted, and nothing was decoded since.
            OSError: The file cannot be written.
        """
        if path is None:
            return self.get_state()
        with self.engine.idle() as slot:
            self.engine.context.save_state_file(as_path("path", path), slot.tokens)
        return None

    def load_state(self, state: bytes | str | os.PathLike[str]) -> int:
        """Restore a state that `save_state` returned or wrote to a file; see `set_state`.

        Raises:
            OSError: The file cannot be read.
        """
        if not isinstance(state, bytes):
            state = as_path("state", state).read_bytes()
        return self.set_state(state)

    def reset(self) -> None:
        """Clear the KV cache; adapters stay active."""
        self.engine.cache_clear()

    kv_cache_clear = reset

    # Direct access to the KV cache. Generation uses sequence 0 and reuses the prefix left in it.

    def kv_cache_seq_rm(self, seq_id: int = 0, p0: int = -1, p1: int = -1) -> bool:
        """Remove positions p0 to p1 - 1 of a sequence; see `Memory.seq_rm`."""
        with self.engine.idle() as slot:
            removed = self.engine.context.memory.seq_rm(seq_id, p0, p1)
            if seq_id <= 0:
                slot.forget(max(0, p0))
            return removed

    def kv_cache_seq_cp(self, seq_id_src: int, seq_id_dst: int, p0: int = -1, p1: int = -1) -> None:
        """Copy positions p0 to p1 - 1 of *seq_id_src* to *seq_id_dst*; see `Memory.seq_cp`."""
        with self.engine.idle() as slot:
            self.engine.context.memory.seq_cp(seq_id_src, seq_id_dst, p0, p1)
            if seq_id_dst == 0 != seq_id_src:
                slot.forget(max(0, p0))

    def kv_cache_seq_keep(self, seq_id: int = 0) -> None:
        """Remove all other sequences; see `Memory.seq_keep`."""
        with self.engine.idle() as slot:
            self.engine.context.memory.seq_keep(seq_id)
            if seq_id != 0:
                slot.forget()

    def kv_cache_seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Shift positions p0 to p1 - 1 by *delta*; see `Memory.seq_add`."""
        with self.engine.idle() as slot:
            self.engine.context.memory.seq_add(seq_id, p0, p1, delta)
            if seq_id == 0:
                slot.forget(max(0, p0 + min(0, delta)))

    def kv_cache_seq_pos_max(self, seq_id: int = 0) -> int:
        """Return the last position of a sequence, -1 if it is empty; see `Memory.seq_pos_max`."""
        with self.engine.idle():
            return self.engine.context.memory.seq_pos_max(seq_id)

    # Adapters and counters

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0) -> str:
        """Activate a LoRA adapter, or change its scale; it stays active after `reset`.

        Returns:
            The path, for `remove_lora`.

        Raises:
            ModelLoadError: The adapter is damaged, or for another model.
            ValidationError: *scale* is not a finite number.
        """
        path = as_path("path", path)
        name = str(path)
        with self.engine.idle() as slot:
            known = self._adapters.get(name)
            adapter = known[0] if known else LoraAdapter(self.model, path)
            self._set_adapters({**self._adapters, name: (adapter, scale)})
            slot.clear()  # computed without the adapter
        return name

    def remove_lora(self, path: str | os.PathLike[str]) -> None:
        """Deactivate an adapter.

        Raises:
            ValidationError: It is not active.
        """
        with self.engine.idle() as slot:
            rest = dict(self._adapters)
            if rest.pop(str(as_path("path", path)), None) is None:
                loaded = ", ".join(sorted(rest)) or "none"
                raise ValidationError(f"the adapter {path} is not loaded; loaded: {loaded}")
            self._set_adapters(rest)
            slot.clear()

    def clear_lora(self) -> None:
        """Deactivate all adapters."""
        with self.engine.idle() as slot:
            self._set_adapters({})
            slot.clear()

    def _set_adapters(self, adapters: dict[str, tuple[LoraAdapter, float]]) -> None:
        self.engine.context.set_adapters(dict(adapters.values()))
        self._adapters = adapters

    def perf(self) -> Perf:
        """Return the performance counters of the context. C: llama_perf_context."""
        return self.engine.context.perf

    def perf_reset(self) -> None:
        """Reset the performance counters. C: llama_perf_context_reset."""
        self.engine.context.reset_perf()
