"""Pictures and sounds among messages: each becomes a mark in the text, which is found again later.

The chat template sees text only, and places a mark as it places any text. A mark is random, so that
nobody can write one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import TemplateError, ValidationError
from ..media import Audio, Image, MediaPolicy, is_media_part, load_part

__all__ = ["MARKER", "Messages", "split_at_media", "take_media", "without_marks"]

Messages = Sequence[Mapping[str, object]]
# How a picture or sound is shown where text is expected; libmtmd's default marker.
MARKER = "<__media__>"
_TEXT = ("text", "input_text")


def take_media(
    messages: Messages, policy: MediaPolicy | None = None
) -> tuple[Messages, dict[str, Image | Audio]]:
    """Load the pictures and sounds of messages, and put marks in their place.

    Text that precedes or follows one in the same message is joined to it without a line break.

    Args:
        messages: OpenAI's shape; what is not is left to be refused by others.
        policy: What may be loaded; None: the defaults of `MediaPolicy`.

    Returns:
        The messages, and mark -> picture or sound in their order.

    Raises:
        ValidationError: One cannot be loaded; the message names the part.
        FetchError: One cannot be fetched.
    """
    media: dict[str, Image | Audio] = {}
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        return messages, media
    policy = policy or MediaPolicy()
    found: list[Mapping[str, object]] = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = [content] if isinstance(content, Mapping) else content
        if isinstance(parts, (list, tuple)) and any(map(_is_media, parts)):
            where = f"messages[{i}]['content']"
            message = {**message, "content": _joined(parts, where, policy, media)}
            if len(media) > policy.max_items:
                raise ValidationError(
                    f"the conversation has {len(media)} pictures and sounds; at most "
                    f"{policy.max_items} are taken (max_items of the MediaPolicy)"
                )
        found.append(message)
    return (found if media else messages), media


def split_at_media(text: str, media: Mapping[str, Image | Audio]) -> list[str]:
    """Split a text at its marks: text, mark, text, mark, … text."""
    if not media:
        return [text]
    return re.split(f"({'|'.join(map(re.escape, media))})", text)


def without_marks(text: str, media: Mapping[str, Image | Audio]) -> str:
    """Return a rendered text with `MARKER` instead of the marks.

    Raises:
        TemplateError: The chat template left one out.
    """
    for i, mark in enumerate(media):
        if mark not in text:
            raise TemplateError(
                f"the chat template leaves out picture or sound {i + 1} of {len(media)}; put it "
                "into a message of the user"
            )
        text = text.replace(mark, MARKER)
    return text


def _is_media(part: object) -> bool:
    return isinstance(part, (Image, Audio)) or is_media_part(part) is not None


def _joined(
    parts: Sequence[Any], where: str, policy: MediaPolicy, media: dict[str, Image | Audio]
) -> list[Any]:
    """Return parts with marks, each joined to the text beside it."""
    found: list[Any] = []
    after_media = False
    for i, part in enumerate(parts):
        if _is_media(part):
            mark = f"[[media {secrets.token_hex(12)}]]"
            is_loaded = isinstance(part, (Image, Audio))
            media[mark] = part if is_loaded else load_part(part, f"{where}[{i}]", policy)
            if (before := _text_of(found[-1]) if found else None) is not None:
                found[-1] = {"type": "text", "text": before + mark}
            else:
                found.append({"type": "text", "text": mark})
        elif after_media and (text := _text_of(part)) is not None:
            found[-1] = {"type": "text", "text": found[-1]["text"] + text}
        else:
            found.append(part)
        after_media = _is_media(part)
    return found


def _text_of(part: object) -> str | None:
    """Return the text of a part of text; None for others."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") not in _TEXT:
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None
