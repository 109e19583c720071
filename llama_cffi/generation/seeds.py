"""Seeds of calls that give none."""

from __future__ import annotations

import random
import threading

from ..validation import check_int

__all__ = ["SeedSequence"]

_N_SEEDS = 2**32 - 1  # the largest uint32 is LLAMA_DEFAULT_SEED: C draws one


class SeedSequence:
    """A reproducible sequence of seeds, one for each call that gives none.

    Each seed follows from the one before, as in llama-cpp-python.

    Args:
        seed: Before the first; -1: the sequence is random.

    Attributes:
        seed: The last one drawn; a sequence that begins with it draws what follows.

    Raises:
        ValidationError: *seed* is out of range.
    """

    def __init__(self, seed: int = -1) -> None:
        self._lock = threading.Lock()
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Begin anew with *seed*, as a new sequence does."""
        self.seed = check_int("seed", seed, -1, _N_SEEDS - 1)

    def draw(self) -> int:
        """Return the next seed; -1, a random one, if the sequence is random."""
        with self._lock:
            if self.seed != -1:
                self.seed = random.Random(self.seed).randint(0, 2**32) % _N_SEEDS
            return self.seed
