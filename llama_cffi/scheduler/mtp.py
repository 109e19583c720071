"""MtpHead: drafts with the model's own head for the token after the next.

The head reads the last hidden state of a token and the token that followed it, and predicts the
one after that (https://arxiv.org/abs/2404.19737). It has a context of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..binding import Batch, Context, Model
from ..errors import LlamaError
from .request import Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

__all__ = ["MtpHead"]


class _Sequence:
    """The state of a request in the head's context.

    Attributes:
        seq_id: Its sequence.
        end: Index after the last token that the head has read; None = none was read.
        hidden: For the token at each index, the hidden state of the token before it.
    """

    def __init__(self, seq_id: int) -> None:
        self.seq_id = seq_id
        self.end: int | None = None
        self.hidden: dict[int, Rows] = {}


class MtpHead:
    """Drafts one token with the model's own head (multi-token prediction).

    Only for models with such a head (`nextn_predict_layers` 1) of GLM-4.5's architecture, and
    builds that run them. The model then computes the hidden state and the logits of every prompt
    token, which slows prefill by the cost of the output layer.

    Args:
        n_threads: CPU threads; 0 = the number of physical cores.

    Attributes:
        n_draft: Maximum number of draft tokens per step: 1. For more, the head would have to read
            its own hidden states, which llama.cpp v0.5.0 exposes through C++ functions only.
        reads_hidden: True: the model must be loaded with its head and output hidden states.
    """

    n_draft = 1
    reads_hidden = True

    def __init__(self, *, n_threads: int = 0) -> None:
        self._n_threads = n_threads
        self._context: Context | None = None
        self._batch: Batch
        self._sequences: dict[Request, _Sequence] = {}
        self._free: list[int] = []

    def __repr__(self) -> str:
        return f"MtpHead({'' if self._context is None else 'in use'})"

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        """Create the head's context.

        Args:
            model: The model that verifies and has the head.
            n_parallel: Maximum number of running requests.
            n_ctx: Maximum number of tokens of one request.

        Raises:
            ValidationError: The model was loaded without its head.
        """
        self._context = Context(
            model,
            n_ctx=n_ctx * n_parallel,
            n_seq_max=n_parallel,
            n_threads=self._n_threads,
            mtp=True,
        )
        self._batch = Batch(self._context.n_batch, n_hidden=model.n_embd_out, library=model.library)
        self._free = list(range(n_parallel))

    def observe(self, request: Request, start: int, hidden: Sequence[Rows]) -> None:
        """Receive the hidden states of a request's tokens from index *start* on.

        Shapes: each of *hidden* (n_embd,) float32.
        """
        sequence = self._sequences.get(request)
        if sequence is None:
            if self._context is None or not self._free:  # preempted requests hold the sequences
                return
            sequence = self._sequences[request] = _Sequence(self._free.pop())
        # Those of rejected draft tokens too: they are overwritten before they are read.
        first = max(start + 1, sequence.end or 0)
        for at in range(first, start + 1 + len(hidden)):
            sequence.hidden[at] = hidden[at - start - 1]

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        """Draft greedily with the head, all requests in one batch."""
        import numpy as np

        assert self._context is not None
        tokens: list[int] = []
        positions: list[int] = []
        seq_ids: list[int] = []
        wanted = bytearray()
        hidden: list[Rows] = []
        rows: dict[int, int] = {}
        for i, request in enumerate(requests):
            sequence = self._sequences.get(request)
            if not lengths[i] or sequence is None:
                continue
            all_tokens = request.tokens
            begin = len(all_tokens)
            while begin - 1 in sequence.hidden:
                begin -= 1
            if sequence.end not in (None, begin):  # hidden states are missing after an error
                self._context.memory.seq_rm(sequence.seq_id)
            end = min(len(all_tokens), begin + self._batch.n_tokens_max - len(tokens))
            if begin >= end:
                continue
            tokens += all_tokens[begin:end]
            positions += request.positions(begin, end)
            seq_ids += [sequence.seq_id] * (end - begin)
            hidden += [sequence.hidden.pop(at) for at in range(begin, end)]
            is_whole = end == len(all_tokens)  # otherwise the rest is decoded next time
            wanted += bytes(end - begin - 1) + bytes([is_whole])
            sequence.end = end
            if is_whole:
                rows[i] = len(tokens) - 1
        drafts: list[list[int]] = [[] for _ in requests]
        if tokens and self._decode(tokens, positions, seq_ids, bytes(wanted), np.stack(hidden)):
            for i, row in rows.items():
                drafts[i].append(int(self._context.logits(row, copy=False).argmax()))
        return drafts

    def forget(self, request: Request) -> None:
        """Free the sequence of a request."""
        sequence = self._sequences.pop(request, None)
        if sequence is not None and self._context is not None:
            self._context.memory.seq_rm(sequence.seq_id)
            self._free.append(sequence.seq_id)

    def close(self) -> None:
        """Close the head's context."""
        self._sequences.clear()
        if self._context is not None:
            self._context.close()
            self._context = None

    def _decode(
        self, tokens: list[int], positions: list[int], seq_ids: list[int], wanted: bytes, rows: Rows
    ) -> bool:
        assert self._context is not None
        self._batch.put(tokens, positions, seq_ids, wanted)
        self._batch.put_hidden(rows)
        try:
            self._context.decode(self._batch)
        except LlamaError:  # drafts are optional
            for sequence in self._sequences.values():
                if sequence.seq_id in seq_ids:
                    self._context.memory.seq_rm(sequence.seq_id)
                    sequence.end = None
            return False
        return True
