"""The vocabulary: text <-> token ids, and the attributes of each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ...errors import ValidationError
from ...validation import check_int, not_picklable
from .. import compat
from ..memory_limits import check_bytes
from ..native_object import NativeObject
from .deep_stack import call_deep, longest_run

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Vocab", "encode"]

_NO_TOKEN = -1
_SMALL_TEXT = 2**16  # bytes
_BYTES_PER_BYTE = 64  # that C takes to tokenize: measured 36 to 40
# Metadata keys of the special tokens that old builds do not report.
_TOKEN_KEYS = {
    name: f"tokenizer.ggml.{name}_token_id" for name in ("mask", "fim_pad", "fim_rep", "fim_sep")
}


class Vocab:
    """The vocabulary of a model; closes with it.

    Token ids run from 0 to `n_tokens` - 1. Methods that take a token raise ValidationError for
    any other id, if the model has no vocabulary, and once the model is closed.

    Attributes:
        n_tokens: Number of tokens.
    C: struct llama_vocab, llama_vocab_n_tokens
    """

    def __init__(self, model: Model) -> None:
        library = model.library
        self._library, self._gguf = library, model.gguf
        self._ffi, self._lib = library.ffi, library.lib
        self._handle = compat.vocab_of(library, model.ptr)  # borrowed until the model is freed
        self._owner = _ModelInC(model)
        self._name = model.path.name
        self.n_tokens: int = compat.c_function(library, "llama_vocab_n_tokens")(self._handle)
        self._has_text = compat.has_tokens(library, self._handle)
        self._spellings = model.gguf.spellings
        self._is_eog = compat.c_function(library, "llama_vocab_is_eog")
        self._pieces: dict[tuple[int, bool], bytes] = {}
        # Not owned, because a table refers to the vocabulary.
        self._piece_tables: WeakValueDictionary[bool, _PieceTable] = WeakValueDictionary()
        self._eog: dict[int, bool] = {}
        self._eog_tokens: frozenset[int] | None = None
        self._adds_space: bool | None = None

    def __repr__(self) -> str:
        return f"<Vocab of {self._name}: {self.n_tokens} tokens, {self.type}>"

    __reduce__ = not_picklable("pickle token ids or strings instead")

    def __len__(self) -> int:
        return self.n_tokens

    def tokenize(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn text into token ids.

        Args:
            text: UTF-8; a str with lone surrogates is refused.
            add_special: Add BOS and EOS if the model is configured to.
            parse_special: Parse the names of special tokens as those tokens. Leave it off for
                text written by users.

        Raises:
            ValidationError: The text is invalid or too long.
            OutOfMemoryError: It needs more memory than a limit leaves to this process.
        C: llama_tokenize
        """
        data = encode(text)
        capacity = len(data) + 16
        if capacity > 2**31 - 1:
            raise ValidationError(f"the text has {len(data)} bytes; at most 2 GiB are allowed")
        if len(data) > _SMALL_TEXT:
            check_bytes(_BYTES_PER_BYTE * len(data), f"tokenizing {len(data)} bytes of text")
        self._check_spelling(data)
        flags = bool(add_special), bool(parse_special)
        handle, held = self._live_text(), self._owner.hold()
        try:
            run = longest_run(data)
            return call_deep(lambda: self._tokenize(handle, data, capacity, flags), run)
        finally:
            del held

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """Return the bytes of one token, which may be part of a UTF-8 character.

        Args:
            token: Token id.
            special: Render control tokens by name instead of as nothing.

        Raises:
            ValidationError: The token does not exist.
        C: llama_token_to_piece
        """
        piece = self._pieces.get((token, special))
        if piece is None or self._owner.closed:
            piece = self._pieces[token, special] = self._read_piece(self.check(token), special)
        return piece

    def pieces(self, special: bool = False) -> Mapping[int, bytes | None]:
        """Return a table of token -> `token_to_piece`, None for tokens that end generation.

        A piece is read on its first lookup and kept, so later lookups are plain dict accesses.
        """
        return self._piece_tables.setdefault(special, _PieceTable(self, special))

    def detokenize(
        self, tokens: Iterable[int], special: bool = False, *, keep_space: bool = False
    ) -> str:
        """Turn token ids into text; invalid UTF-8 becomes U+FFFD.

        SentencePiece vocabularies put a space before a text (see `adds_space`). It is removed, also
        after BOS, so `detokenize(tokenize(text))` is *text*. Answers continue a text and keep their
        space: the pieces of a stream joined are those of `keep_space=True`.

        Args:
            tokens: Token ids.
            special: Render control tokens by name instead of as nothing.
            keep_space: Keep the space at the beginning.

        Raises:
            ValidationError: A token does not exist.
        """
        data = b"".join(self.token_to_piece(t, special) for t in tokens)
        if not keep_space and data.startswith(b" ") and self.adds_space:
            data = data[1:]
        return data.decode("utf-8", "replace")

    @property
    def adds_space(self) -> bool:
        """Whether `tokenize` puts a space before the text, as SentencePiece does."""
        if self._adds_space is None:
            try:
                tokens = self.tokenize("a", add_special=False)
            except ValidationError:  # it cannot spell the letter
                tokens = []
            self._adds_space = bool(tokens) and self.token_to_piece(tokens[0]).startswith(b" ")
        return self._adds_space

    def is_eog(self, token: int) -> bool:
        """Whether the token ends generation (EOS, EOT, ...). C: llama_vocab_is_eog."""
        known = self._eog.get(token) if type(token) is int else None  # hot
        if known is None or self._owner.closed:
            token = self.check(token)
            known = self._eog[token] = bool(self._is_eog(self._live(), token))
        return known

    @property
    def eog_tokens(self) -> frozenset[int]:
        """All tokens that end generation; computed once, about 0.2 us per token."""
        handle, is_eog = self._live(), self._is_eog
        if self._eog_tokens is None:
            self._eog_tokens = frozenset(t for t in range(self.n_tokens) if is_eog(handle, t))
        return self._eog_tokens

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token. C: llama_vocab_is_control."""
        return bool(self._token_property("llama_vocab_is_control", token))

    def text(self, token: int) -> str:
        """Return the vocabulary's own spelling of a token. C: llama_vocab_get_text."""
        raw = self._token_property("llama_vocab_get_text", token)
        return str(self._ffi.string(raw).decode("utf-8", "replace"))

    def score(self, token: int) -> float:
        """Return the score of a token, 0.0 if unused. C: llama_vocab_get_score."""
        return float(self._token_property("llama_vocab_get_score", token))

    def attr(self, token: int) -> frozenset[str]:
        """Return the attributes of a token, such as `{"control"}`. C: llama_vocab_get_attr."""
        flags = int(self._token_property("llama_vocab_get_attr", token))
        return compat.token_attributes(self._library, flags)

    @property
    def type(self) -> str:
        """Type of tokenizer: `spm`, `bpe`, `wpm`, `ugm`, `rwkv`, ..., `none`.

        C: llama_vocab_type
        """
        return compat.vocab_type(self._library, self._live())

    @property
    def bos(self) -> int | None:
        """Beginning-of-sequence token; None if the model has none. C: llama_vocab_bos."""
        return self._special("bos")

    @property
    def eos(self) -> int | None:
        """End-of-sequence token; None if the model has none. C: llama_vocab_eos."""
        return self._special("eos")

    @property
    def eot(self) -> int | None:
        """End-of-turn token; None if the model has none. C: llama_vocab_eot."""
        return self._special("eot")

    @property
    def sep(self) -> int | None:
        """Separator between sentences; None if the model has none. C: llama_vocab_sep."""
        return self._special("sep")

    @property
    def nl(self) -> int | None:
        """Newline token; None if the model has none. C: llama_vocab_nl."""
        return self._special("nl")

    @property
    def pad(self) -> int | None:
        """Padding token; None if the model has none. C: llama_vocab_pad."""
        return self._special("pad")

    @property
    def mask(self) -> int | None:
        """Mask token; None if the model has none. C: llama_vocab_mask."""
        return self._special("mask")

    @property
    def fim_pre(self) -> int | None:
        """Fill-in-the-middle token before the prefix. C: llama_vocab_fim_pre."""
        return self._special("fim_pre")

    @property
    def fim_suf(self) -> int | None:
        """Fill-in-the-middle token before the suffix. C: llama_vocab_fim_suf."""
        return self._special("fim_suf")

    @property
    def fim_mid(self) -> int | None:
        """Fill-in-the-middle token before the generated middle. C: llama_vocab_fim_mid."""
        return self._special("fim_mid")

    @property
    def fim_pad(self) -> int | None:
        """Fill-in-the-middle padding token. C: llama_vocab_fim_pad."""
        return self._special("fim_pad")

    @property
    def fim_rep(self) -> int | None:
        """Fill-in-the-middle token before a repository name. C: llama_vocab_fim_rep."""
        return self._special("fim_rep")

    @property
    def fim_sep(self) -> int | None:
        """Fill-in-the-middle token before a file name. C: llama_vocab_fim_sep."""
        return self._special("fim_sep")

    @property
    def add_bos(self) -> bool:
        """Whether `tokenize(add_special=True)` puts BOS first. C: llama_vocab_get_add_bos."""
        return bool(self._call("llama_vocab_get_add_bos"))

    @property
    def add_eos(self) -> bool:
        """Whether `tokenize(add_special=True)` puts EOS last. C: llama_vocab_get_add_eos."""
        return bool(self._call("llama_vocab_get_add_eos"))

    @property
    def add_sep(self) -> bool:
        """Whether `tokenize(add_special=True)` puts SEP last. C: llama_vocab_get_add_sep."""
        return compat.add_sep(self._library, self._live())

    def check(self, token: int) -> int:
        """Return *token* if it exists; C aborts the process on any other.

        Raises:
            ValidationError: The token does not exist.
        """
        if type(token) is int and 0 <= token < self.n_tokens:  # hot
            return token
        return check_int("token", token, 0, self.n_tokens - 1)

    def check_all(self, tokens: Iterable[int]) -> list[int]:
        """Return *tokens* as a list if they all exist.

        Raises:
            ValidationError: A token does not exist.
        """
        tokens = list(tokens)
        if {*map(type, tokens)} == {int} and min(tokens) >= 0 and max(tokens) < self.n_tokens:
            return tokens
        return [self.check(token) for token in tokens]

    def _tokenize(
        self, handle: Any, data: bytes, capacity: int, flags: tuple[bool, bool]
    ) -> list[int]:
        while True:
            tokens = self._ffi.new("int32_t[]", capacity)
            n = self._lib.llama_tokenize(handle, data, len(data), tokens, capacity, *flags)
            if n >= 0:
                return list(self._ffi.unpack(tokens, n)) if n else []
            if n == -(2**31) or -n <= capacity:
                raise ValidationError(f"llama_tokenize failed ({n}) on {len(data)} bytes of text")
            capacity = -n

    def _check_spelling(self, data: bytes) -> None:
        """Refuse characters that the vocabulary cannot spell: C aborts on a missing byte."""
        if not self._spellings:
            return
        for character in set(data.decode("utf-8").replace(" ", "\u2581") + "\u2581"):
            spelled = character.encode()
            if spelled in self._spellings:
                continue
            for b in spelled:
                if not {b"<0x%02X>" % b, bytes([b])} & self._spellings:
                    raise ValidationError(
                        f"the vocabulary has no token for {character!r}, nor for its byte {b:#04x}"
                    )

    def _live_text(self) -> Any:
        if not self._has_text:
            raise ValidationError("the model has no vocabulary; pass token ids instead of text")
        return self._live()

    def _special(self, name: str) -> int | None:
        token = compat.special_token(self._library, self._live(), name)
        if token is None:
            value = self._gguf.values.get(_TOKEN_KEYS[name])
            token = value if isinstance(value, int) and 0 <= value < self.n_tokens else _NO_TOKEN
        return None if token == _NO_TOKEN else token

    def _token_property(self, name: str, token: int) -> Any:
        """Call a C function of one token, which aborts if the model has no vocabulary."""
        self._live_text()
        return self._call(name, self.check(token))

    def _call(self, name: str, *args: int) -> Any:
        return compat.c_function(self._library, name)(self._live(), *args)

    def _live(self) -> Any:
        _ = self._owner.ptr  # raises if the model is closed
        return self._handle

    def _read_piece(self, token: int, special: bool) -> bytes:
        special, size = bool(special), 64
        handle = self._live_text()
        buffer = self._ffi.new("char[]", size)
        n = self._lib.llama_token_to_piece(handle, token, buffer, size, 0, special)
        if n < 0:
            buffer, size = self._ffi.new("char[]", -n), -n
            n = self._lib.llama_token_to_piece(handle, token, buffer, size, 0, special)
        return bytes(self._ffi.buffer(buffer, n))


