"""Constraint: holds one generation to a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..binding import Candidates, CustomSampler, Model
from ..binding.sampling.triggers import TriggerLike
from ..errors import ValidationError
from ..validation import not_picklable
from .grammar import LlamaGrammar
from .matcher import Matcher
from .triggers import Trigger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Constraint"]


class Constraint:
    """Restricts the tokens of one text to a grammar.

    Args:
        model: The model whose tokens are restricted.
        grammar: The grammar.
        start_after: A required string; text up to it is unconstrained, and text after it must match
            the grammar.
        triggers: Strings, token ids and compiled patterns; text before the first of them is
            unconstrained, and text from there on must match the grammar. With a pattern it must
            match from the first group on, or the whole match if it has none.

    Raises:
        GrammarError: The model lacks a token of the grammar, or the grammar rejects a trigger.
        ValidationError: The model has no vocabulary, or both *start_after* and *triggers* are
            given.
    """

    __reduce__ = not_picklable("pickle its LlamaGrammar")

    def __repr__(self) -> str:
        state = "ended" if self.ended else "complete" if self.complete else "open"
        return f"<Constraint {state}>"

    def __init__(
        self,
        model: Model,
        grammar: LlamaGrammar,
        start_after: str | None = None,
        *,
        triggers: Sequence[TriggerLike] = (),
    ) -> None:
        if start_after and triggers:
            raise ValidationError("start_after and triggers exclude each other; give only one")
        self.model = model
        self._must_start = bool(start_after)
        self._pending = False  # whether the next token is sampled from a mask of `apply`
        trigger = None
        if start_after:
            trigger = Trigger.of([start_after], included=False)
        elif triggers:
            trigger = Trigger.of(triggers, included=True)
        self._state = Matcher(model, grammar, trigger)

    @property
    def waiting(self) -> bool:
        """Whether the text is still unconstrained."""
        return self._state.waiting

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self._state.complete and not (self._must_start and self.waiting)

    @property
    def ended(self) -> bool:
        """Whether only the end can follow."""
        return self._state.ended

    def allows(self, token: int) -> bool:
        """Return whether *token* is allowed next, without accepting it.

        Raises:
            ValidationError: The token does not exist.
        """
        if self._must_start and self.waiting and self.model.vocab.is_eog(token):
            return False
        return self._state.allows(token)

    def apply(self, candidates: Candidates) -> None:
        """Remove the candidates that are not allowed next.

        Raises:
            GenerationError: No token is allowed, or the grammar is too complex here.
        """
        if len(candidates) == 1 and self.allows(int(candidates.array["id"][0])):
            return  # a forced token: no mask is needed
        allowed = self.allowed()
        if allowed is not None:
            candidates.keep(allowed)

    def allowed(self) -> NDArray[np.bool_] | None:
        """Return whether each token is allowed next, shape (n_vocab,), bool; None: all are.

        Raises:
            GenerationError: No token is allowed, or the grammar is too complex here.
        """
        allowed = self._state.allowed()
        if self._must_start and self.waiting:
            return self._no_end() if allowed is None else allowed & self._no_end()
        return allowed

    def rejects(self, token: int) -> bool:
        """Whether *token* completes a pattern with text that the grammar refuses.

        Which tokens do is not known before one is chosen. `allowed` leaves it out from then on.
        """
        return self._state.rejects(token)

    def accept(self, token: int) -> None:
        """Accept *token*.

        Raises:
            ValidationError: The token is not allowed; nothing has changed.
        """
        if not self.complete and self.model.vocab.is_eog(token):
            raise ValidationError(f"the text cannot end here (token {token})")
        self._state.accept(token)

    def forced_tokens(self) -> list[int]:
        """Return the forced tokens, which need not be sampled; `accept` each that is used.

        Each is the only token that `apply` would allow at its position. Where the grammar allows a
        single text that has several tokenizations, llguidance's masks allow only that of the
        model's tokenizer, and these are its tokens as far as later text cannot change them. So
        skipping the sampling changes no probability.
        """
        return self._state.forced()

    def _no_end(self) -> NDArray[np.bool_]:
        """Return a mask of all tokens except end tokens, shape (n_vocab,), bool."""
        import numpy as np

        allowed = np.ones(self.model.vocab.n_tokens, np.bool_)
        allowed[[*self.model.vocab.eog_tokens]] = False
        return allowed

    def reset(self) -> None:
        """Return to the beginning."""
        self._pending = False
        self._state.reset()

    def sampler(self) -> CustomSampler:
        """Return a sampler for one `SamplerChain`, to be added before the samplers that select.

        Accepted tokens count only if the sampler was applied before, so prompt tokens do not. Only
        one chain at a time may use it. The chain raises the errors of `apply` and of `accept`.
        """

        def apply(_: Any) -> None:
            self._pending = True
            assert sampler.candidates is not None
            self.apply(sampler.candidates)

        def accept(token: int) -> None:
            if self._pending:
                self._pending = False
                self.accept(token)

        sampler = CustomSampler(
            self.model, name="structured", apply=apply, accept=accept, reset=self.reset
        )
        return sampler
