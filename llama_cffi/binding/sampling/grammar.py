"""Grammars: text that a model must follow, from the first character or from a trigger on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from ...errors import GenerationError, GrammarError, ValidationError
from ...gbnf.machine import Machine
from ...gbnf.normal import normalize
from ...gbnf.parser import parse
from .. import compat
from ..model.model import Model
from ..model.vocab import encode
from ..native_object import NativeObject
from .candidates import Candidates
from .triggers import pattern_start

__all__ = ["Grammar"]


class Grammar(NativeObject):
    """A grammar that says which tokens may come next.

    One thread at a time may use it.

    With triggers it is lazy: everything is allowed until a trigger comes, then the text from the
    trigger's beginning on must follow the grammar.

    C's engine does the work on the whole vocabulary, except where the text can be read in very
    many ways, as with `("a"+)+`: C could hang on that, so Python does it, more slowly.

    Args:
        model: Whose tokens they are; closes this grammar when it closes.
        grammar: GBNF.
        root: The rule that the text follows.
        triggers: What starts a lazy grammar, wherever it comes in the text: words, and compiled
            patterns, where the grammar matches from the first group on, or the match.
        trigger_tokens: Tokens that start a lazy grammar; the grammar begins with their text.

    Raises:
        GrammarError: The grammar does not parse, is one that C does not survive, or refuses the
            text of a trigger.
        ValidationError: The model has no vocabulary, or a trigger is none.
    C: llama_sampler_init_grammar
    """

    def __init__(
        self,
        model: Model,
        grammar: str,
        root: str = "root",
        *,
        triggers: Sequence[str | re.Pattern[str]] = (),
        trigger_tokens: Sequence[int] = (),
    ) -> None:
        library, vocab = model.library, model.vocab
        if not compat.has_tokens(library, compat.vocab_of(library, model.ptr)):
            raise ValidationError("the model has no vocabulary, so no grammar can apply to it")
        rules, index = parse(grammar, root)
        normal = normalize(grammar, rules, index)
        try:
            self._machine = Machine(normal)
        except GenerationError as e:
            raise GrammarError(str(e)) from None
        self._triggers = _Triggers(model, self._machine, triggers, trigger_tokens)
        with library.logs.capture() as lines:
            ptr = compat.grammar_sampler(library, model.ptr, normal.text())
        if not ptr:
            raise GrammarError(
                f"llama.cpp refused the grammar: {'; '.join(lines) or 'no reason given'}. Please "
                "report it with the grammar"
            )
        super().__init__(ptr, library.lib.llama_sampler_free, parent=model)
        self.model, self._vocab = model, vocab
        self._apply, self._accept = (
            library.lib.llama_sampler_apply,
            library.lib.llama_sampler_accept,
        )
        self._one = library.ffi.new("llama_token_data *")
        self._one_array = library.ffi.new("llama_token_data_array *", {"data": self._one})
        self._for_c = self._in_c = not self._machine.explodes()
        self._state = self._machine.start
        self._waiting = bool(self._triggers)

    @property
    def waiting(self) -> bool:
        """Whether a lazy grammar still waits for its trigger."""
        return self._waiting

    @property
    def complete(self) -> bool:
        """Whether the text may end here; always as long as the grammar waits."""
        return self._waiting or self._machine.complete(self._state)

    @property
    def ended(self) -> bool:
        """Whether nothing but the end can follow."""
        return not self._waiting and self._machine.ended(self._state)

    def allows(self, token: int) -> bool:
        """Whether *token* may come next; nothing changes.

        A token that leads deeper or to more ways than C can take may not.

        Raises:
            ValidationError: No such token.
        """
        _ = self.ptr  # raises when it is closed
        token = self._vocab.check(token)
        if self._waiting:
            return True
        if self._vocab.is_eog(token):
            return self._machine.complete(self._state)
        piece = self._vocab.token_to_piece(token, True)
        try:
            return self._machine.feed(self._state, piece) is not None
        except GenerationError:
            return False

    def apply(self, candidates: Candidates) -> None:
        """Set the logits of the tokens that may not come next to -inf.

        Raises:
            ValidationError: The candidates are of another model, empty, or their ids no tokens.
            GenerationError: A logit is NaN or +inf, or all are -inf already.
        C: llama_sampler_apply
        """
        if candidates.model is not self.model:
            raise ValidationError("the candidates are of another model than the grammar")
        ptr = self.ptr
        if self._waiting:
            return
        candidates.changed()  # C checks no id, and leaves the mark of sorted logits
        if self._use_c():
            self._apply(ptr, candidates.struct)
        else:
            array = candidates.array
            forbidden = [not self.allows(token) for token in array["id"].tolist()]
            array["logit"][forbidden] = -math.inf

    def accept(self, token: int) -> None:
        """Go on by *token*. The end is accepted where `complete`, and changes nothing.

        Raises:
            ValidationError: The grammar does not allow it; nothing changed.
            GenerationError: A trigger came with text that the grammar refuses, or the text can
                be read in too many ways for C; nothing changed.
        C: llama_sampler_accept
        """
        _ = self.ptr
        token = self._vocab.check(token)
        if self._vocab.is_eog(token):
            if not self.complete:
                raise ValidationError(f"the text cannot end here (token {token}): {self._where()}")
            return
        if self._waiting:
            if (found := self._triggers.find(token)) is not None:
                text, tokens = found
                self._start(text, tokens)
            return
        piece = self._vocab.token_to_piece(token, True)
        state = self._machine.feed(self._state, piece)
        if state is None or not self._c_allows(token):
            raise ValidationError(
                f"the grammar does not allow token {token} ({piece!r}) here; {self._where()}"
            )
        if self._in_c:
            self._accept(self.ptr, token)
        self._state = state

    def reset(self) -> None:
        """Begin again, waiting for the trigger if there is one. C: llama_sampler_reset."""
        self.model.library.lib.llama_sampler_reset(self.ptr)
        self._state = self._machine.start
        self._triggers.reset()
        self._waiting, self._in_c = bool(self._triggers), self._for_c

    def _start(self, text: bytes, tokens: list[int]) -> None:
        """Stop waiting; *tokens* are the text from the trigger's beginning on."""
        states = [self._machine.start]
        for token in tokens:
            state = self._machine.feed(states[-1], self._vocab.token_to_piece(token, True))
            if state is None:
                raise GenerationError(
                    f"the trigger came in {text!r}, which the grammar refuses; let the grammar "
                    "take what the model writes there"
                )
            states.append(state)
        for token, self._state in zip(tokens, states, strict=False):
            if not self._c_allows(token):
                self.reset()
                raise GenerationError(f"llama.cpp refuses token {token} of {text!r}")
            if self._in_c:
                self._accept(self.ptr, token)
        self._state, self._waiting = states[-1], False

    def _use_c(self) -> bool:
        """Whether C can go on; once it cannot, Python does until `reset`."""
        self._in_c = self._in_c and self._machine.fits(self._state)
        return self._in_c

    def _c_allows(self, token: int) -> bool:
        """Ask C, where it is used; accepting what it refuses would abort the process."""
        if not self._use_c():
            return True
        one, array = self._one, self._one_array
        one.id, one.logit = token, 0.0
        array.size, array.selected = 1, -1
        self._apply(self.ptr, array)
        return bool(one.logit == 0.0)

    def _where(self) -> str:
        return f"what can come: {self._machine.describe(self._state)}"

    def __repr__(self) -> str:
        state = "closed" if self.closed else "waiting" if self._waiting else "active"
        return f"<Grammar {state}>"


