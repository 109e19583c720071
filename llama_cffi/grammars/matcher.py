"""Matcher: the state of a text in a grammar, and the tokens allowed next; with llguidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..binding import Model
from ..errors import GenerationError, GrammarError, ValidationError
from .grammar import LlamaGrammar
from .tokens import Tokens
from .triggers import Trigger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Matcher"]


class Matcher:
    """The state of a text in a grammar: llguidance's counterpart of `binding.Grammar`.

    Args:
        model: The model whose tokens are matched.
        grammar: The grammar.
        trigger: Everything is allowed before it; None: the grammar starts immediately.

    Raises:
        GrammarError: The model lacks a token of the grammar, or the grammar rejects its trigger.
        ValidationError: The model has no vocabulary.
    """

    def __init__(self, model: Model, grammar: LlamaGrammar, trigger: Trigger | None = None) -> None:
        import numpy as np

        self._vocab = model.vocab
        self._n_vocab = model.vocab.n_tokens
        self._tokens = Tokens.of(model)
        self._grammar = grammar
        self._matcher = self._tokens.matcher(grammar)
        self._bits: NDArray[np.uint8] = np.zeros(-(-self._n_vocab // 32) * 4, np.uint8)
        self._address = self._bits.ctypes.data
        self._trigger = trigger
        self._refused: dict[bytes, NDArray[np.bool_] | None] = {}
        self._recent = (
            b""  # the end of the unconstrained text, which may contain the beginning of a trigger
        )
        self._rejected: list[int] = []  # tokens that were chosen next, and cannot come
        self.waiting = trigger is not None
        if trigger is not None:
            for text in trigger.begins():
                if not self._matches_start(text):
                    raise GrammarError(f"the grammar refuses its trigger {text!r}")
            for token in trigger.tokens:
                self._check_token(token)

    @property
    def complete(self) -> bool:
        """Whether the text may end here; always True while waiting for a trigger."""
        return self.waiting or bool(self._matcher.is_accepting())

    @property
    def ended(self) -> bool:
        """Whether only the end can follow."""
        return not self.waiting and bool(self._matcher.is_stopped())

    def allows(self, token: int) -> bool:
        """Return whether *token* is allowed next, without accepting it.

        Raises:
            ValidationError: The token does not exist.
        """
        token = self._vocab.check(token)
        if self.waiting:
            refused = self._refused_now()
            return (refused is None or not refused[token]) and not self._breaks(token)
        if self._vocab.is_eog(token):
            return self.complete
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> NDArray[np.bool_] | None:
        """Return whether each token is allowed next, shape (n_vocab,), bool; None: all are.

        Raises:
            GenerationError: No token is allowed, or the grammar is too complex here.
        """
        import numpy as np

        if self.waiting:
            refused = self._refused_now()
            allowed = None if refused is None else ~refused
            if self._rejected:
                allowed = np.ones(self._n_vocab, np.bool_) if allowed is None else allowed
                allowed[self._rejected] = False
            return allowed
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
        if self._matcher.is_error() or not self._bits.any():
            raise self._failure()
        bits = np.unpackbits(self._bits, count=self._n_vocab, bitorder="little")
        return bits.view(np.bool_)

    def rejects(self, token: int) -> bool:
        """Whether *token* completes a pattern with text that the grammar refuses; remembers it."""
        if not self._breaks(token):
            return False
        self._rejected.append(token)
        return True

    def accept(self, token: int) -> None:
        """Accept *token*. An end token is accepted if `complete`, and changes nothing.

        Raises:
            ValidationError: The token is not allowed; nothing has changed.
            GenerationError: The grammar is too complex here.
        """
        token = self._vocab.check(token)
        if self._vocab.is_eog(token):
            if not self.complete:
                raise ValidationError(f"the text cannot end here (token {token})")
        elif self._trigger is not None and self.waiting:
            self._watch(self._trigger, token)
        elif self._matcher.try_consume_tokens([token]) != 1:
            if self._matcher.is_error():
                raise self._failure()
            piece = self._tokens.pieces[token]
            raise ValidationError(f"the grammar does not allow token {token} ({piece!r}) here")

    def forced(self) -> list[int]:
        """Return the forced tokens, the only continuation; empty if there are several."""
        return [] if self.waiting else list(self._matcher.compute_ff_tokens())

    def reset(self) -> None:
        """Return to the beginning."""
        self._rejected.clear()
        self._matcher = self._tokens.matcher(self._grammar)
        self.waiting, self._recent = self._trigger is not None, b""

    def _watch(self, trigger: Trigger, token: int) -> None:
        begun: bytes | None
        if token in trigger.tokens:
            begun, tokens = self._tokens.pieces[token], [token]
        else:
            text = self._recent + self._tokens.pieces[token]
            begun = trigger.find(text)
            if begun is None:
                self._rejected.clear()
                self._recent = trigger.kept(text)
                return
            tokens = self._tokens.spell(begun)
        if self._matcher.try_consume_tokens(tokens) != len(tokens):
            self._matcher = self._tokens.matcher(self._grammar)
            raise ValidationError(f"the grammar cannot begin with {begun!r}")
        self.waiting, self._recent = False, b""

    def _refused_now(self) -> NDArray[np.bool_] | None:
        """Return which tokens complete a trigger followed by text that the grammar rejects."""
        import numpy as np

        assert self._trigger is not None
        begun = self._trigger.begun(self._recent)
        if begun not in self._refused:
            tokens = [
                token
                for token, text in self._trigger.completed_by(begun, self._tokens)
                if not self._matches_start(text)
            ]
            refused = np.zeros(self._n_vocab, np.bool_)
            refused[tokens] = True
            self._refused[begun] = refused if tokens else None
        return self._refused[begun]

    def _breaks(self, token: int) -> bool:
        """Whether *token* completes a pattern with text that the grammar refuses."""
        trigger = self._trigger
        if not self.waiting or trigger is None or not trigger.patterns or token in trigger.tokens:
            return False
        if self._vocab.is_eog(token):
            return False
        begun = trigger.find(self._recent + self._tokens.pieces[token])
        return begun is not None and not self._matches_start(begun)

    def _check_token(self, token: int) -> None:
        """Refuse a trigger token that ends the text, or that the grammar cannot begin with."""
        if self._vocab.is_eog(self._vocab.check(token)):
            raise ValidationError(f"the trigger token {token} ends the text")
        if self._tokens.matcher(self._grammar).try_consume_tokens([token]) != 1:
            piece = self._tokens.pieces[token]
            raise GrammarError(f"the grammar refuses its trigger token {token} ({piece!r})")

    def _matches_start(self, text: bytes) -> bool:
        try:
            tokens = self._tokens.spell(text)
        except ValidationError:
            return False
        first = self._tokens.matcher(self._grammar)
        return bool(first.try_consume_tokens(tokens) == len(tokens))

    def _failure(self) -> GenerationError:
        reason = str(self._matcher.get_error()).split("\n<state>")[0] or "no token matches"
        return GenerationError(f"nothing can follow in the {self._grammar.kind} grammar: {reason}")
