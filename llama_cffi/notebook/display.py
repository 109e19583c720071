"""`show`: HTML of what has no class of its own, such as OpenAI's responses, which are dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from ..validation import shown
from . import html, views
from .token_logprobs import visible

if TYPE_CHECKING:
    from ..api.llama import Llama
    from ..binding import Vocab

__all__ = ["Shown", "is_response", "show", "show_tokens"]


class Shown:
    """What a notebook shows: HTML, and text for everything else.

    Args:
        html: The HTML.
        text: The text.
    """

    def __init__(self, html: str, text: str) -> None:
        self._html, self._text = html, text

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return self._text


def is_response(found: object) -> bool:
    """Return whether *found* is a response of a completion or a chat, or a choice of one."""
    if not isinstance(found, Mapping):
        return False
    if found.get("object") in ("chat.completion", "text_completion"):
        return isinstance(found.get("choices"), list)
    return {"index", "logprobs", "finish_reason"} <= found.keys() and bool(
        found.keys() & {"text", "message"}
    )


def show(found: object) -> Shown:
    """Show a response, a conversation, or a list of findings or answers.

    A response with log-probabilities is shown as a heat map. Other objects of this package show
    themselves as the last line of a cell.

    Args:
        found: A response of `create_completion` or `create_chat_completion`, or a choice of it;
            messages in OpenAI's format; the findings of `doctor.examine`; several answers of
            `decide`; or anything that has `_repr_html_`.

    Raises:
        ValidationError: It is something else.
    """
    if isinstance(found, Mapping) and is_response(found):
        return Shown(views.response(found), _response_text(found))
    if method := getattr(found, "_repr_html_", None):
        return Shown(method() or html.block(html.paragraph(repr(found))), repr(found))
    if isinstance(found, Mapping) and "role" in found:
        found = [found]
    items: list[Any] = [*found] if isinstance(found, Iterable) else []
    if isinstance(found, (str, bytes, Mapping)) or not items:
        raise ValidationError(
            f"there is no view of {shown(found)}; give a response, messages, or a list of "
            "findings or answers"
        )
    if all(isinstance(item, Mapping) and "role" in item for item in items):
        lines = (f"{m['role']}: {views.plain_content(m.get('content'))}" for m in items)
        return Shown(views.transcript(items), "\n\n".join(lines))
    from ..doctor import Check

    text = "\n".join(map(repr, items))
    if all(isinstance(item, Check) for item in items):
        return Shown(views.checks(items), text)
    return Shown(html.block(*(show(item)._repr_html_() for item in items)), text)


def show_tokens(model: Llama | Vocab, tokens: str | Sequence[int]) -> Shown:
    """Show how a text or a prompt is divided into tokens; hovering over one tells its id.

    Control tokens have a border. For a conversation as the model sees it, give the tokens of
    `llm.renderer.render(messages)`.

    Args:
        model: A model or its vocabulary.
        tokens: Text, or token ids.

    Raises:
        ValidationError: A token id does not exist.
    """
    vocab: Any = getattr(getattr(model, "model", model), "vocab", model)
    ids = vocab.tokenize(tokens, False) if isinstance(tokens, str) else vocab.check_all(tokens)
    pieces = [(vocab.token_to_piece(i, True).decode("utf-8", "replace"), f"token {i}") for i in ids]
    special = [n for n, i in enumerate(ids) if vocab.is_control(i)]
    head = html.dim(f"{len(ids):,} tokens")
    text = "|".join(visible(piece) for piece, _ in pieces)
    return Shown(html.block(head, html.coloured(pieces, special)), f"{len(ids):,} tokens\n{text}")


def _response_text(found: Mapping[str, Any]) -> str:
    """Return the answers of a response, and its counts."""
    texts = []
    for choice in found.get("choices") or [found]:
        message = choice.get("message") or {"content": choice.get("text")}
        texts.append(views.plain_content(message.get("content")))
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            texts.append(f"{function.get('name')}({function.get('arguments')})")
    note = views.response_note(found)
    return "\n\n".join([text for text in texts if text] + ([f"[{note}]"] if note else []))
