"""Caches of states, for several conversations that take turns.

A single conversation needs none: the common prefix of successive prompts is reused anyway.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_files import replacing
from ..generation.prompt import common_prefix_length

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache", "LlamaState"]


class LlamaState:
    """The state of a context; `Llama.save_state` returns it.

    Attributes:
        input_ids: The evaluated tokens, (n_tokens,) int32.
        scores: Their logits, (n_tokens, n_vocab) float32; (0, 0) without `logits_all`.
        n_tokens: Number of tokens.
        llama_state: The KV cache, as `Llama.get_state` returns it.
        llama_state_size: Its size in bytes.
        seed: The seed of calls without one.
    """

    def __init__(
        self,
        input_ids: NDArray[np.int32],
        scores: NDArray[np.float32],
        n_tokens: int,
        llama_state: bytes,
        llama_state_size: int,
        seed: int,
    ) -> None:
        self.input_ids, self.scores, self.n_tokens = input_ids, scores, n_tokens
        self.llama_state, self.llama_state_size = llama_state, llama_state_size
        self.seed = seed


class BaseLlamaCache(ABC):
    """Maps tokens to states; a lookup returns the state that shares the longest prefix.

    Args:
        capacity_bytes: Maximum size of all states; the least recently used are evicted first.
    """

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Size of all states in bytes."""

    @abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState: ...

    @abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool: ...

    @abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None: ...


def _longest(keys: Iterable[tuple[int, ...]], prompt: Sequence[int]) -> tuple[int, ...]:
    """Return the key that shares the longest prefix with *prompt*.

    Raises:
        KeyError: No key shares one.
    """
    n, best = max(
        ((common_prefix_length(key, prompt), key) for key in keys),
        key=lambda pair: pair[0],
        default=(0, ()),
    )
    if not n:
        raise KeyError("no cached state shares a prefix with this prompt")
    return best


class LlamaRAMCache(BaseLlamaCache):
    """Stores states in memory."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[tuple[int, ...], LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        """Size of all states in bytes."""
        return sum(state.llama_state_size for state in self.cache_state.values())

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        found = _longest(self.cache_state, key)
        self.cache_state.move_to_end(found)
        return self.cache_state[found]

    def __contains__(self, key: Sequence[int]) -> bool:
        return any(common_prefix_length(known, key) for known in self.cache_state)

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self.cache_state[tuple(key)] = value
        self.cache_state.move_to_end(tuple(key))
        while self.cache_state and self.cache_size > self.capacity_bytes:
            self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """Stores states in a folder that outlives the process.

    Args:
        cache_dir: The folder. As with pickles, nobody you do not trust may write to it.
        capacity_bytes: As for `BaseLlamaCache`.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str] = ".cache/llama_cache",
        capacity_bytes: int = 2 << 30,
    ) -> None:
        super().__init__(capacity_bytes)
        self._folder = Path(cache_dir)
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def cache_size(self) -> int:
        """Size of all states in bytes."""
        return sum(path.stat().st_size for path in self._folder.glob("*.state"))

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        import numpy as np

        known = self._known()
        found = _longest(known, key)
        path = known[found]
        state = path.read_bytes()
        os.utime(path)
        ids, no_scores = np.array(found, np.int32), np.empty((0, 0), np.float32)
        return LlamaState(ids, no_scores, len(found), state, len(state), -1)

    def __contains__(self, key: Sequence[int]) -> bool:
        return any(common_prefix_length(known, key) for known in self._known())

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        tokens = array("i", key).tobytes()
        path = self._folder / f"{hashlib.sha256(tokens).hexdigest()}.state"
        for file, data in ((path.with_suffix(".tokens"), tokens), (path, value.llama_state)):
            with replacing(file) as stream:
                stream.write(data)
        states = sorted(self._folder.glob("*.state"), key=lambda p: p.stat().st_mtime_ns)
        while states and self.cache_size > self.capacity_bytes:
            oldest = states.pop(0)
            for path in (oldest, oldest.with_suffix(".tokens")):
                path.unlink(missing_ok=True)  # another process may have removed it

    def _known(self) -> dict[tuple[int, ...], Path]:
        """Return the complete states by their tokens."""
        known = {}
        for path in self._folder.glob("*.state"):
            with suppress(OSError):  # another process removed it
                known[tuple(array("i", path.with_suffix(".tokens").read_bytes()))] = path
        return known
