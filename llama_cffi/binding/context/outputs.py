"""What the last decode of a context computed: logits and embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ValidationError
from ...validation import integer
from .. import compat
from ..native_object import Handle
from ..sampling.candidates import check_logits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..loading.library import Library
    from ..model.kind import ModelKind
    from ..model.model import Model

__all__ = ["Outputs", "Perf"]

_MOST_VIEWS = 256  # C has at most 256 sequences


@dataclass(frozen=True)
class Perf:
    """What a context computed; the times are 0 with `no_perf`, the default.

    C counts what was decoded between two waits (`synchronize`, reading a result) as one, and says
    1 for no token.

    Attributes:
        load_ms: From the model's load to the first result.
        prompt_ms: Decoding several tokens at once.
        generation_ms: Decoding single tokens.
        n_prompt: Tokens decoded several at once.
        n_generated: Tokens decoded one by one.
    """

    load_ms: float
    prompt_ms: float
    generation_ms: float
    n_prompt: int
    n_generated: int


class Outputs(Handle):
    """The results of a context's last `decode` or `encode`.

    They come as copies. With `copy=False` they are C's own memory, for loops that cannot pay for
    it: borrowed until the next `decode`, `encode` or `close`, after which reading or writing such
    an array can end the process.
    """

    library: Library
    model: Model
    kind: ModelKind
    n_vocab: int
    n_seq_max: int
    pooling: str
    # Which tokens of the last batch have output: one byte each. C forgets to check in places.
    _wanted: bytes
    _embedded: bool  # whether they have embeddings
    _get_row: Callable[[Any, int], Any]
    _views: dict[Any, NDArray[np.float32]]  # of logits, by where they are
    _best: dict[int, int] | None  # output -> its largest logit's token; None = others may write
    _searched: dict[Any, tuple[NDArray[np.float32], Any]]  # the rows where that was found last

    def logits(self, i: int = -1, *, copy: bool = True) -> NDArray[np.float32]:
        """Return the logits of output *i* of the last decode.

        Shapes: (n_vocab,) float32.

        Args:
            i: Index of the token in the batch; negative counts outputs from the end.
            copy: False = C's memory, borrowed until the next decode or `close`.

        Raises:
            ValidationError: That token's output was not asked for, or there are embeddings only.
        C: llama_get_logits_ith
        """
        view = self._view(self.row(i))
        if copy:
            return view.copy()
        self._best = None
        return view

    def argmax(self, i: int = -1) -> int:
        """Return the token with the largest logit of output *i* of the last decode.

        The first call looks through all outputs at once.

        Args:
            i: Index of the token in the batch; negative counts outputs from the end.

        Raises:
            ValidationError: As for `logits`.
            GenerationError: The logits have NaN or +inf, or all are -inf.
        """
        best = self._best
        if best and i in best:  # hot: every generated token of a batch passes here
            return best[i]
        row = self.row(i)
        if best is not None and not best and len(self._wanted) > 1:
            best = self._best = self._search()
            if i in best:
                return best[i]
        logits = self._view(row)
        token = int(logits.argmax())  # of NaN, where there is one
        check_logits(float(logits[token]))
        return token

    def embedding(self, i: int = -1, *, copy: bool = True) -> NDArray[np.float32]:
        """Return the embedding of output *i* of the last decode, without pooling.

        Shapes: (n_embd,) float32.

        Args:
            i: Index of the token in the batch; negative counts outputs from the end.
            copy: False = C's memory, borrowed until the next decode or `close`.

        Raises:
            ValidationError: There are no embeddings, or only pooled ones.
        C: llama_get_embeddings_ith
        """
        self._check_embeddings()
        if self.pooling != "none":
            raise ValidationError(
                f"pooling={self.pooling!r} makes one embedding for each sequence; use "
                "sequence_embedding, or make the context with pooling='none'"
            )
        row = self.library.lib.llama_get_embeddings_ith(self.ptr, self.check_output(i))
        if not row:
            raise ValidationError(f"llama.cpp has no embedding of token {i}")
        embedding = self._array(row, compat.embedding_width(self.library, self.model.ptr))
        return embedding.copy() if copy else embedding

    def sequence_embedding(self, seq_id: int = 0, *, copy: bool = True) -> NDArray[np.float32]:
        """Return the pooled embedding of the tokens that *seq_id* had in the last batch.

        Shapes: (n_embd,) float32, with `rank` pooling (number of classes,).

        Args:
            seq_id: Sequence.
            copy: False = C's memory, borrowed until the next decode or `close`.

        Raises:
            ValidationError: There are no embeddings, they are not pooled, or the sequence was not
                in the batch.
        C: llama_get_embeddings_seq
        """
        self._check_embeddings()
        if self.pooling == "none":
            raise ValidationError("pooling='none' makes an embedding for each token; use embedding")
        seq_id = integer("seq_id", seq_id, 0, self.n_seq_max - 1)
        row = self.library.lib.llama_get_embeddings_seq(self.ptr, seq_id)
        if not row:
            raise ValidationError(f"sequence {seq_id} had no token in the last batch")
        rank = self.pooling == "rank"
        width = compat.n_classes if rank else compat.embedding_width
        embedding = self._array(row, width(self.library, self.model.ptr))
        return embedding.copy() if copy else embedding

    def row(self, i: int) -> Any:
        """Return C's pointer to what `logits` returns.

        Raises:
            ValidationError: As for `logits`.
        """
        if i != -1 or self._wanted != b"\x01":  # hot: every generated token passes here
            i = self.check_output(i)
        row = self._get_row(self._ptr or self.ptr, i) if self.kind.logits else None
        if not row:
            raise ValidationError("this context makes embeddings and no logits")
        return row

    def check_output(self, i: int) -> int:
        """Return *i* if token *i* of the last batch has an output.

        Raises:
            ValidationError: It was not asked for, or there was no successful decode.
        """
        wanted = self._wanted
        if type(i) is int and 0 <= i < len(wanted) and wanted[i]:  # hot
            return i
        i = integer("i", i, -len(wanted), len(wanted) - 1) if wanted else 0
        if not wanted or (wanted[i] != 1 if i >= 0 else -i > wanted.count(1)):
            raise ValidationError(
                f"no output for token {i}: the last decode kept {wanted.count(1)} outputs of "
                f"{len(wanted)} tokens; ask with logits=True in the batch"
            )
        return i

    def _check_embeddings(self) -> None:
        _ = self.ptr  # raises when it is closed
        if not (self._embedded and self._wanted):
            raise ValidationError(
                "the last decode made no embeddings; make the context with embeddings=True"
            )

    def _drop_outputs(self) -> None:
        """Forget what the last decode computed."""
        self._wanted, self._best = b"", {}

    def _search(self) -> dict[int, int]:
        """Return the token with the largest logit of each output; not where it is no number."""
        wanted, width = self._wanted, self.n_vocab
        outputs: Sequence[int] = range(len(wanted))
        if 0 in wanted:
            outputs = [i for i in outputs if wanted[i]]
        n = len(outputs)
        place = self.row(outputs[0]), n
        if place not in self._searched:
            if self.row(outputs[-1]) - place[0] != (n - 1) * width:
                return {}
            logits = self._array(place[0], n * width)
            self._searched = {place: (logits.reshape(n, width), logits.data)}
        rows, numbers = self._searched[place]
        # Beside C's work all else is cold: few functions are called, and numpy's cost the most.
        tokens: list[int] = rows.argmax(axis=1).tolist()
        if all([math.isfinite(numbers[k * width + token]) for k, token in enumerate(tokens)]):
            return dict(zip(outputs, tokens, strict=True))
        return {}

    def _view(self, row: Any) -> NDArray[np.float32]:
        view = self._views.get(row)  # C keeps the places of outputs mostly
        if view is None:
            if len(self._views) >= _MOST_VIEWS:
                self._views.clear()
            view = self._views[row] = self._array(row, self.n_vocab)
        return view

    def _array(self, row: Any, width: int) -> NDArray[np.float32]:
        import numpy as np

        return np.frombuffer(self.library.ffi.buffer(row, width * 4), dtype=np.float32)
