"""EncoderCache: the embeddings of pictures and sounds, so that none is encoded twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EncoderCache"]


class EncoderCache:
    """Keeps the embeddings that were used last, up to a number of bytes. Any thread may use it.

    Args:
        max_bytes: Most bytes to keep; the newest entry is kept in any case.

    Attributes:
        n_encoded: Number of embeddings computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_encoded = 0
        self._rows: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()
        self._encoding = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept."""
        return self._n_bytes

    def find(self, key: bytes) -> NDArray[np.float32] | None:
        """Return the embeddings with this key, if they are kept."""
        with self._lock:
            rows = self._rows.get(key)
            if rows is not None:
                self._rows.move_to_end(key)
        return rows

    def get(self, key: bytes, encode: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the embeddings with this key; *encode* computes them if they are not kept.

        Several threads that ask for the same key compute it once.

        Args:
            key: Hash of the content and of all that its embeddings depend on.
            encode: Computes them; its errors reach the caller.
        """
        if (rows := self.find(key)) is None:
            with self._encoding:  # the encoder runs one at a time anyway
                if (rows := self.find(key)) is None:
                    rows = encode()
                    self._add(key, rows)
                    self.n_encoded += 1
        return rows

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._rows.clear()
            self._n_bytes = 0

    def _add(self, key: bytes, rows: NDArray[np.float32]) -> None:
        rows.flags.writeable = False
        with self._lock:
            self._rows[key] = rows
            self._n_bytes += rows.nbytes
            while self._n_bytes > self.max_bytes and len(self._rows) > 1:
                _, oldest = self._rows.popitem(last=False)
                self._n_bytes -= oldest.nbytes

    def __repr__(self) -> str:
        return f"<EncoderCache {len(self)} entries, {self._n_bytes} of {self.max_bytes} bytes>"
