"""Tokenizers: the model's own, or one of Hugging Face."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..binding import Model

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..api.llama import Llama
    from ..binding import Vocab

__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]


class BaseLlamaTokenizer(abc.ABC):
    """Text <-> token ids."""

    @abc.abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Turn text into token ids; *special* reads the names of special tokens as such."""

    @abc.abstractmethod
    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Turn token ids into text; *prev_tokens* stand before them."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of a model; *llama* is a `Llama` or a `Model`."""

    def __init__(self, llama: Llama | Model) -> None:
        self._model = llama if isinstance(llama, Model) else llama.model

    @property
    def _vocab(self) -> Vocab:
        return self._model.vocab

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Turn text into token ids; *special* reads the names of special tokens as such."""
        return self._vocab.tokenize(text, add_bos, special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Turn token ids into text; the space that follows BOS is left out."""
        vocab = self._vocab
        data = b"".join(vocab.token_to_piece(token, special) for token in tokens)
        if data.startswith(b" ") and tokens[0] == vocab.bos:
            data = data[1:]
        return data

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Do `tokenize` with a str."""
        return self.tokenize(text.encode("utf-8", "ignore"), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Do `detokenize` and return a str."""
        return self.detokenize(tokens).decode("utf-8", "ignore")

    @classmethod
    def from_ggml_file(cls, path: str) -> Self:
        """Load the tokenizer of a GGUF file alone."""
        return cls(Model(path, vocab_only=True))


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the package `transformers`, or anything with its `encode` and `decode`."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Turn text into token ids; *special* adds those around a text."""
        found = self.hf_tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=special)
        return list(found)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """Turn token ids into text; *prev_tokens* decide about a space before it."""
        before = list(prev_tokens or ())
        whole, head = (self._decode(ids, special) for ids in ([*before, *tokens], before))
        return whole[len(head) :] if before else whole

    def _decode(self, tokens: list[int], special: bool) -> bytes:
        text = self.hf_tokenizer.decode(tokens, skip_special_tokens=not special)
        return str(text).encode("utf-8", "ignore")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> Self:
        """Load one from the hub or a folder.

        Raises:
            ImportError: The package `transformers` is not installed.
        """
        from transformers import AutoTokenizer  # type: ignore[import-not-found]

        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path))
