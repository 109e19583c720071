"""One generation held to a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..binding import Candidates, CustomSampler, Model
from ..errors import ValidationError
from .grammar import LlamaGrammar
from .matcher import Matcher
from .triggers import Trigger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Constraint"]


class Constraint:
    """Which tokens may come next in one text, as a grammar says.

    Args:
        model: Whose tokens they are.
        grammar: What the text must look like.
        start_after: The text is free until this has come, which it must; the grammar is about
            what follows.
        triggers: The text is free until one of these comes, if any does; the grammar is about the
            trigger and what follows.

    Raises:
        GrammarError: The grammar asks for what the model lacks, or refuses a trigger.
        ValidationError: The model has no vocabulary, or both *start_after* and *triggers* are
            given.
    """

    def __init__(
        self,
        model: Model,
        grammar: LlamaGrammar,
        start_after: str | None = None,
        *,
        triggers: Sequence[str] = (),
    ) -> None:
        if start_after and triggers:
            raise ValidationError("a constraint has either start_after or triggers")
        self.model = model
        self._must_start = bool(start_after)
        self._pending = False  # whether a token was chosen among what `apply` left
        trigger = None
        if start_after:
            trigger = Trigger.of([start_after], included=False)
        elif triggers:
            trigger = Trigger.of(triggers, included=True)
        self._state = Matcher(model, grammar, trigger)

    @property
    def waiting(self) -> bool:
        """Whether the text is still free."""
        return self._state.waiting

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self._state.complete and not (self._must_start and self.waiting)

    @property
    def ended(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._state.ended

    def allows(self, token: int) -> bool:
        """Whether *token* may come next; nothing changes.

        Raises:
            ValidationError: No such token.
        """
        if self._must_start and self.waiting and self.model.vocab.is_eog(token):
            return False
        return self._state.allows(token)

    def apply(self, candidates: Candidates) -> None:
        """Leave no candidate that may not come next.

        Raises:
            GenerationError: Nothing may come next, or the grammar is too hard to follow here.
        """
        if len(candidates) == 1 and self.allows(int(candidates.array["id"][0])):
            return  # a forced token: no mask is needed
        allowed = self.allowed()
        if allowed is not None:
            candidates.keep(allowed)

    def allowed(self) -> NDArray[np.bool_] | None:
        """Return whether each token may come next, shape (n_vocab,), bool; None = all may.

        Raises:
            GenerationError: Nothing may come next, or the grammar is too hard to follow here.
        """
        allowed = self._state.allowed()
        if self._must_start and self.waiting:
            return self._no_end() if allowed is None else allowed & self._no_end()
        return allowed

    def accept(self, token: int) -> None:
        """Go on by *token*.

        Raises:
            ValidationError: It may not come next; nothing changed.
        """
        if not self.complete and self.model.vocab.is_eog(token):
            raise ValidationError(f"the text cannot end here (token {token})")
        self._state.accept(token)

    def forced_tokens(self) -> list[int]:
        """Return tokens that are the only way on, so that none of them need be sampled.

        Each of them is the only one that `apply` would leave at its place. Where the grammar
        leaves one text but several ways to cut it into tokens, llguidance's masks allow only the
        cut of the model's own tokenizer, and these are its tokens as far as what may follow the
        text cannot change them. So to skip them changes no probability.
        `accept` each that was taken.
        """
        return self._state.forced()

    def _no_end(self) -> NDArray[np.bool_]:
        """Return all tokens but those that end the text, shape (n_vocab,)."""
        import numpy as np

        allowed = np.ones(self.model.vocab.n_tokens, np.bool_)
        allowed[[*self.model.vocab.eog_tokens]] = False
        return allowed

    def reset(self) -> None:
        """Begin again."""
        self._pending = False
        self._state.reset()

    def sampler(self) -> CustomSampler:
        """Return a link for one `SamplerChain`, to stand before the samplers that choose.

        Tokens that the chain accepts count when the sampler was applied before, so those of a
        prompt do not. One chain at a time may have it. In the chain it raises what `apply` and
        `accept` raise.
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
