"""The content of a message: a str, or parts of text, reasoning and media.

Models get text only. Where media are to be supported, `split_content` is the one place that sees
their parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import ValidationError

__all__ = ["Content", "refuse_media", "split_content"]

# Names of the parts' types in OpenAI's chat and responses APIs, Anthropic's API and transformers.
_TEXT = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING = {"thinking": "thinking", "reasoning": "reasoning"}
_MEDIA = {
    "image": "a picture",
    "audio": "sound",
    "video": "a video",
    "file": "a file",
    "document": "a document",
}
_ELSEWHERE = {
    "tool_use": "give calls as the message's 'tool_calls'",
    "tool_call": "give calls as the message's 'tool_calls'",
    "tool_result": "give the result as a message of the role 'tool'",
}


class Content(NamedTuple):
    """Content without parts.

    Attributes:
        text: The text.
        reasoning: The reasoning; "" if there is none.
    """

    text: str
    reasoning: str = ""


def split_content(content: object, where: str, separator: str) -> Content:
    """Return the text and the reasoning of a message's content.

    Args:
        content: A str, None, a part, or a list of strings and parts, in plain types.
        where: Its name in error messages.
        separator: Written between two parts of text.

    Raises:
        ValidationError: A part is a picture, sound, video or file, has an unknown type, or is
            malformed; the error names it.
    """
    if content is None or isinstance(content, str):
        return Content(content or "")
    if isinstance(content, dict) and ("type" in content or "text" in content):
        content = [content]
    if not isinstance(content, list):
        raise ValidationError(
            f"{where} must be a str, None or a list of parts, got {type(content).__name__}"
            + ("; write it as JSON, with json.dumps" if isinstance(content, dict) else "")
        )
    parts = [_split_part(part, f"{where}[{i}]", separator) for i, part in enumerate(content)]
    texts = [part.text for part in parts if isinstance(part, Content)]
    return Content(separator.join(texts), "\n".join(p for p in parts if isinstance(p, str)))


def refuse_media(kind: str, where: str) -> None:
    """Refuse a part or field whose type or name says that it is not text.

    Raises:
        ValidationError: *kind* is a picture, sound, video or file.
    """
    name = kind.lower()
    for media, what in _MEDIA.items():
        if media in name:
            raise ValidationError(
                f"{where} is {what} ({kind!r}), and the model gets text only; leave it out, or "
                "describe it in text"
            )


def _split_part(part: object, where: str, separator: str) -> Content | str:
    """Return a part's text as `Content`, or its reasoning as a str."""
    if isinstance(part, str):
        return Content(part)
    if not isinstance(part, dict):
        raise ValidationError(f"{where} must be a str or a dict, got {type(part).__name__}")
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in part if name != "type"), None)
    if isinstance(kind, str):
        if kind in _TEXT:
            return Content(_text(part, kind, _TEXT[kind], where))
        if kind in _REASONING:
            inner = part.get(_REASONING[kind])
            if isinstance(inner, list):
                return split_content(inner, f"{where}[{kind!r}]", separator).text
            return _text(part, kind, _REASONING[kind], where)
        refuse_media(kind, where)
    hint = _ELSEWHERE.get(str(kind), "a part of text is {'type': 'text', 'text': '...'}")
    raise ValidationError(f"{where} has the type {kind!r}, which messages do not have; {hint}")


def _text(part: Mapping[str, Any], kind: str, field: str, where: str) -> str:
    text = part.get(field)
    if not isinstance(text, str):
        raise ValidationError(
            f"{where} has the type {kind!r}, so its {field!r} must be a str, "
            f"got {type(text).__name__}"
        )
    return text
