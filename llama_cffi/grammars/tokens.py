"""Tokens: a model's vocabulary for llguidance, with the grammars compiled for it."""

from __future__ import annotations

import itertools
import threading
import weakref
from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from ..binding import Model
from ..errors import GrammarError, LlamaError, ValidationError
from .grammar import LlamaGrammar, compiling

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Tokens"]

_N_COMPILED = 32
_MARK = b"\x02"
# Sets of tokens that are allowed as a whole if a grammar allows all of them, in addition to
# llguidance's own for JSON strings. They make regular expressions over words 60 times faster.
_WORDS = ["[A-Za-z ]{1,8}", "[a-z ]{1,8}", "[a-z]{1,8}"]
_known: weakref.WeakKeyDictionary[Model, Tokens] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Tokens:
    """The tokens of a model as bytes.

    Control tokens, which have no text in an answer, never match text: a grammar must name them.

    Args:
        model: The model; no reference is kept.

    Attributes:
        pieces: The bytes of each token; for control tokens, those of its name.
        special: Tokens without text.

    Raises:
        ValidationError: The model has no vocabulary.
    """

    def __init__(self, model: Model) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        vocab = model.vocab
        self.pieces = [vocab.token_to_piece(token) for token in range(vocab.n_tokens)]
        self.special = {token for token, piece in enumerate(self.pieces) if not piece}
        self.special |= vocab.eog_tokens
        for token in self.special:
            self.pieces[token] = vocab.token_to_piece(token, special=True)
        self._names = {
            self.pieces[token].decode(errors="replace"): token
            for token in self.special - vocab.eog_tokens
        }
        self._by_piece = {
            piece: token
            for token, piece in reversed([*enumerate(self.pieces)])
            if token not in self.special
        }
        self._longest = max(map(len, self._by_piece), default=0)
        self._sorted: list[tuple[bytes, int]] = []
        self._vocab = weakref.ref(vocab)
        plain = vocab.tokenize("a", add_special=False)
        self._marks = b"".join(self.pieces[token] for token in plain) != b"a"
        ends = sorted(vocab.eog_tokens) or [0]
        tokenizer = _Tokenizer(self, ends[0])
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(tokenizer),
            n_vocab=vocab.n_tokens,
            eos_token=ends,
            slices=[*LLTokenizer.general_slices(), *_WORDS],
        )
        self._compiled: OrderedDict[LlamaGrammar, LLMatcher] = OrderedDict()

    @classmethod
    def of(cls, model: Model) -> Tokens:
        """Return the instance of *model*, created on first use."""
        with _lock:
            known = _known.get(model)
            if known is None:
                known = _known[model] = cls(model)
            return known

    def matcher(self, grammar: LlamaGrammar) -> LLMatcher:
        """Return a matcher at the beginning of *grammar*, which is compiled once.

        Raises:
            GrammarError: The grammar names a token that the model lacks, or is too large.
        """
        from llguidance import LLMatcher

        with _lock:
            first = self._compiled.pop(grammar, None)
            if first is None:
                text = grammar.compiled(self._names)
                first = compiling(text, lambda: LLMatcher(self._tokenizer, text, log_level=0))
                if first.is_error():
                    raise GrammarError(f"the grammar cannot be compiled: {first.get_error()}")
            self._compiled[grammar] = first
            if len(self._compiled) > _N_COMPILED:
                self._compiled.popitem(last=False)
            return first.deep_copy()

    def spell(self, text: bytes) -> list[int]:
        """Return tokens that spell *text*, longest match first; it may split characters.

        Raises:
            ValidationError: The vocabulary cannot spell *text*.
        """
        tokens, at = [], 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                token = self._by_piece.get(text[at:end])
                if token is not None:
                    break
            else:
                raise ValidationError(f"the vocabulary cannot spell {text[at:]!r:.80}")
            tokens.append(token)
            at = end
        return tokens

    def encode(self, text: bytes) -> list[int]:
        """Return the model's tokens for *text* in the middle of a text."""
        try:
            vocab = self._vocab()
            if vocab is None:
                return self.spell(text)
            mark = _MARK if self._marks else b""
            tokens = vocab.tokenize(mark + text, add_special=False)
            if mark:  # after it, the tokenizer does not add its leading space
                before = b""
                while tokens and not before.endswith(mark):
                    before += self.pieces[tokens.pop(0)]
            if b"".join(self.pieces[token] for token in tokens) == text:
                return tokens
        except LlamaError:
            pass  # not UTF-8, or closed meanwhile
        return self.spell(text)

    def beginning(self, text: bytes) -> list[int]:
        """Return the tokens that begin with *text*."""
        if not self._sorted:
            self._sorted = sorted((piece, token) for token, piece in enumerate(self.pieces))
        first = bisect_left(self._sorted, (text, -1))
        following = itertools.islice(self._sorted, first, None)
        return [
            token for _, token in itertools.takewhile(lambda p: p[0].startswith(text), following)
        ]

    def containing(self, text: bytes) -> list[int]:
        """Return the tokens that contain *text*."""
        return [token for token, piece in enumerate(self.pieces) if text in piece]


class _Tokenizer:
    """The tokenizer interface that llguidance expects."""

    def __init__(self, tokens: Tokens, end: int) -> None:
        self.tokens, self.special_token_ids = tokens.pieces, sorted(tokens.special)
        self.eos_token_id, self.bos_token_id = end, None
        self._encode = tokens.encode

    def __call__(self, text: Any) -> list[int]:
        return self._encode(text if isinstance(text, bytes) else str(text).encode())
