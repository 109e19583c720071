"""Session: KV cache, state, adapters and counters of an engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..binding import LoraAdapter, Model
from ..errors import ValidationError
from ..generation.prompt import Prompt
from ..validation import as_path
from .running import is_shared

if TYPE_CHECKING:
    from ..binding import Perf
    from ..scheduler import InferenceEngine
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
        self._adapters_lock = threading.Lock()

    def get_state(self) -> bytes:
        """Return the KV cache and its tokens, for `set_state`; pictures and sounds, too.

        Raises:
            ValidationError: Positions were shifted, and nothing was decoded since.
        C: llama_state_seq_get_data
        """
        with self.engine.idle() as slot:
            return self.engine.context.save_state(slot.tokens.packed())

    def set_state(self, state: bytes) -> int:
        """Restore a state of `get_state`; return the number of tokens.

        Its pictures and sounds need no projector. Prompts with the same ones continue from it.

        Raises:
            ValidationError: The state is damaged, or from another model or context.
        C: llama_state_seq_set_data
        """
        with self.engine.idle() as slot:
            slot.forget()
            numbers = self.engine.context.load_state(state)
            try:
                slot.tokens.add(Prompt.unpacked(numbers))
            except ValidationError:
                slot.clear()
                raise
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
            self.engine.context.save_state_file(as_path("path", path), slot.tokens.packed())
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

    @property
    def adapters(self) -> dict[str, float]:
        """The LoRA adapters that are loaded, and their scales."""
        if (engine := self._shared_engine) is not None:
            return engine.adapters
        return {name: scale for name, (_, scale) in self._adapters.items()}

    def set_adapters(self, adapters: Mapping[str, float]) -> None:
        """Load exactly these LoRA adapters; they stay active after `reset`.

        With *n_parallel* above 1, requests that run or wait keep those that they began with.

        Args:
            adapters: Files and scales; an adapter with a scale of 0 is loaded, but has no effect.

        Raises:
            ModelLoadError: An adapter is damaged, or for another model.
            ValidationError: A scale is not a finite number.
        """
        if (engine := self._shared_engine) is not None:
            engine.set_adapters(adapters)
            return
        with self.engine.idle() as slot:
            known = self._adapters
            loaded = {
                name: (known[name][0] if name in known else LoraAdapter(self.model, name), scale)
                for name, scale in adapters.items()
            }
            self.engine.context.set_adapters(dict(loaded.values()))
            self._adapters = loaded
            slot.clear()  # computed with others

    def load_lora(self, path: str | os.PathLike[str], scale: float = 1.0) -> str:
        """Activate a LoRA adapter, or change its scale; see `set_adapters`.

        Returns:
            The path, for `remove_lora`.

        Raises:
            ModelLoadError: The adapter is damaged, or for another model.
            ValidationError: *scale* is not a finite number.
        """
        name = str(as_path("path", path))
        with self._adapters_lock:
            self.set_adapters({**self.adapters, name: scale})
        return name

    def remove_lora(self, path: str | os.PathLike[str]) -> None:
        """Deactivate an adapter.

        Raises:
            ValidationError: It is not active.
        """
        with self._adapters_lock:
            rest = self.adapters
            if rest.pop(str(as_path("path", path)), None) is None:
                loaded = ", ".join(sorted(rest)) or "none"
                raise ValidationError(f"the adapter {path} is not loaded; loaded: {loaded}")
            self.set_adapters(rest)

    def clear_lora(self) -> None:
        """Deactivate all adapters."""
        self.set_adapters({})

    @property
    def _shared_engine(self) -> InferenceEngine | None:
        """The engine if it is an `InferenceEngine`, whose requests can be awaited."""
        return self.engine if is_shared(self.engine) else None

    def perf(self) -> Perf:
        """Return the performance counters of the context. C: llama_perf_context."""
        return self.engine.context.perf

    def perf_reset(self) -> None:
        """Reset the performance counters. C: llama_perf_context_reset."""
        self.engine.context.reset_perf()
