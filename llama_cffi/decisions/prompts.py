"""The prompts of questions: the input first, so that all questions share it as a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..errors import ContextOverflowError
from ..validation import shown
from .inputs import DecisionInput, as_json, is_conversation
from .labels import LETTERS, Labels, find_labels
from .systemone import SystemOneTemplate

if TYPE_CHECKING:
    from ..binding import Model
    from ..generation.chat_renderer import ChatRenderer, RenderedChat
    from ..media import Audio, Image
    from .questions import Question

__all__ = ["LabelledPrompt", "PromptMaker"]

T = TypeVar("T")
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
        self._systemone = SystemOneTemplate(model) if SystemOneTemplate.is_in(model) else None
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
        texts = self._texts(question)
        chat, spaced = self._render(input, question, texts, order)
        labels = self._labels.get(_key(question))
        if labels is None:
            vocab, special = self._model.vocab, self._renderer.special_tokens
            first = [_YES_NO] if question.kind == "predicate" else []
            labels = find_labels(
                vocab, chat.text, len(order), first, special=special, spaced=spaced
            )
            self._labels[_key(question)] = labels
            if labels.texts != texts:
                chat, _ = self._render(input, question, labels.texts, order)
        if len(chat.tokens) >= self._n_ctx:
            raise ContextOverflowError(
                f"the input with the question {shown(question.name or question.instructions)} has "
                f"{len(chat.tokens)} tokens, and with n_ctx={self._n_ctx} a prompt may have "
                f"{self._n_ctx - 1}; shorten the input or increase n_ctx",
                n_tokens=len(chat.tokens),
                n_ctx=self._n_ctx,
            )
        tokens = dict(zip(order, _arranged(labels.texts, order, labels.tokens), strict=True))
        return LabelledPrompt(chat.tokens, tuple(tokens[i] for i in sorted(order)))

    def _texts(self, question: Question[object]) -> tuple[str, ...]:
        """Return the labels; before they have been searched, the likely ones."""
        if known := self._labels.get(_key(question)):
            return known.texts
        n = len(question.options)
        return _YES_NO if question.kind == "predicate" else (LETTERS * (n // 26 + 1))[:n]

    def _render(
        self,
        input: DecisionInput,
        question: Question[object],
        labels: Sequence[str],
        order: Sequence[int],
    ) -> tuple[RenderedChat, bool]:
        """Return a prompt, and whether the reply begins with a space."""
        if self._systemone is not None:
            return self._systemone.render(input, question, labels, order), False
        messages: list[Mapping[str, object]] = []
        media: Mapping[str, Image | Audio] = {}
        if is_conversation(input):
            given, media = self._renderer.take_media(input)
            messages = [*self._renderer.plain_messages(given)]
            is_users = messages[-1]["role"] == "user"
            before = str(messages.pop()["content"]) if is_users else ""
        else:
            before = input if isinstance(input, str) else as_json(input)
        content = "\n\n".join(filter(None, (before, _asked(question, labels, order))))
        question_asked = {"role": "user", "content": content}
        return self._renderer.render_reply_start([*messages, question_asked], media)


def _key(question: Question[object]) -> tuple[bool, int]:
    """Return what the labels of a question depend on."""
    return question.kind == "predicate", len(question.options)


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
    for i, label in zip(order, _arranged(labels, order, labels), strict=True):
        text, about = question.options[i].text, question.options[i].description
        if question.kind != "predicate":
            lines.append(f"{label}. {text}" + (f": {about}" if about else ""))
        elif about or tuple(labels) != _YES_NO:
            lines.append(f"{label}: {about or text}")
    return lines


def _arranged(labels: Sequence[str], order: Sequence[int], values: Sequence[T]) -> list[T]:
    """Return one of *values*, which belong to labels, for each option in *order*.

    Letters are given by place; Yes and No keep their meaning.
    """
    return [values[i if tuple(labels) == _YES_NO else place] for place, i in enumerate(order)]
