"""The tokens that samplers work on: a C array, allocated once and refilled by numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...errors import GenerationError, ValidationError
from ...validation import not_picklable
from ..logits import check_logits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..ffi_types import CData
    from ..model.model import Model

__all__ = ["Candidates"]


class Candidates:
    """Tokens with logits and probabilities, at most the whole vocabulary of a model.

    Samplers sort them, drop some and select one. The memory belongs to this object and stays where
    it is: C borrows it during a call, and refilling allocates nothing.

    Attributes:
        model: The model.
        n_vocab: Tokens of its vocabulary.
        struct: Pointer to the C struct, for raw calls.
    C: llama_token_data_array
    """

    __reduce__ = not_picklable("pickle `ids` and `logits`")

    def __repr__(self) -> str:
        return f"<Candidates of {self.n_vocab} tokens>"

    def __init__(self, model: Model) -> None:
        import numpy as np

        ffi = model.library.ffi
        self.model = model
        self.n_vocab = model.vocab.n_tokens
        self._all_ids = np.arange(self.n_vocab, dtype=np.int32)
        self._memory: NDArray[np.void] = np.zeros(
            self.n_vocab, [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        )
        self._ids, self._logits, self._p = (self._memory[f] for f in ("id", "logit", "p"))
        self._owner = ffi.from_buffer("llama_token_data[]", self._memory, require_writable=True)
        self._data = ffi.cast("llama_token_data *", self._owner)
        self.struct: CData = ffi.new("llama_token_data_array *")
        self._start(0)

    def fill(self, logits: NDArray[np.float32]) -> None:
        """Start over with the whole vocabulary: nothing sorted, dropped or selected.

        Args:
            logits: Shape (n_vocab,), float32; they are copied.

        Raises:
            ValidationError: They have another shape.
        """
        if logits.shape != (self.n_vocab,):
            raise ValidationError(
                f"logits must have the shape ({self.n_vocab},), got {logits.shape}"
            )
        self._ids[:], self._logits[:], self._p[:] = self._all_ids, logits, 0
        self._start(self.n_vocab)

    def fill_some(self, logits: NDArray[np.float32], ids: NDArray[np.integer]) -> None:
        """Start over with only the tokens *ids*, which are not checked.

        Args:
            logits: Logits of the whole vocabulary, shape (n_vocab,), float32.
            ids: Token ids, shape (n,), of any integer dtype such as int32.
        """
        n = len(ids)
        self._ids[:n], self._logits[:n], self._p[:n] = ids, logits[ids], 0
        self._start(n)

    def keep(self, allowed: NDArray[np.bool_]) -> None:
        """Drop the tokens that are not allowed, or set their logits to -inf if they are few.

        Args:
            allowed: Whether each token is allowed, shape (n_vocab,), bool.
        """
        import numpy as np

        array = self.array
        ids, logits = array["id"], array["logit"]
        if len(array) == self.n_vocab:
            tokens = np.flatnonzero(allowed)
            few = 2 * len(tokens) <= self.n_vocab
            changed = tokens if few else np.flatnonzero(~allowed)
            if np.array_equal(ids[changed], changed):  # still in the order of the vocabulary
                if few:
                    n = len(tokens)
                    ids[:n], logits[:n] = tokens, logits[tokens]
                    self.struct.size = n
                else:
                    logits[changed] = -math.inf
                return
        logits[~allowed[ids]] = -math.inf

    @property
    def array(self) -> NDArray[np.void]:
        """The candidates that are left.

        Shapes: (len,) of fields `id` int32, `logit` float32, `p` float32; borrowed: the next fill
        or sampler changes it. Logits may be written; call `changed` afterwards.
        """
        start = self.struct.data - self._data  # xtc drops candidates at the start
        return self._memory[start : start + self.struct.size]

    def __len__(self) -> int:
        return int(self.struct.size)

    @property
    def selected(self) -> int:
        """Index of the selected candidate in `array`, -1 if none is selected yet."""
        return int(self.struct.selected)

    @property
    def sorted(self) -> bool:
        """Whether the logits are known to be in descending order."""
        return bool(self.struct.sorted)

    def changed(self) -> None:
        """Check logits that were written, and mark them as unsorted.

        Raises:
            ValidationError: An id is not a token.
            GenerationError: A logit is NaN or +inf, or all are -inf.
        """
        self.struct.sorted = False
        array = self.array
        if not len(array):
            raise ValidationError("there are no candidates; fill them first")
        # As unsigned numbers, negative ids are large ones.
        if int(array["id"].view("u4").max()) >= self.n_vocab:
            raise ValidationError(f"a candidate's id is outside 0..{self.n_vocab - 1}")
        check_logits(float(array["logit"].max()))

    def token(self) -> int:
        """Return the id of the selected candidate.

        Raises:
            GenerationError: None is selected, or its logit or probability is NaN or infinite.
        """
        struct = self.struct
        i = struct.selected
        if not 0 <= i < struct.size:
            raise GenerationError(
                f"no sampler selected one of {struct.size} candidates; the last sampler must"
            )
        chosen = struct.data[i]
        check_logits(chosen.logit)
        if math.isnan(chosen.p):
            raise GenerationError(f"the probability of the chosen token {chosen.id} is NaN")
        return int(chosen.id)

    def _start(self, n: int) -> None:
        struct = self.struct
        struct.data, struct.size, struct.selected, struct.sorted = self._data, n, -1, False
