"""Llama token by token: evaluate, sample, look at the logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..api import llama
from ..binding import Batch
from ..engine.engine import Engine
from ..errors import ValidationError
from ..generation.cancellation import CancelToken
from ..generation.prompt import Prompt
from ..generation.sampler_chains import build_chain
from ..generation.sampling_params import SamplingParams
from ..generation.stats import GenerationStats
from ..validation import check_int
from .llama_cache import LlamaState
from .processors import several

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..generation.slot import Slot

__all__ = ["Stepping", "check_tfs"]


def check_tfs(tfs_z: float | None) -> None:
    """Refuse tail-free sampling, which llama.cpp removed in 2024.

    Raises:
        ValidationError: It is on.
    """
    if tfs_z not in (None, 1.0):
        raise ValidationError(f"tfs_z={tfs_z}: llama.cpp has no tail-free sampling; use min_p")


class Stepping(llama.Llama):
    """What a program needs that decodes by itself.

    Attributes:
        logits_all: Whether `eval` keeps the logits of every token.
        last_n_tokens_size: How many tokens back the penalties look.
    """

    logits_all: bool
    last_n_tokens_size: int

    @property
    def _tokens(self) -> list[int]:
        """The evaluated tokens.

        Raises:
            ValidationError: The engine has many requests, so no one state.
        """
        if isinstance(self.engine, Engine):  # also while a stream of it waits
            return self.engine.tokens
        with self.engine.idle() as slot:
            return list(slot.tokens)

    @property  # type: ignore[override]
    def n_tokens(self) -> int:
        """How many tokens are evaluated; set it to a smaller number to forget the last ones."""
        return len(self._tokens)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        with self.engine.idle() as slot:
            kept = slot.tokens[: check_int("n_tokens", n, 0, len(slot.tokens))]
            slot.reuse(Prompt([*kept, -1]))  # all but the last are kept

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """The evaluated tokens: (n_ctx,) int32, zeros after the first `n_tokens`."""
        import numpy as np

        ids, tokens = np.zeros(self.engine.n_ctx, np.int32), self._tokens
        ids[: len(tokens)] = tokens
        return ids

    @property
    def eval_tokens(self) -> deque[int]:
        """The evaluated tokens."""
        return deque(self._tokens, maxlen=self.engine.n_ctx)

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        import numpy as np

        # The operating system gives memory for the rows that are written only.
        return np.zeros((self.engine.n_ctx, len(self.model.vocab)), np.float32)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Logits: row i is of what follows token i. (n_ctx, n_vocab) float32.

        With `logits_all` those of every token that `eval` and `generate` evaluated, otherwise of
        the last one.
        """
        if not self.logits_all:
            with self.engine.idle() as slot, suppress(ValidationError):  # nothing was evaluated
                self._rows[len(slot.tokens) - 1] = self.engine.context.logits(copy=False)
        return self._rows

    @property
    def eval_logits(self) -> deque[list[float]]:
        """The rows of `scores` that are known: all with `logits_all`, else the last."""
        n = self.n_tokens
        first = 0 if self.logits_all else max(0, n - 1)
        return deque(self.scores[first:n].tolist(), maxlen=self.engine.n_ctx)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate *tokens* after those that are.

        Raises:
            KvCacheFullError: They do not fit.
            ValidationError: One is no token.
        """
        checked = self._checked(tokens)
        with self.engine.idle() as slot:
            self._feed(slot, checked)

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        grammar: Any = None,
        idx: int | None = None,
    ) -> int:
        """Choose the token after those that are evaluated, without evaluating it.

        The arguments are those of `create_completion`; a grammar begins anew with each call.

        Raises:
            ValidationError: Nothing was evaluated, or *idx* is not the last token.
        """
        params = self._params(
            top_k, top_p, min_p, typical_p, temp, repeat_penalty, frequency_penalty,
            presence_penalty, tfs_z, mirostat_mode, mirostat_tau, mirostat_eta, logits_processor,
            grammar,
        )  # fmt: skip
        with self.engine.idle() as slot, closing(build_chain(self.model, params)) as chain:
            last = len(slot.tokens) - 1
            if idx not in (None, -1, last) or last < 0:
                raise ValidationError(
                    f"idx={idx}: there are {last + 1} tokens, and only the last one is sampled from"
                    if last >= 0
                    else "nothing is evaluated; call eval(tokens) first"
                )
            for token in _history(slot.tokens, params):
                chain.accept(token)
            return chain.sample(self.engine.context)

    def _params(
        self,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        temp: float,
        repeat_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
        tfs_z: float,
        mirostat_mode: int,
        mirostat_tau: float,
        mirostat_eta: float,
        logits_processor: Any,
        grammar: Any,
    ) -> SamplingParams:
        check_tfs(tfs_z)
        return SamplingParams(
            temperature=temp,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            top_k=top_k,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            penalty_last_n=self.last_n_tokens_size,
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            seed=self.config.seed,
            logits_processor=several(logits_processor),
            grammar=grammar,
        )

    def generate(  # type: ignore[override]
        self, tokens: Any, *args: Any, **options: Any
    ) -> Any:
        """Continue *tokens*: yield token after token without end, EOG tokens among them.

        What is common with the tokens that are evaluated is not evaluated again. Tokens that are
        sent to the generator follow the one that it gave. With a text for *tokens* it is
        `llama_cffi.Llama.generate`.

        Args:
            tokens: Token ids; with `reset=False` they follow those that are evaluated.
            *args: `top_k`, `top_p`, `min_p`, `typical_p`, `temp`, `repeat_penalty`, `reset`,
                `frequency_penalty`, `presence_penalty`, `tfs_z`, `mirostat_mode`, `mirostat_tau`,
                `mirostat_eta`, `penalize_nl`, `logits_processor`, `stopping_criteria`, `grammar`:
                as in `create_completion`.
            **options: The same by name.

        Raises:
            ValidationError: There is no token, or an argument is out of range.
            KvCacheFullError: The context is full.
        """
        if isinstance(tokens, str):
            return super().generate(tokens, *args, **options)
        return self._generate(tokens, *args, **options)

    def _generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        grammar: Any = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        params = self._params(
            top_k, top_p, min_p, typical_p, temp, repeat_penalty, frequency_penalty,
            presence_penalty, tfs_z, mirostat_mode, mirostat_tau, mirostat_eta, logits_processor,
            grammar,
        )  # fmt: skip
        held = [] if reset else self._tokens
        held += self._checked(tokens)
        if not held:
            raise ValidationError("there is no token to continue")
        return self._continue(held, params, several(stopping_criteria))

    def _continue(
        self, held: list[int], params: SamplingParams, criteria: Sequence[Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        with closing(build_chain(self.model, params)) as chain:
            for token in _history(held, params):
                chain.accept(token)
            while True:
                # What others evaluated between two steps is evaluated anew.
                with self.engine.idle() as slot:
                    self._feed(slot, held[slot.reuse(Prompt(held)) :])
                    token = chain.sample(self.engine.context)
                    if criteria and self._ends(held, criteria):
                        return
                sent = self._checked((yield token))
                for other in sent:
                    chain.accept(other)
                held += [token, *sent]

    def _checked(self, tokens: Sequence[int] | None) -> list[int]:
        return self.model.vocab.check_all(tokens or ())

    def _ends(self, held: list[int], criteria: Sequence[Any]) -> bool:
        import numpy as np

        ids, logits = np.array(held, np.int32), self.engine.context.logits()
        return any(criterion(ids, logits) for criterion in criteria)

    def _all_rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Evaluate *tokens* anew and return the logits of each: (len(tokens), n_vocab)."""
        with self.engine.idle() as slot:
            slot.clear()
            self._feed(slot, self._checked(tokens), keeps=True)
        return self._rows[: len(tokens)]

    def _feed(self, slot: Slot, tokens: Sequence[int], keeps: bool = False) -> None:
        """Decode *tokens* after those of the slot; keep their logits if wanted."""
        context = self.engine.context
        stop = CancelToken(context.abort_flag)
        with stop.running():
            if not (keeps or self.logits_all):
                if tokens:
                    slot.feed(tokens, stop, GenerationStats())
                return
            batch = Batch(context.n_batch, library=self.model.library)
            for begin in range(0, len(tokens), context.n_batch):
                part, start = tokens[begin : begin + context.n_batch], len(slot.tokens)
                batch.fill(part, start, slot.seq_id)
                batch.want_all()
                with stop.interruptible():
                    context.decode(batch)
                slot.tokens += part
                for i in range(len(part)):
                    self._rows[start + i] = context.logits(i, copy=False)

    # State

    def save_state(self, path: Any = None) -> Any:
        """Return a `LlamaState`; with a *path* write a file as `llama_cffi.Llama` does."""
        if path is not None:
            return super().save_state(path)
        import numpy as np

        tokens, state = np.array(self._tokens, np.int32), self.get_state()
        n = len(tokens)
        rows = self._rows[:n].copy() if self.logits_all else np.empty((0, 0), np.float32)
        return LlamaState(tokens, rows, n, state, len(state), self.config.seed)

    def load_state(self, state: Any) -> Any:
        """Take back what `save_state` returned or wrote.

        The last token is evaluated again, so that `sample` has its logits.

        Raises:
            ValidationError: It is damaged, or of another model or context.
        """
        if not isinstance(state, LlamaState):
            return super().load_state(state)
        self.set_state(state.llama_state)
        if len(state.scores):
            self._rows[: state.n_tokens] = state.scores
        self.config.seed = state.seed
        with self.engine.idle() as slot:
            tokens = list(slot.tokens)
            self._feed(slot, tokens[slot.reuse(Prompt(tokens)) :])
        return None


def _history(tokens: Sequence[int], params: SamplingParams) -> Sequence[int]:
    """Return the tokens that the samplers look back at."""
    n = len(tokens) if params.n_history is None else params.n_history
    return tokens[max(0, len(tokens) - n) :]