class _ModelInC(NativeObject):
    """Keeps a model alive in C, and closes with it, without a reference to the `Model`."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.ptr, _free_nothing, parent=model, keeps_parent=False)
        self._label = type(model).__name__


def _free_nothing(_ptr: object) -> None:
    """Leave the model to its own finalizer."""


class _PieceTable(dict[int, "bytes | None"]):
    """Token -> piece, None for tokens that end generation; filled by its lookups."""

    def __init__(self, vocab: Vocab, special: bool) -> None:
        super().__init__()
        self._vocab, self._special = vocab, special

    def __missing__(self, token: int) -> bytes | None:
        vocab = self._vocab
        piece = None if vocab.is_eog(token) else vocab.token_to_piece(token, self._special)
        self[token] = piece
        return piece


def encode(text: str | bytes) -> bytes:
    """Return text as UTF-8 bytes.

    Raises:
        ValidationError: It is not a str or bytes, not UTF-8, or has lone surrogates.
    """
    if isinstance(text, (bytearray, memoryview)):
        text = bytes(text)
    if not isinstance(text, (str, bytes)):
        raise ValidationError(f"text must be str or bytes, got {type(text).__name__}")
    if isinstance(text, bytes):
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as e:
            raise ValidationError(f"the text is not UTF-8: {e}") from None
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ValidationError(f"the text cannot be encoded as UTF-8: {e}") from None
