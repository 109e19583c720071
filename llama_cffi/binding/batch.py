"""A batch of tokens for `Context.decode`, allocated once and refilled."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ValidationError
from .library import Library, get_library

__all__ = ["Batch"]


class Batch:
    """Up to *n_tokens_max* tokens, each with position, sequences and output flag.

    The arrays are owned by this object and keep their place, so refilling allocates nothing.

    Args:
        n_tokens_max: Capacity in tokens.
        n_seq_max: Sequences that one token may belong to.
        library: The build; None = `get_library()`.
    """

    def __init__(
        self, n_tokens_max: int, *, n_seq_max: int = 1, library: Library | None = None
    ) -> None:
        if n_tokens_max < 1 or n_seq_max < 1:
            raise ValidationError(f"a batch needs room: {n_tokens_max=}, {n_seq_max=}")
        ffi = (library or get_library()).ffi
        self.n_tokens_max, self.n_seq_max = n_tokens_max, n_seq_max
        self._token = ffi.new("int32_t[]", n_tokens_max)
        self._pos = ffi.new("int32_t[]", n_tokens_max)
        self._n_seq_id = ffi.new("int32_t[]", n_tokens_max)
        self._seq_ids = ffi.new("int32_t[]", n_tokens_max * n_seq_max)
        self._seq_id = ffi.new("int32_t *[]", n_tokens_max)
        for i in range(n_tokens_max):
            self._seq_id[i] = self._seq_ids + i * n_seq_max
        self._logits = ffi.new("int8_t[]", n_tokens_max)
        self.struct = ffi.new("struct llama_batch *")
        self.struct.token = self._token
        self.struct.pos = self._pos
        self.struct.n_seq_id = self._n_seq_id
        self.struct.seq_id = self._seq_id
        self.struct.logits = self._logits

    def __len__(self) -> int:
        return int(self.struct.n_tokens)

    def clear(self) -> None:
        """Forget all tokens."""
        self.struct.n_tokens = 0

    def add(self, token: int, pos: int, seq_ids: Sequence[int] = (0,), logits: bool = False) -> int:
        """Append one token.

        Args:
            token: Token id; `Context.decode` checks it against the vocabulary.
            pos: Position in its sequences, from 0.
            seq_ids: The sequences it belongs to.
            logits: Whether its output (logits or embedding) is wanted.

        Returns:
            Its index in the batch, which `Context.logits` takes.

        Raises:
            ValidationError: The batch is full, or a number is out of range.
        """
        i = len(self)
        if i >= self.n_tokens_max:
            raise ValidationError(f"the batch is full ({self.n_tokens_max} tokens)")
        if pos < 0 or not 1 <= len(seq_ids) <= self.n_seq_max or min(seq_ids) < 0:
            raise ValidationError(
                f"position {pos} and sequences {list(seq_ids)}: positions and sequence ids start "
                f"at 0, and a token of this batch has 1 to {self.n_seq_max} sequences"
            )
        self._token[i] = token
        self._pos[i] = pos
        self._n_seq_id[i] = len(seq_ids)
        for k, seq_id in enumerate(seq_ids):
            self._seq_id[i][k] = seq_id
        self._logits[i] = logits
        self.struct.n_tokens = i + 1
        return i

    def fill(
        self, tokens: Sequence[int], pos: int, seq_id: int = 0, *, logits: bool = True
    ) -> None:
        """Replace the content by *tokens* of one sequence, at positions from *pos*.

        Args:
            tokens: 1 to `n_tokens_max` token ids.
            pos: Position of the first.
            seq_id: Their sequence.
            logits: Whether the last token's output is wanted.

        Raises:
            ValidationError: Too many tokens, or a number is out of range.
        """
        n = len(tokens)
        if not 1 <= n <= self.n_tokens_max:
            raise ValidationError(f"{n} tokens for a batch of 1 to {self.n_tokens_max}")
        if pos < 0 or seq_id < 0:
            raise ValidationError(f"position {pos}, sequence {seq_id}: both start at 0")
        self._token[0:n] = tokens
        for i in range(n):
            self._pos[i] = pos + i
            self._n_seq_id[i] = 1
            self._seq_id[i][0] = seq_id
            self._logits[i] = 0
        self._logits[n - 1] = logits
        self.struct.n_tokens = n

    def check(self, n_vocab: int, n_seq_max: int) -> None:
        """Refuse what C would abort on.

        Raises:
            ValidationError: Empty, or a token or sequence id that the context does not have.
        """
        n = len(self)
        if not n:
            raise ValidationError("the batch is empty")
        for i in range(n):
            if not 0 <= self._token[i] < n_vocab:
                raise ValidationError(f"token {self._token[i]} is outside 0..{n_vocab - 1}")
            for k in range(self._n_seq_id[i]):
                if self._seq_id[i][k] >= n_seq_max:
                    raise ValidationError(
                        f"sequence {self._seq_id[i][k]} is outside 0..{n_seq_max - 1}; "
                        "make the context with a larger n_seq_max"
                    )