class _Triggers:
    """Finds triggers in the text that was accepted so far."""

    def __init__(
        self,
        model: Model,
        machine: Machine,
        triggers: Iterable[str | re.Pattern[str]],
        tokens: Iterable[int],
    ) -> None:
        if isinstance(triggers, str):
            raise ValidationError(f"triggers are a list of words: [{triggers!r}]")
        triggers = [*triggers]
        self._vocab = model.vocab
        self._patterns = [t for t in triggers if isinstance(t, re.Pattern)]
        self._words = [encode(t) for t in triggers if not isinstance(t, re.Pattern)]
        self._tokens = {self._vocab.check(token) for token in tokens}
        for word in self._words:
            if not word or b"\0" in word:
                raise ValidationError(f"the trigger {word!r} is empty or has a NUL character")
            self._check(machine, word, repr(word.decode()))
        for token in self._tokens:
            if self._vocab.is_eog(token):
                raise ValidationError(f"the trigger token {token} ends the text")
            piece = self._vocab.token_to_piece(token, True)
            self._check(machine, piece, f"token {token} ({piece!r})")
        for pattern in self._patterns:
            if not isinstance(pattern.pattern, str):
                raise ValidationError(f"the trigger {pattern.pattern!r} must match str, not bytes")
        self._longest = math.inf if self._patterns else max(map(len, self._words), default=0)
        self._recent: list[tuple[int, bytes]] = []  # tokens in which a trigger may have begun
        self._by_piece: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._words or self._tokens or self._patterns)

    def reset(self) -> None:
        """Forget the text."""
        self._recent = []

    def find(self, token: int) -> tuple[bytes, list[int]] | None:
        """Add *token*, or return the text from the first trigger on and tokens that spell it."""
        piece = self._vocab.token_to_piece(token, True)
        if token in self._tokens:
            return piece, [token]
        recent = [*self._recent, (token, piece)]
        text = b"".join(part for _, part in recent)
        starts = [start for word in self._words if (start := text.find(word)) >= 0]
        if self._patterns and (found := pattern_start(self._patterns, text)) is not None:
            starts.append(found)
        if not starts:
            before = len(text)
            while recent and (before := before - len(recent[0][1])) >= self._longest - 1:
                recent.pop(0)
            self._recent = recent
            return None
        start = min(starts)
        tokens, at = [], 0
        for known, part in recent:
            if at < start < at + len(part):
                tokens += self._spell(part[start - at :])
            elif at >= start and part:
                tokens.append(known)
            at += len(part)
        return text[start:], tokens

    def _spell(self, text: bytes) -> list[int]:
        """Return tokens whose pieces are *text*; it may be part of a character."""
        if not self._by_piece:
            for token in reversed(range(self._vocab.n_tokens)):
                if not self._vocab.is_eog(token):
                    self._by_piece[self._vocab.token_to_piece(token, True)] = token
        tokens, at = [], 0
        while at < len(text):
            ends = range(len(text), at, -1)
            end = next((end for end in ends if text[at:end] in self._by_piece), at)
            if end == at:
                raise GenerationError(f"the vocabulary cannot spell {text[at:]!r} of a trigger")
            tokens.append(self._by_piece[text[at:end]])
            at = end
        return tokens

    def _check(self, machine: Machine, text: bytes, what: str) -> None:
        if machine.feed(machine.start, text) is None:
            raise GrammarError(
                f"the grammar refuses its trigger {what}: it must be able to begin with that; "
                f"what can come first: {machine.describe(machine.start)}"
            )
