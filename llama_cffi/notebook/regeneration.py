"""Regeneration: an answer whose tokens can be replaced, with a new end after each replacement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..api.llama import Llama
from ..api.running import run
from ..errors import ValidationError
from ..validation import check_int, check_type
from .html import probability

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.chat_completions import Message, MoreChatCompletionOptions
    from ..generation.logprobs import Logprob

__all__ = ["Alternative", "ChosenToken", "Regeneration"]

# A continuation has no state of these from before it.
_REFUSED = frozenset((
    "stream", "n", "tools", "functions", "response_format", "grammar", "structured",
    "thinking_budget",
))  # fmt: skip


class Alternative(NamedTuple):
    """A token that could stand at a place, and its probability there."""

    token: int
    text: str
    probability: float


class ChosenToken(NamedTuple):
    """A token of the answer.

    Attributes:
        alternatives: The most probable tokens at its place, and the chosen one.
        choice: Index of the chosen one.
    """

    alternatives: tuple[Alternative, ...]
    choice: int

    @property
    def chosen(self) -> Alternative:
        """The token itself."""
        return self.alternatives[self.choice]


class Regeneration:
    """An answer, token by token, that can be continued from any place with another choice.

    The prompt and the tokens before that place are reused from the KV cache.

    Args:
        llm: The model.
        prompt: The user's message, or a conversation.
        n_alternatives: Alternatives for each token, 1 to 20.
        max_tokens: Most tokens of the answer.
        **options: See `MoreChatCompletionOptions`.

    Attributes:
        tokens: The answer so far.

    Raises:
        ValidationError: An argument is out of range, or an option needs the whole answer.
    """

    def __init__(
        self,
        llm: Llama,
        prompt: str | Sequence[Message],
        n_alternatives: int,
        max_tokens: int,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> None:
        check_type("llm", llm, Llama)
        if taken := _REFUSED.intersection(options):
            raise ValidationError(
                f"{', '.join(sorted(taken))} cannot be continued from the middle of an answer"
            )
        self._llm, self._options = llm, options
        self._messages: Sequence[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        self._n = check_int("n_alternatives", n_alternatives, 1, 20)
        self._max_tokens = check_int("max_tokens", max_tokens, 1)
        self.tokens: list[ChosenToken] = []
        llm.chat.prepare(self._messages, self._merged(max_tokens))  # refuses what is wrong now

    @property
    def text(self) -> str:
        """The answer so far."""
        vocab = self._llm.model.vocab
        return vocab.detokenize([token.chosen.token for token in self.tokens])

    def choose(self, index: int, choice: int) -> None:
        """Take another alternative at a place, and drop what follows it.

        Raises:
            ValidationError: There is no such token or alternative.
        """
        index = check_int("index", index, 0, len(self.tokens) - 1)
        token = self.tokens[index]
        choice = check_int("choice", choice, 0, len(token.alternatives) - 1)
        self.tokens[index:] = [token._replace(choice=choice)]

    def run(self) -> Iterator[ChosenToken]:
        """Continue the answer to its end; yield each new token, which is in `tokens` then.

        Raises:
            LlamaError: As for `Llama.create_chat_completion`.
        """
        answer = [token.chosen.token for token in self.tokens]
        rest = self._max_tokens - len(answer)
        if rest <= 0 or (answer and self._llm.model.vocab.is_eog(answer[-1])):
            return
        request = self._llm.chat.prepare(self._messages, self._merged(rest)).request
        request = replace(request, tokens=[*request.tokens, *answer])
        (steps,) = run(self._llm.engine, request)
        for step in steps:
            if step.logprob is not None:
                self.tokens.append(self._token(step.logprob))
                yield self.tokens[-1]

    def _merged(self, max_tokens: int) -> Any:
        return {
            **self._options, "max_tokens": max_tokens, "logprobs": True, "top_logprobs": self._n
        }  # fmt: skip

    def _token(self, found: Logprob) -> ChosenToken:
        ids = [token for token, _ in found.top]
        pairs = list(found.top)
        if found.token not in ids:
            ids.append(found.token)
            pairs.append((found.token, found.logprob))
        alternatives = tuple(
            Alternative(token, self._llm.token_to_piece(token), probability(logprob))
            for token, logprob in pairs
        )
        return ChosenToken(alternatives, ids.index(found.token))
