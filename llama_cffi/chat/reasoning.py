"""Reasoning that a model writes, between markers, before its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import ValidationError
from .scanner import Parser, Scanner

if TYPE_CHECKING:
    from .families import Family
    from .template import ChatTemplate

__all__ = ["AnswerPart", "ReasoningSplitter", "opens_thinking", "resolve_reasoning_effort"]

_EFFORTS = {"none": False, "minimal": False, "low": True, "medium": True, "high": True}


class AnswerPart(NamedTuple):
    """A part of an answer.

    Attributes:
        kind: `reasoning` or `content`.
        text: The text.
    """

    kind: Literal["reasoning", "content"]
    text: str


def opens_thinking(prompt: str, start: str) -> bool:
    """Return whether a rendered prompt ends inside reasoning, as some templates make it.

    Args:
        prompt: The rendered prompt.
        start: The marker that begins reasoning.
    """
    return prompt.rstrip().endswith(start.rstrip())


class ReasoningSplitter:
    """Splits an answer that arrives in chunks into reasoning and content.

    Only markers at the beginning of the answer, after optional white space, enclose reasoning; a
    marker that the answer mentions later is content. White space around reasoning is dropped. The
    result does not depend on how the text is split.

    Args:
        start: The marker that begins reasoning, such as ``<think>``.
        end: The marker that ends it.
        starts_open: Whether the prompt ended inside reasoning; see `opens_thinking`.
        budget: Maximum number of reasoning tokens; None: no limit.

    Attributes:
        is_open: Whether the text so far ends inside reasoning.
        spent: Number of reasoning tokens so far.

    Raises:
        ValidationError: A marker is empty, or the budget is negative.
    """

    def __init__(
        self, start: str, end: str, starts_open: bool = False, budget: int | None = None
    ) -> None:
        if not start.strip() or not end.strip():
            raise ValidationError(f"reasoning markers must not be empty, got {start!r}, {end!r}")
        if budget is not None and budget < 0:
            raise ValidationError(f"the reasoning budget must be 0 or more tokens, got {budget}")
        self.start = start
        self.end = end
        self.is_open = starts_open
        self.spent = 0
        self._budget = budget
        self._parts: list[AnswerPart] = []
        self._space: list[str] = []  # at the end of the reasoning; dropped unless more follows
        self._scanner = Scanner()
        self._parser = self._parse()
        next(self._parser)

    @property
    def budget_is_spent(self) -> bool:
        """Whether the budget is used up, so that the caller must force the end marker."""
        return self._budget is not None and self.is_open and self.spent >= self._budget

    def push(self, text: str, n_tokens: int = 1) -> list[AnswerPart]:
        """Add the text of *n_tokens* tokens; return the parts that are certain now.

        Text that may be the beginning of a marker, and white space before it, is held back.
        """
        self.spent += n_tokens if self.is_open else 0
        self._scanner.feed(text)
        return self._advance()

    def finish(self) -> list[AnswerPart]:
        """End the text and return what was held back."""
        self._scanner.is_final = True
        return self._advance()

    def _advance(self) -> list[AnswerPart]:
        next(self._parser)
        parts, self._parts = self._parts, []
        return parts

    def _parse(self) -> Parser[None]:
        scanner = self._scanner
        if not self.is_open:
            space = yield from scanner.space()
            start = self.start.lstrip()
            self.is_open = bool((yield from scanner.literal(start, start.rstrip())))
            if not self.is_open and space:
                self._add_content(space)
        if self.is_open:
            yield from scanner.space()
            # Some models repeat the marker that the template has already written.
            if (yield from scanner.literal(self.start, self.start.rstrip())):
                yield from scanner.space()
            self.is_open = (yield from scanner.until([self.end], self._add_reasoning)) is None
            yield from scanner.space()
        while True:
            yield from scanner.until((), self._add_content)
            yield

    def _add_content(self, text: str) -> None:
        self._parts.append(AnswerPart("content", text))

    def _add_reasoning(self, text: str) -> None:
        """Add reasoning without the white space at its end."""
        kept = text.rstrip()
        if kept:
            self._parts.append(AnswerPart("reasoning", "".join((*self._space, kept))))
            self._space.clear()
        self._space.append(text[len(kept) :])


def resolve_reasoning_effort(
    family: Family, template: ChatTemplate | None, thinking: bool | None, effort: str | None
) -> tuple[bool | None, dict[str, str]]:
    """Return what OpenAI's `reasoning_effort` means for a model.

    A chat template with a variable `reasoning_effort` (GPT-OSS) is given `low`, `medium` or `high`;
    `minimal` becomes `low`. Other models think with `low`, `medium` and `high`, and do not think
    with `none` and `minimal`.

    Args:
        family: The model's family.
        template: The model's chat template; None if there is none.
        thinking: Whether the model thinks, if *effort* is None.
        effort: `none`, `minimal`, `low`, `medium`, `high`, or None.

    Returns:
        Whether the model thinks (None: its default), and variables for the template.

    Raises:
        ValidationError: The effort is unknown, the model does not support it, or both *thinking*
            and *effort* are given.
    """
    if effort is None:
        return thinking, {}
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise ValidationError(
            f"reasoning_effort must be one of {', '.join(_EFFORTS)}, got {effort!r}"
        )
    if thinking is not None:
        raise ValidationError("thinking and reasoning_effort are alternatives; give one of them")
    if effort != "none" and template is not None and "reasoning_effort" in template.variables:
        return None, {"reasoning_effort": "low" if effort == "minimal" else effort}
    wanted = _EFFORTS[effort]
    if family.thinking == ("never" if wanted else "always"):
        name = f"{family.name} {family.version}".rstrip()
        raise ValidationError(
            f"reasoning_effort={effort!r}: a model of the family {name} {family.thinking} thinks; "
            "leave reasoning_effort out"
        )
    return wanted, {}
