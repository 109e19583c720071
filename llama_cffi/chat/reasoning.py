"""Reasoning that a model writes before its answer, told from it by markers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from ..errors import ValidationError
from .reader import Reader, Steps

if TYPE_CHECKING:
    from .families import Family
    from .template import ChatTemplate

__all__ = ["Piece", "ReasoningSplitter", "opens_thinking", "resolve_reasoning_effort"]

_EFFORTS = {"none": False, "minimal": False, "low": True, "medium": True, "high": True}


class Piece(NamedTuple):
    """A part of the text, and what it belongs to."""

    kind: Literal["reasoning", "content"]
    text: str


def opens_thinking(prompt: str, start: str) -> bool:
    """Say whether the rendered *prompt* ends inside a thought, as some templates force it.

    Args:
        prompt: What the model is given.
        start: The marker that begins a thought.
    """
    return prompt.rstrip().endswith(start.rstrip())


class ReasoningSplitter:
    """Splits a text that arrives in pieces into a thought at its beginning and the content.

    Only a thought at the beginning counts (after white space): a marker that an answer speaks
    about stays content. White space around a thought belongs to its markers; else the content
    stays as it is. The result does not depend on how the text is split.

    Args:
        start: The marker that begins a thought, e.g. ``<think>``.
        end: The marker that ends it.
        starts_open: The prompt ended inside a thought (`opens_thinking`).
        budget: Most tokens that a thought may take; None is no limit.

    Attributes:
        is_open: Whether the text so far ends inside a thought.
        spent: Tokens that went into the thought.

    Raises:
        ValidationError: A marker is empty, or the budget negative.
    """

    def __init__(
        self, start: str, end: str, starts_open: bool = False, budget: int | None = None
    ) -> None:
        if not start.strip() or not end.strip():
            raise ValidationError(f"reasoning markers may not be empty: {start!r}, {end!r}")
        if budget is not None and budget < 0:
            raise ValidationError(f"the reasoning budget has to be 0 or more tokens, not {budget}")
        self.start = start
        self.end = end
        self.is_open = starts_open
        self.spent = 0
        self._budget = budget
        self._pieces: list[Piece] = []
        self._space = ""
        self._reader = Reader()
        self._steps = self._read()
        next(self._steps)

    @property
    def budget_is_spent(self) -> bool:
        """Whether the thought took all its tokens: the caller now makes the model write `end`."""
        return self._budget is not None and self.is_open and self.spent >= self._budget

    def push(self, text: str, n_tokens: int = 1) -> list[Piece]:
        """Take the text of *n_tokens* tokens and return what it settles.

        Text that may begin a marker, and white space that may precede one, is held back.
        """
        self.spent += n_tokens if self.is_open else 0
        self._reader.feed(text)
        return self._advance()

    def finish(self) -> list[Piece]:
        """Return what was held back; an open thought ends with the text."""
        self._reader.is_final = True
        return self._advance()

    def _advance(self) -> list[Piece]:
        next(self._steps)
        pieces, self._pieces = self._pieces, []
        return pieces

    def _read(self) -> Steps[None]:
        reader = self._reader
        if not self.is_open:
            space = yield from reader.space()
            start = self.start.lstrip()
            self.is_open = bool((yield from reader.literal(start, start.rstrip())))
            if not self.is_open and space:
                self._pieces.append(Piece("content", space))
        if self.is_open:
            yield from reader.space()
            # Some models open again the thought that the template had opened.
            if (yield from reader.literal(self.start, self.start.rstrip())):
                yield from reader.space()
            self.is_open = (yield from reader.until([self.end], self._think)) is None
            yield from reader.space()
        while True:
            yield from reader.until((), self._say)
            yield

    def _say(self, text: str) -> None:
        self._pieces.append(Piece("content", text))

    def _think(self, text: str) -> None:
        """Hand out a thought but for the white space at its end."""
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self._pieces.append(Piece("reasoning", kept))


def resolve_reasoning_effort(
    family: Family, template: ChatTemplate | None, thinking: bool | None, effort: str | None
) -> tuple[bool | None, dict[str, str]]:
    """Return what OpenAI's `reasoning_effort` means for a model.

    A chat template that reads `reasoning_effort` (GPT-OSS) is given `low`, `medium` or `high`;
    `minimal` is `low` there. Other models think with these three and do not with `none` and
    `minimal`.

    Args:
        family: Of the model.
        template: None: it has none.
        thinking: Whether the model shall think, where *effort* is None.
        effort: `none`, `minimal`, `low`, `medium`, `high`, or None.

    Returns:
        Whether the model thinks (None: its default), and the template's arguments.

    Raises:
        ValidationError: The effort is unknown, the model cannot do so, or *thinking* is given too.
    """
    if effort is None:
        return thinking, {}
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise ValidationError(f"reasoning_effort={effort!r} must be one of {', '.join(_EFFORTS)}")
    if thinking is not None:
        raise ValidationError("thinking and reasoning_effort say the same; give one of them")
    if effort != "none" and template is not None and "reasoning_effort" in template.variables:
        return None, {"reasoning_effort": "low" if effort == "minimal" else effort}
    wanted = _EFFORTS[effort]
    if family.thinking == ("never" if wanted else "always"):
        name = f"{family.name} {family.version}".rstrip()
        raise ValidationError(
            f"reasoning_effort={effort!r}: a model of the family {name} {family.thinking} thinks"
        )
    return wanted, {}
