"""What a model has: sizes, special tokens and metadata, as the methods of a class around it."""

from __future__ import annotations

from functools import cached_property

from ..binding import Model

__all__ = ["ContextSize", "ModelFacts"]


class ContextSize(int):
    """A number of tokens that can be called, too: `llm.n_ctx` and `llm.n_ctx()` are equal."""

    def __call__(self) -> int:
        """Return the number."""
        return int(self)


class ModelFacts:
    """The facts about a model that llama-cpp-python and llama-cpp-nanobind have as methods.

    Attributes:
        model: The model.
    """

    model: Model

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The GGUF's scalar metadata as strings."""
        return self.model.metadata

    def n_vocab(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return len(self.model.vocab)

    def n_embd(self) -> int:
        """Return the dimension of the embeddings."""
        return self.model.n_embd

    def n_layer(self) -> int:
        """Return the number of layers."""
        return self.model.n_layer

    def n_params(self) -> int:
        """Return the number of parameters."""
        return self.model.n_params

    def model_size(self) -> int:
        """Return the size of all tensors in bytes."""
        return self.model.size_bytes

    def token_bos(self) -> int:
        """Return the beginning-of-sequence token; -1: none."""
        return _or_minus_1(self.model.vocab.bos)

    def token_eos(self) -> int:
        """Return the end-of-sequence token; -1: none."""
        return _or_minus_1(self.model.vocab.eos)

    def token_eot(self) -> int:
        """Return the end-of-turn token; -1: none."""
        return _or_minus_1(self.model.vocab.eot)

    def token_nl(self) -> int:
        """Return the newline token; -1: none."""
        return _or_minus_1(self.model.vocab.nl)

    def token_to_piece(self, token: int) -> str:
        """Return the text of a token; control tokens are written by name.

        A token that is part of a character becomes U+FFFD; `model.vocab.token_to_piece` returns its
        bytes.

        Raises:
            ValidationError: The token does not exist.
        """
        return self.model.vocab.token_to_piece(token, True).decode("utf-8", "replace")

    def get_chat_template(self, name: str = "") -> str:
        """Return the source of the model's chat template; empty if there is none.

        Args:
            name: One of the further templates of some models, such as `tool_use`.
        """
        if not name:
            return self.model.chat_template or ""
        return self.metadata.get(f"tokenizer.chat_template.{name}", "")


def _or_minus_1(token: int | None) -> int:
    return -1 if token is None else token
