"""Token by token: evaluate, sample, read the logits."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import TYPE_CHECKING

from ..binding import Batch
from ..engine.engine import Engine
from ..errors import ValidationError
from ..generation.cancellation import CancelToken
from ..generation.prompt import Prompt, common_prefix_length
from ..generation.sampler_chains import build_chain
from ..generation.sampling_params import SamplingParams
from ..generation.stats import GenerationStats
from ..validation import check_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..api.running import AnyEngine
    from ..generation.slot import Slot
    from .processors import StoppingCriteria

__all__ = ["TokenStepper"]


class TokenStepper:
    """Decodes in an engine's context one step at a time.

    Args:
        engine: Every step waits until it is idle. An `InferenceEngine` refuses: many requests
            share its context.
        logits_all: Keep the logits of every evaluated token, not only of the last one.
    """

    def __init__(self, engine: AnyEngine, logits_all: bool) -> None:
        self._engine, self._model, self.logits_all = engine, engine.model, logits_all
        self._scored: list[int] = []  # the tokens that the first rows follow

    @property
    def tokens(self) -> list[int]:
        """The evaluated tokens.

        Raises:
            ValidationError: Many requests share the context.
        """
        if isinstance(self._engine, Engine):  # even while a stream holds it
            return self._engine.tokens
        with self._engine.idle() as slot:
            return list(slot.tokens)

    def truncate(self, n: int) -> None:
        """Keep the first *n* evaluated tokens.

        Raises:
            ValidationError: Fewer are evaluated.
        """
        with self._engine.idle() as slot:
            kept = slot.tokens[: check_int("n_tokens", n, 0, len(slot.tokens))]
            slot.reuse(Prompt([*kept, -1]))  # reuse always leaves the last one to decode

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        import numpy as np

        # The operating system allocates only the rows that are written.
        return np.zeros((self._engine.n_ctx, len(self._model.vocab)), np.float32)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Row i: the logits after token i. (n_ctx, n_vocab) float32; see `Llama.scores`."""
        if not self.logits_all:
            with self._engine.idle() as slot, suppress(ValidationError):  # nothing was evaluated
                self._rows[len(slot.tokens) - 1] = self._engine.context.logits(copy=False)
        return self._rows

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate *tokens* after the evaluated ones; see `Llama.eval`."""
        checked = self._checked(tokens)
        with self._engine.idle() as slot:
            self._feed(slot, checked)

    def eval_last(self) -> None:
        """Evaluate the last token again: a restored state has no logits."""
        with self._engine.idle() as slot:
            tokens = Prompt(slot.tokens)
            self._feed(slot, tokens[slot.reuse(tokens) :])

    def eval_anew(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Evaluate *tokens* from the start; return their logits: (len(tokens), n_vocab) float32."""
        with self._engine.idle() as slot:
            slot.clear()
            self._feed(slot, self._checked(tokens), keep_logits=True)
        return self._rows[: len(tokens)]

    def sample(self, params: SamplingParams, idx: int | None) -> int:
        """Choose the next token without evaluating it; see `Llama.sample`."""
        with self._engine.idle() as slot, closing(build_chain(self._model, params)) as chain:
            n = len(slot.tokens)
            if not n:
                raise ValidationError("no tokens are evaluated; call eval(tokens) first")
            i = n - 1 if idx is None or idx == -1 else check_int("idx", idx, 0, n - 1)
            for token in _history(slot.tokens[: i + 1], params):
                chain.accept(token)
            if i == n - 1:
                return chain.sample(self._engine.context)
            n_scored = common_prefix_length(self._scored, slot.tokens)
            if i >= n_scored:
                raise ValidationError(
                    f"idx={i}: of the {n} evaluated tokens, the logits are kept of the first "
                    f"{n_scored} and of the last, idx={n - 1}; load the model with "
                    "logits_all=True and evaluate with eval or generate"
                )
            return chain.sample_logits(self._rows[i])

    def generate(
        self,
        tokens: Sequence[int],
        params: SamplingParams,
        reset: bool,
        criteria: Sequence[StoppingCriteria],
    ) -> Generator[int, Sequence[int] | None, None]:
        """Check *tokens* and return a generator of those that follow; see `Llama.generate`."""
        held = [] if reset else self.tokens
        held += self._checked(tokens)
        if not held:
            raise ValidationError("no tokens to continue: give at least one")
        return self._generate(held, params, criteria)

    def _generate(
        self, held: list[int], params: SamplingParams, criteria: Sequence[StoppingCriteria]
    ) -> Generator[int, Sequence[int] | None, None]:
        with closing(build_chain(self._model, params)) as chain:
            for token in _history(held, params):
                chain.accept(token)
            while True:
                # Other calls may have used the context between two steps.
                with self._engine.idle() as slot:
                    self._feed(slot, held[slot.reuse(Prompt(held)) :])
                    token = chain.sample(self._engine.context)
                    if criteria and self._is_stopped(held, criteria):
                        return
                sent = self._checked((yield token))
                for other in sent:
                    chain.accept(other)
                held += [token, *sent]

    def restore_scores(self, rows: NDArray[np.float32]) -> None:
        """Take back the logits of the first tokens: (n, n_vocab) float32."""
        if len(rows):
            self._rows[: len(rows)] = rows
            self._scored = self.tokens[: len(rows)]

    def _checked(self, tokens: Sequence[int] | None) -> list[int]:
        return self._model.vocab.check_all(tokens or ())

    def _is_stopped(self, held: list[int], criteria: Sequence[StoppingCriteria]) -> bool:
        import numpy as np

        ids, logits = np.array(held, np.int32), self._engine.context.logits()
        return any(criterion(ids, logits) for criterion in criteria)

    def _feed(self, slot: Slot, tokens: Sequence[int], keep_logits: bool = False) -> None:
        """Decode *tokens* after those of the slot; store their logits where they are kept."""
        context = self._engine.context
        stop = CancelToken(context.abort_flag)
        with stop.running():
            if not (keep_logits or self.logits_all):
                if tokens:
                    slot.feed(tokens, stop, GenerationStats())
                return
            self._scored = self._scored[: common_prefix_length(self._scored, slot.tokens)]
            batch = Batch(context.n_batch, library=self._model.library)
            for begin in range(0, len(tokens), context.n_batch):
                part, start = tokens[begin : begin + context.n_batch], len(slot.tokens)
                batch.fill(part, start, slot.seq_id)
                batch.want_all()
                with stop.interruptible():
                    context.decode(batch)
                slot.tokens += part
                for i in range(len(part)):
                    self._rows[start + i] = context.logits(i, copy=False)
                if len(self._scored) == start:
                    self._scored += part


def _history(tokens: Sequence[int], params: SamplingParams) -> Sequence[int]:
    """Return the tokens that the samplers look back at."""
    n = len(tokens) if params.n_history is None else params.n_history
    return tokens[max(0, len(tokens) - n) :]
