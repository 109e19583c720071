"""Tokenizers: the model's own, or one of Hugging Face's."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..binding import Model

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..binding import Vocab
    from .llama import Llama

__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]


class HFTokenizer(Protocol):
    """The part of a tokenizer of `transformers` that `LlamaHFTokenizer` uses."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Tokenize *text*."""
        ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of *tokens*."""
        ...


class BaseLlamaTokenizer(abc.ABC):
    """Interface of a tokenizer."""

    @abc.abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokenize *text*, UTF-8; with *special*, control tokens spelled out are parsed."""

    @abc.abstractmethod
    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Return the bytes of *tokens*, which follow *prev_tokens*."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of a GGUF model; *llama* is a `Llama` or a `llama_cffi.Model`."""

    def __init__(self, llama: Llama | Model) -> None:
        self._model = llama if isinstance(llama, Model) else llama.model

    @property
    def _vocab(self) -> Vocab:
        return self._model.vocab

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokenize *text*, UTF-8; with *special*, control tokens spelled out are parsed."""
        return self._vocab.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Return the bytes of *tokens*, without the space after BOS; *prev_tokens* is ignored."""
        vocab = self._vocab
        data = b"".join(vocab.token_to_piece(token, special) for token in tokens)
        if data.startswith(b" ") and tokens[0] == vocab.bos:
            data = data[1:]
        return data

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokenize a str."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return *tokens* as a str."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> Self:
        """Load only the tokenizer of a GGUF file."""
        return cls(Model(path, vocab_only=True))


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the package `transformers`, or one with the same `encode` and `decode`."""

    def __init__(self, hf_tokenizer: HFTokenizer) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Tokenize *text*, UTF-8; *special* adds the special tokens around it."""
        decoded = text.decode("utf-8", "ignore")
        return list(self.hf_tokenizer.encode(decoded, add_special_tokens=special))

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Return the bytes of *tokens*; *prev_tokens* decide whether a space precedes them."""
        before = list(prev_tokens or ())
        whole, head = (self._decode(ids, special) for ids in ([*before, *tokens], before))
        return whole[len(head) :] if before else whole

    def _decode(self, tokens: list[int], special: bool) -> bytes:
        text = self.hf_tokenizer.decode(tokens, skip_special_tokens=not special)
        return text.encode("utf-8", "ignore")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> Self:
        """Load a tokenizer from the Hugging Face hub or a folder.

        Raises:
            ImportError: The package `transformers` is not installed.
        """
        from transformers import AutoTokenizer  # type: ignore[import-not-found]

        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path))
