"""The prompts of questions: the input first, so that all questions share it as a prefix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from ..errors import ContextOverflowError, ValidationError
from ..validation import shown
from .labels import LETTERS, Labels, find_labels

if TYPE_CHECKING:
    from ..binding import Model
    from ..generation.chat_renderer import ChatRenderer, RenderedChat
    from .questions import Question

__all__ = ["DecisionInput", "LabelledPrompt", "PromptMaker"]

#: Text, a conversation, or any other JSON value.
DecisionInput: TypeAlias = str | Mapping[str, object] | Sequence[object]

_YES_NO = "Yes", "No"


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt whose next token answers a question.

    Attributes:
        tokens: The prompt.
        labels: The token of each option, in the order of the question's options.
    """

    tokens: list[int]
    labels: tuple[int, ...]


class PromptMaker:
    """Makes the prompts of one call.

    The text is that of `transformers.decision`, so models trained on its prompts recognize it.

    Args:
        model: The model.
        renderer: Renders conversations.
        n_ctx: Context size in tokens.
    """

    def __init__(self, model: Model, renderer: ChatRenderer, n_ctx: int) -> None:
        self._model, self._renderer, self._n_ctx = model, renderer, n_ctx
        self._labels: dict[tuple[bool, int], Labels] = {}

    def prompts(
        self, input: DecisionInput, question: Question[object], average_orders: bool
    ) -> list[LabelledPrompt]:
        """Return the prompt of a question about an input; two prompts with *average_orders*.

        Raises:
            ContextOverflowError: A prompt does not fit into the context.
            TemplateError: The chat template refuses the input.
            ValidationError: The input has the wrong shape, or the vocabulary has too few labels.
        """
        order = range(len(question.options))
        found = [self._prompt(input, question, order)]
        if average_orders and _lines(question, self._texts(question), order):
            found.append(self._prompt(input, question, order[::-1]))
        return found

    def _prompt(
        self, input: DecisionInput, question: Question[object], order: Sequence[int]
    ) -> LabelledPrompt:
        """Return the prompt with the options in an order."""
        n, is_predicate = len(order), question.kind == "predicate"
        texts = self._texts(question)
        chat, spaced = self._render(input, _asked(question, texts, order))
        labels = self._labels.get((is_predicate, n))
        if labels is None:
            vocab, special = self._model.vocab, self._renderer.special_tokens
            first = [_YES_NO] if is_predicate else []
            labels = find_labels(vocab, chat.text, n, first, special=special, spaced=spaced)
            self._labels[is_predicate, n] = labels
            if labels.texts != texts:
                chat, _ = self._render(input, _asked(question, labels.texts, order))
        if len(chat.tokens) >= self._n_ctx:
            raise ContextOverflowError(
                f"the input with the question {shown(question.name or question.instructions)} has "
                f"{len(chat.tokens)} tokens, and with n_ctx={self._n_ctx} a prompt may have "
                f"{self._n_ctx - 1}; shorten the input or increase n_ctx"
            )
        label_of = dict(zip(_labelled(question, order), labels.tokens, strict=True))
        return LabelledPrompt(chat.tokens, tuple(label_of[i] for i in range(n)))

    def _texts(self, question: Question[object]) -> tuple[str, ...]:
        """Return the labels as they are known; before they are searched, the likely ones."""
        is_predicate, n = question.kind == "predicate", len(question.options)
        if known := self._labels.get((is_predicate, n)):
            return known.texts
        return _YES_NO if is_predicate else (LETTERS * (n // len(LETTERS) + 1))[:n]

    def _render(self, input: DecisionInput, asked: str) -> tuple[RenderedChat, bool]:
        messages: list[Mapping[str, object]] = []
        if isinstance(input, str):
            before = input
        elif _is_conversation(input):
            messages = [*self._renderer.plain_messages(input)]
            is_users = messages[-1]["role"] == "user"
            before = str(messages.pop()["content"]) if is_users else ""
        else:
            before = _json(input)
        content = "\n\n".join(filter(None, (before, asked)))
        return self._renderer.render_reply_start([*messages, {"role": "user", "content": content}])


def _asked(question: Question[object], labels: Sequence[str], order: Sequence[int]) -> str:
    """Return a question and its options as text."""
    lines = [question.instructions, *_lines(question, labels, order)]
    if question.kind == "predicate":
        lines.append(f"Answer {labels[0]} or {labels[1]} only.")
    else:
        label = "letter" if tuple(labels) == LETTERS[: len(labels)] else "label"
        option = "option" if question.kind == "choice" else "level"
        lines.append(
            f"Answer with the {label} of the {option} that fits best "
            f"({labels[0]} to {labels[-1]}) only."
        )
    return "\n".join(filter(None, lines))


def _lines(question: Question[object], labels: Sequence[str], order: Sequence[int]) -> list[str]:
    """Return a line for each option; none for yes and no where nothing describes them."""
    lines = []
    for i, label in zip(_labelled(question, order), labels, strict=True):
        option = question.options[i]
        about = option.description
        if question.kind != "predicate":
            lines.append(f"{label}. {option.text}" + (f": {about}" if about else ""))
        elif about or tuple(labels) != _YES_NO:
            lines.append(f"{label}: {about or option.text}")
    is_reversed = list(order) != sorted(order)
    return lines[::-1] if is_reversed and question.kind == "predicate" else lines


def _labelled(question: Question[object], order: Sequence[int]) -> Sequence[int]:
    """Return the option of each label: Yes and No keep their meaning in every order."""
    return sorted(order) if question.kind == "predicate" else order


def _is_conversation(input: object) -> TypeGuard[Sequence[Mapping[str, object]]]:
    return (
        isinstance(input, Sequence)
        and bool(input)
        and all(isinstance(message, Mapping) and "role" in message for message in input)
    )


def _json(value: object) -> str:
    """Return a JSON value as text.

    Raises:
        ValidationError: It cannot be written as JSON.
    """
    if not isinstance(value, (Mapping, list, tuple)):
        raise ValidationError(
            f"the input must be a str, a conversation or a JSON value, got {shown(value)}"
        )
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"the input cannot be written as JSON: {error}") from None
