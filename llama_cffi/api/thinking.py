"""How long a model may think, and how much effort it is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..binding import Vocab
from ..chat.reasoning import ReasoningSplitter
from ..errors import TemplateError
from ..generation.text import Utf8Stream
from ..validation import check_int

if TYPE_CHECKING:
    from ..chat.template import ChatTemplate

__all__ = ["ThinkMarkers", "ThinkingBudget", "think_markers"]

_QUESTION, _THOUGHT, _ANSWER = "What is it?", "A thought about it.", "An answer to it."


class ThinkMarkers(NamedTuple):
    """The texts around a thought, with the line breaks that the chat template puts there."""

    begin: str
    end: str
    after: str  # what the answer's content follows


class ThinkingBudget:
    """Ends the thought of one answer when it has had its tokens; a `generation.ReasoningLimit`.

    Only a thought at the beginning of the answer is limited. Tokens between its markers count.

    Args:
        vocab: Of the model.
        markers: What begins a thought, and what ends it.
        marks: The same with what the template puts around them; see `think_markers`.
        is_open: The prompt ended inside the thought.
        n_tokens: Most tokens of the thought, from 0; None = no limit.
        awaited: Whether a grammar waits for the end of the thought. Then there has to be one, and
            what follows it is put there when the model ends it, too.

    Raises:
        ValidationError: *n_tokens* is out of range.
    """

    def __init__(
        self,
        vocab: Vocab,
        markers: tuple[str, str],
        marks: ThinkMarkers,
        is_open: bool,
        n_tokens: int | None,
        awaited: bool = False,
    ) -> None:
        if n_tokens is not None:
            n_tokens = check_int("thinking_budget", n_tokens, 0)
        self._vocab, self._pieces = vocab, vocab.pieces(True)
        self._marks, self._awaited = marks, awaited
        self._splitter = ReasoningSplitter(*markers, starts_open=is_open, budget=n_tokens)
        self._text, self._recent = Utf8Stream(), ""  # the end of the thought
        self._is_one = _is_one_token(vocab, markers[1])
        self._is_over = False

    def after(self, token: int | None) -> Sequence[int] | None:
        """Take a token of the answer, None before the first.

        Returns:
            The tokens that have to follow, mostly none; None when the thought is over.
        """
        splitter = self._splitter
        if self._is_over:
            return None
        if token is None:
            if self._awaited and not splitter.is_open:
                return self._tokens(self._marks.begin)
        else:
            was_open, text = splitter.is_open, self._text.push(self._pieces[token] or b"")
            pieces = splitter.push(text)
            if was_open and not splitter.is_open:
                return self._last(self._marks.after) if self._awaited else None
            if any(piece.kind == "content" for piece in pieces):
                return None
            if was_open:
                self._recent = (self._recent + text)[-len(self._marks.end) :]
        return self._last(self._end() + self._marks.after) if splitter.budget_is_spent else ()

    def _last(self, text: str) -> Sequence[int]:
        self._is_over = True
        return self._tokens(text)

    def _tokens(self, text: str) -> Sequence[int]:
        return self._vocab.tokenize(text, False, True)

    def _end(self) -> str:
        """Return the mark of the end without what the thought ends with."""
        recent, end = self._recent, self._marks.end
        marker = end.lstrip()
        # One token is there, or is not; of several the first may be.
        for n in range(0 if self._is_one else len(marker) - 1, 0, -1):
            if recent.endswith(marker[:n]):
                return marker[n:]
        return marker if recent.endswith(end.removesuffix(marker)) else end


def think_markers(
    vocab: Vocab, template: ChatTemplate | None, markers: tuple[str, str]
) -> ThinkMarkers:
    """Return what stands around a thought where the chat template writes one.

    Templates that write no thoughts of earlier turns do not tell. Then markers like ``</think>``
    stand on lines of their own with an empty one after the second, as the models that have them
    do it. Nothing is put after a marker of several tokens: its last one may hold what follows.

    Args:
        vocab: Of the model.
        template: None = there is none.
        markers: What begins a thought, and what ends it.
    """
    answer = {"content": _ANSWER, "reasoning_content": _THOUGHT, "thinking": _THOUGHT}
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", **answer}]
    text = ""
    if template is not None:
        with suppress(TemplateError):  # it has rules of its own: the default will do
            text = template.render(messages, add_generation_prompt=False)
    begin, end = markers[0].rstrip(), markers[1].strip()
    parts = map(re.escape, (begin, _THOUGHT, end, _ANSWER))
    found = re.search(r"({}\s*){}(.*?{})(.*?){}".format(*parts), text, re.DOTALL)
    if found:
        marks = ThinkMarkers(*found.groups())
    elif end.startswith("</"):
        marks = ThinkMarkers(f"{begin}\n", f"\n{end}", "\n\n")
    else:
        marks = ThinkMarkers(*markers, "")
    return marks if _is_one_token(vocab, end) else marks._replace(after="")


def _is_one_token(vocab: Vocab, text: str) -> bool:
    return len(vocab.tokenize(text, False, True)) == 1
