"""A batch of tokens for `Context.decode`, allocated once and refilled."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import ValidationError
from ...validation import INT32_MAX, check_int, not_picklable
from ..loading.library import Library, get_library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..ffi_types import CData

__all__ = ["Batch"]

_MAX_TOKENS, _MAX_SEQUENCES = 2**22, 1024  # C has at most 256 sequences
_MAX_HIDDEN = 2**20


class Batch:
    """Up to *n_tokens_max* tokens, each with a position, sequences and an output flag.

    The arrays belong to this object and stay where they are, so refilling allocates nothing.

    Args:
        n_tokens_max: Capacity in tokens.
        n_seq_max: Sequences that one token may belong to.
        n_hidden: Width of the hidden state of each token, for contexts with `mtp`.
        library: The build; None = `get_library()`, with its errors.

    Attributes:
        single: Whether it has one token of one sequence, whose output is requested.
        token_max: The largest token, or 0.
        seq_max: The largest sequence, or 0.
        n_hidden: Width of the hidden states; 0 = none.
        struct: Pointer to the C struct.
        value: The struct itself, for C functions.

    Raises:
        ValidationError: A number is out of range.
    C: struct llama_batch
    """

    def __init__(
        self,
        n_tokens_max: int,
        *,
        n_seq_max: int = 1,
        n_hidden: int = 0,
        library: Library | None = None,
    ) -> None:
        n_tokens_max = check_int("n_tokens_max", n_tokens_max, 1, _MAX_TOKENS)
        n_seq_max = check_int("n_seq_max", n_seq_max, 1, _MAX_SEQUENCES)
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
        self._logits_bytes = ffi.buffer(self._logits)
        # Kept up to date while filling, for `check` and `Context.decode`.
        self.token_max = self.seq_max = 0
        self.single = False
        self._shares = False  # whether a token has more than one sequence
        self.struct: CData = ffi.new("struct llama_batch *")
        self.struct.token = self._token
        self.struct.pos = self._pos
        self.struct.n_seq_id = self._n_seq_id
        self.struct.seq_id = self._seq_id
        self.struct.logits = self._logits
        self.n_hidden = check_int("n_hidden", n_hidden, 0, _MAX_HIDDEN)
        if n_hidden:
            self._hidden = ffi.new("float[]", n_tokens_max * n_hidden)
            self._hidden_bytes = ffi.buffer(self._hidden)
            self.struct.embd = self._hidden
        self.value: CData = self.struct[0]

    def __repr__(self) -> str:
        return f"<Batch {len(self)} of {self.n_tokens_max} tokens>"

    __reduce__ = not_picklable("make another one and add the tokens there")

    def __len__(self) -> int:
        return int(self.struct.n_tokens)

    def clear(self) -> None:
        """Remove all tokens."""
        self.single = self._shares = False
        self.struct.n_tokens = self.token_max = self.seq_max = 0

    def add(self, token: int, pos: int, seq_ids: Sequence[int] = (0,), logits: bool = False) -> int:
        """Append one token.

        Args:
            token: Token id; `Context.decode` checks it against the vocabulary.
            pos: Position in its sequences, from 0.
            seq_ids: The sequences it belongs to.
            logits: Whether to output its logits or embedding.

        Returns:
            Its index in the batch, for `Context.logits`.

        Raises:
            ValidationError: The batch is full, or a number is out of range.
        """
        # Conversions come first: they may run Python code, which could change this batch.
        ids = [check_int("seq_id", s, 0) for s in seq_ids]
        pos, token, logits = check_int("pos", pos, 0), check_int("token", token, 0), bool(logits)
        i = len(self)
        if i >= self.n_tokens_max:
            raise ValidationError(f"the batch is full ({self.n_tokens_max} tokens)")
        if not 1 <= len(set(ids)) == len(ids) <= self.n_seq_max:
            raise ValidationError(
                f"a token of this batch must have 1 to {self.n_seq_max} different sequences, "
                f"got {ids}"
            )
        self.single = False
        self._pos[i], self._token[i], self._logits[i] = pos, token, logits
        self._n_seq_id[i] = len(ids)
        self._seq_id[i][0 : len(ids)] = ids
        self.token_max, self.seq_max = max(self.token_max, token), max(self.seq_max, *ids)
        self._shares |= len(ids) > 1
        self.struct.n_tokens = i + 1
        self.single = i == 0 and logits and not self._shares
        return i

    def fill(
        self, tokens: Sequence[int], pos: int, seq_id: int = 0, *, logits: bool = True
    ) -> None:
        """Replace the content by *tokens* of one sequence, at positions from *pos*.

        Args:
            tokens: 1 to `n_tokens_max` token ids.
            pos: Position of the first.
            seq_id: Their sequence.
            logits: Whether to output the last token's logits or embedding.

        Raises:
            ValidationError: There are too many tokens, or a number is out of range.
        """
        n = len(tokens)
        if not 1 <= n <= self.n_tokens_max:
            raise ValidationError(f"{n} tokens for a batch of 1 to {self.n_tokens_max}")
        # Empty if a number is refused.
        self.struct.n_tokens = self.token_max = self.seq_max = 0
        self.single = self._shares = False
        pos = check_int("pos", pos, 0, INT32_MAX - n)
        seq_id, logits = check_int("seq_id", seq_id, 0), bool(logits)
        if n == 1:  # hot: every generated token
            self._token[0] = self.token_max = check_int("token", tokens[0], 0)
            self._pos[0] = pos
            self._n_seq_id[0] = 1
            self._seq_ids[0] = seq_id
        else:
            try:
                ids = list(map(operator.index, tokens))
            except TypeError:
                raise ValidationError("tokens must be integers") from None
            check_int("token", min(ids), 0)
            self.token_max = check_int("token", max(ids), 0)
            self._token[0:n] = ids
            self._pos[0:n] = range(pos, pos + n)
            self._n_seq_id[0:n] = [1] * n
            if self.n_seq_max == 1:
                self._seq_ids[0:n] = [seq_id] * n
            else:
                for i in range(n):
                    self._seq_ids[i * self.n_seq_max] = seq_id
            self._logits_bytes[0:n] = bytes(n)
        self._logits[n - 1] = logits
        self.seq_max = seq_id
        self.struct.n_tokens, self.single = n, n == 1 and logits

    def put(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        seq_ids: Sequence[int],
        logits: bytes,
    ) -> None:
        """Replace the content by tokens of several sequences, one sequence per token.

        Args:
            tokens: 1 to `n_tokens_max` token ids.
            positions: The position of each in its sequence.
            seq_ids: The sequence of each.
            logits: One byte per token: 1 = output its logits or embedding.

        Raises:
            ValidationError: There are too many tokens, a number is out of range, or the lengths
                differ.
        """
        n = len(tokens)
        if not 1 <= n <= self.n_tokens_max:
            raise ValidationError(f"{n} tokens for a batch of 1 to {self.n_tokens_max}")
        if not n == len(positions) == len(seq_ids) == len(logits):
            raise ValidationError(
                f"{n} tokens, {len(positions)} positions, {len(seq_ids)} sequences and "
                f"{len(logits)} flags must have the same length"
            )
        self.clear()  # empty if a number is refused
        try:
            for name, numbers in (("token", tokens), ("pos", positions), ("seq_id", seq_ids)):
                check_int(name, min(numbers), 0)
                check_int(name, max(numbers), 0, INT32_MAX - 1)
            self._token[0:n] = tokens
            self._pos[0:n] = positions
            if self.n_seq_max == 1:
                self._seq_ids[0:n] = seq_ids
            else:
                for i, seq_id in enumerate(seq_ids):
                    self._seq_ids[i * self.n_seq_max] = seq_id
        except TypeError:
            raise ValidationError("tokens, positions and sequences must be integers") from None
        self._n_seq_id[0:n] = [1] * n
        self._logits_bytes[0:n] = logits
        self.token_max, self.seq_max = max(tokens), max(seq_ids)
        self.struct.n_tokens, self.single = n, n == 1 and bool(logits[0])

    def put_hidden(self, rows: NDArray[np.float32]) -> None:
        """Set the hidden states of the first n tokens.

        Shapes: *rows* (n, n_hidden) float32, n <= `n_tokens_max`.

        Raises:
            ValidationError: They have another shape or type.
        """
        if rows.dtype != "float32" or rows.ndim != 2 or rows.shape[1] != self.n_hidden:
            raise ValidationError(
                f"hidden states must be (n, {self.n_hidden}) float32, got {rows.shape} {rows.dtype}"
            )
        if len(rows) > self.n_tokens_max:
            raise ValidationError(f"{len(rows)} hidden states for {self.n_tokens_max} tokens")
        self._hidden_bytes[0 : rows.nbytes] = rows.tobytes()

    def advance(self, token: int, pos: int) -> None:
        """Replace the token and position of a batch of one token. Hot: every generated token.

        Raises:
            ValidationError: The batch has more or fewer tokens, or a number is out of range.
        """
        token, pos = operator.index(token), operator.index(pos)  # ints that compare as such
        if not (self.single or len(self) == 1) or not (
            0 <= token <= INT32_MAX and 0 <= pos < INT32_MAX
        ):
            raise ValidationError(
                f"token {token} at {pos} cannot replace the one of a batch of {len(self)}"
            )
        self._token[0] = self.token_max = token
        self._pos[0] = pos

    @property
    def wanted(self) -> bytes:
        """One byte per token: 1 = its output is requested."""
        return b"\x01" if self.single else bytes(self._logits_bytes[0 : self.struct.n_tokens])

    def want_all(self) -> None:
        """Request the output of every token."""
        n = len(self)
        self._logits_bytes[0:n] = b"\x01" * n
        self.single = n == 1 and not self._shares

    def last_position(self) -> int:
        """Return the largest position in the batch."""
        return int(max(self._pos[0 : len(self)]))

    def starts(self) -> dict[int, int]:
        """Return the first position of each sequence in the batch."""
        found: dict[int, int] = {}
        for i in range(len(self)):
            pos = self._pos[i]
            for k in range(self._n_seq_id[i]):
                seq_id = self._seq_id[i][k]
                found[seq_id] = min(pos, found.get(seq_id, pos))
        return found

    def check(self, n_vocab: int, n_seq_max: int, kv_unified: bool = True) -> None:
        """Refuse what C would abort on.

        Args:
            n_vocab: Tokens of the model's vocabulary.
            n_seq_max: Sequences of the context.
            kv_unified: Whether its sequences share one cache.

        Raises:
            ValidationError: It is empty or has a token or sequence that does not exist.
        """
        if not self.struct.n_tokens:
            raise ValidationError("the batch is empty")
        if self.token_max >= n_vocab:
            raise ValidationError(f"token {self.token_max} is outside 0..{n_vocab - 1}")
        if self.seq_max >= n_seq_max:
            raise ValidationError(
                f"sequence {self.seq_max} is outside 0..{n_seq_max - 1}; "
                "create the context with a larger n_seq_max"
            )
        if self._shares and not kv_unified:
            raise ValidationError(
                "a token has several sequences, which do not share a cache; create the context "
                "with kv_unified=True"
            )
