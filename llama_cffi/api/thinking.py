"""Limits the reasoning of an answer to a number of tokens."""

from __future__ import annotations

import re
import threading
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

_QUESTION, _REASONING, _ANSWER = "What is it?", "Some reasoning.", "An answer to it."


class ThinkMarkers(NamedTuple):
    """The text around reasoning, including the line breaks that the chat template writes.

    Attributes:
        begin: Text before the reasoning.
        end: Text after the reasoning.
        after: Text between `end` and the content.
    """

    begin: str
    end: str
    after: str


class ThinkingBudget:
    """Ends the reasoning of one answer after a number of tokens; a `ReasoningLimit`.

    Only reasoning at the beginning of the answer is limited. Tokens between its markers count.

    Args:
        vocab: The model's vocabulary.
        markers: The markers before and after reasoning.
        template_markers: The markers as the chat template writes them; see `think_markers`.
        is_open: Whether the prompt ended inside reasoning.
        n_tokens: Maximum number of reasoning tokens, from 0; None: no limit.
        is_required: Whether a grammar starts after the reasoning. Then the answer must begin with
            reasoning, and the text after it is forced even if the model ends it by itself.
        is_ended: Ends the reasoning when it is set, from any thread; None: only the number does.

    Raises:
        ValidationError: *n_tokens* is out of range.
    """

    def __init__(
        self,
        vocab: Vocab,
        markers: tuple[str, str],
        template_markers: ThinkMarkers,
        is_open: bool,
        n_tokens: int | None,
        is_required: bool = False,
        is_ended: threading.Event | None = None,
    ) -> None:
        if n_tokens is not None:
            n_tokens = check_int("thinking_budget", n_tokens, 0)
        self._vocab, self._pieces = vocab, vocab.pieces(True)
        self._markers, self._is_required = template_markers, is_required
        self._splitter = ReasoningSplitter(*markers, starts_open=is_open, budget=n_tokens)
        self._text, self._recent = Utf8Stream(), ""  # the last characters of the reasoning
        self._has_end_token = _is_one_token(vocab, markers[1])
        self._is_over, self._is_ended = False, is_ended

    def after(self, token: int | None) -> Sequence[int] | None:
        """Add a token of the answer, None before the first, and return the tokens to force.

        Returns:
            The tokens that must follow, usually none; None when the reasoning is over.
        """
        splitter = self._splitter
        if self._is_over:
            return None
        if token is None:
            if self._is_required and not splitter.is_open:
                return self._tokens(self._markers.begin)
        else:
            was_open, text = splitter.is_open, self._text.push(self._pieces[token] or b"")
            parts = splitter.push(text)
            if was_open and not splitter.is_open:
                return self._last(self._markers.after) if self._is_required else None
            if any(part.kind == "content" for part in parts):
                return None
            if was_open:
                self._recent = (self._recent + text)[-len(self._markers.end) :]
        is_spent = splitter.budget_is_spent or (
            self._is_ended is not None and splitter.is_open and self._is_ended.is_set()
        )
        return self._last(self._end() + self._markers.after) if is_spent else ()

    def _last(self, text: str) -> Sequence[int]:
        self._is_over = True
        return self._tokens(text)

    def _tokens(self, text: str) -> Sequence[int]:
        return self._vocab.tokenize(text, False, True)

    def _end(self) -> str:
        """Return the end marker without the part that the model has already written."""
        recent, end = self._recent, self._markers.end
        marker = end.lstrip()
        # A single token is never written in part; of several, the first ones may be there.
        for n in range(0 if self._has_end_token else len(marker) - 1, 0, -1):
            if recent.endswith(marker[:n]):
                return marker[n:]
        return marker if recent.endswith(end.removesuffix(marker)) else end


def think_markers(
    vocab: Vocab, template: ChatTemplate | None, markers: tuple[str, str]
) -> ThinkMarkers:
    """Return the text that the chat template writes around reasoning.

    A template that does not render the reasoning of earlier turns does not show it. Then markers
    like ``</think>`` go on lines of their own, with an empty line after the second, as models with
    these markers write them. Nothing follows a marker of several tokens, because its last token may
    include the text that follows.

    Args:
        vocab: The model's vocabulary.
        template: The model's chat template; None if there is none.
        markers: The markers before and after reasoning.
    """
    answer = {"content": _ANSWER, "reasoning_content": _REASONING, "thinking": _REASONING}
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", **answer}]
    text = ""
    if template is not None:
        with suppress(TemplateError):  # it refuses these messages: use the default
            text = template.render(messages, add_generation_prompt=False)
    begin, end = markers[0].rstrip(), markers[1].strip()
    parts = map(re.escape, (begin, _REASONING, end, _ANSWER))
    found = re.search(r"({}\s*){}(.*?{})(.*?){}".format(*parts), text, re.DOTALL)
    if found:
        written = ThinkMarkers(*found.groups())
    elif end.startswith("</"):
        written = ThinkMarkers(f"{begin}\n", f"\n{end}", "\n\n")
    else:
        written = ThinkMarkers(*markers, "")
    return written if _is_one_token(vocab, end) else written._replace(after="")


def _is_one_token(vocab: Vocab, text: str) -> bool:
    return len(vocab.tokenize(text, False, True)) == 1
