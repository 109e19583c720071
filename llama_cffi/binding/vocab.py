"""Text <-> token ids, and what each token is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from . import compat
from .checks import integer
from .deep_stack import call_deep, longest_run

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Vocab", "encode"]

_NO_TOKEN = -1


class Vocab:
    """The vocabulary of a model; lives and closes with it."""

    def __init__(self, model: Model) -> None:
        library = model.library
        self._model = model
        self._ffi, self._lib = library.ffi, library.lib
        self._handle = compat.vocab_of(library, model.ptr)  # borrowed until the model is freed
        self.n_tokens: int = compat.call(library, "llama_vocab_n_tokens")(self._handle)
        self._has_text = compat.has_tokens(library, self._handle)
        self._spellings = model.gguf.spellings
        self._is_eog = compat.call(library, "llama_vocab_is_eog")
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def __len__(self) -> int:
        return self.n_tokens

    def tokenize(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turn text into token ids.

        Args:
            text: UTF-8; a str with lone surrogates is refused.
            add_special: Add BOS/EOS where the model wants them.
            parse_special: Read the text of special tokens as those tokens; leave it off for
                text that users wrote.

        Raises:
            ValidationError: The text is not valid, or too long.
        C: llama_tokenize
        """
        data = encode(text)
        capacity = len(data) + 16
        if capacity > 2**31 - 1:
            raise ValidationError(f"the text has {len(data)} bytes; 2 GiB is the limit")
        self._check_spelling(data)
        handle = self._live_text()
        return call_deep(
            lambda: self._tokenize(handle, data, capacity, add_special, parse_special),
            longest_run(data),
        )

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """Return the bytes of one token; they may be part of a UTF-8 character.

        Args:
            token: Token id.
            special: Whether control tokens have text (else they are empty).

        Raises:
            ValidationError: No such token.
        C: llama_token_to_piece
        """
        piece = self._pieces.get((token, special))
        if piece is None or self._model.closed:
            piece = self._pieces[token, special] = self._read_piece(self.check(token), special)
        return piece

    def detokenize(self, tokens: Iterable[int], special: bool = False) -> str:
        """Turn token ids into text; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValidationError: No such token.
        """
        return b"".join(self.token_to_piece(t, special) for t in tokens).decode("utf-8", "replace")

    def is_eog(self, token: int) -> bool:
        """Whether the token ends generation (EOS, EOT, ...). C: llama_vocab_is_eog."""
        return bool(self._is_eog(self._live(), self.check(token)))

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token. C: llama_vocab_is_control."""
        return bool(self._call("llama_vocab_is_control", self.check(token)))

    def text(self, token: int) -> str:
        """Return the vocabulary's own spelling of a token. C: llama_vocab_get_text."""
        self._live_text()
        raw = self._call("llama_vocab_get_text", self.check(token))
        return str(self._ffi.string(raw).decode("utf-8", "replace"))

    @property
    def bos(self) -> int | None:
        """Beginning-of-sequence token, None when the model has none. C: llama_vocab_bos."""
        return self._special("llama_vocab_bos")

    @property
    def eos(self) -> int | None:
        """End-of-sequence token, None when the model has none. C: llama_vocab_eos."""
        return self._special("llama_vocab_eos")

    @property
    def eot(self) -> int | None:
        """End-of-turn token, None when the model has none. C: llama_vocab_eot."""
        return self._special("llama_vocab_eot")

    @property
    def add_bos(self) -> bool:
        """Whether `tokenize(add_special=True)` puts BOS first. C: llama_vocab_get_add_bos."""
        return bool(self._call("llama_vocab_get_add_bos"))

    def check(self, token: int) -> int:
        """Return *token* if the vocabulary has it: C aborts the process on any other.

        Raises:
            ValidationError: No such token.
        """
        if type(token) is int and 0 <= token < self.n_tokens:  # hot
            return token
        return integer("token", token, 0, self.n_tokens - 1)

    def _tokenize(
        self, handle: Any, data: bytes, capacity: int, add_special: bool, parse_special: bool
    ) -> list[int]:
        flags = bool(add_special), bool(parse_special)
        while True:
            tokens = self._ffi.new("int32_t[]", capacity)
            n = self._lib.llama_tokenize(handle, data, len(data), tokens, capacity, *flags)
            if n >= 0:
                return list(self._ffi.unpack(tokens, n)) if n else []
            if n == -(2**31) or -n <= capacity:
                raise ValidationError(f"llama_tokenize failed ({n}) on {len(data)} bytes of text")
            capacity = -n

    def _check_spelling(self, data: bytes) -> None:
        """Refuse characters that the vocabulary cannot spell: C aborts on the missing byte."""
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
            raise ValidationError("the model has no vocabulary, so no text: give it token ids")
        return self._live()

    def _special(self, name: str) -> int | None:
        token = int(self._call(name))
        return None if token == _NO_TOKEN else token

    def _call(self, name: str, *args: int) -> Any:
        return compat.call(self._model.library, name)(self._live(), *args)

    def _live(self) -> Any:
        _ = self._model.ptr  # raises when the model is closed
        return self._handle

    def _read_piece(self, token: int, special: bool) -> bytes:
        handle, size = self._live_text(), 64
        buffer = self._ffi.new("char[]", size)
        n = self._lib.llama_token_to_piece(handle, token, buffer, size, 0, special)
        if n < 0:
            buffer, size = self._ffi.new("char[]", -n), -n
            n = self._lib.llama_token_to_piece(handle, token, buffer, size, 0, special)
        return bytes(self._ffi.buffer(buffer, n))


def encode(text: str | bytes) -> bytes:
    """Return text as UTF-8.

    Raises:
        ValidationError: It is not UTF-8, has lone surrogates, or is no text.
    """
    if isinstance(text, (bytearray, memoryview)):
        text = bytes(text)
    if not isinstance(text, (str, bytes)):
        raise ValidationError(f"{type(text).__name__} is no text")
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
