"""Content parts: pictures and sounds in the shapes of OpenAI, Anthropic and this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..errors import ValidationError
from ..validation import shown
from .headers import format_of
from .images import load_image
from .policy import MediaPolicy
from .sounds import load_audio
from .sources import limits_of, read_encoded
from .types import Audio, Image

__all__ = ["is_media_part", "load_media", "load_part"]

_IMAGES = ("image_url", "input_image", "image")
_SOUNDS = ("input_audio", "audio", "audio_url")
_REFUSED = {
    **dict.fromkeys(
        ("video", "video_url", "input_video"), "a video, which is not decoded; send some frames"
    ),
    **dict.fromkeys(
        ("file", "input_file", "document"),
        "a document, which is not read; send its text, or pictures of its pages",
    ),
}


def is_media_part(part: object) -> Literal["image", "audio"] | None:
    """Return which kind of media a content part is; None for text and all others."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _IMAGES:
        return "image"
    return "audio" if kind in _SOUNDS else None


def load_part(
    part: Mapping[str, Any], where: str, policy: MediaPolicy | None = None
) -> Image | Audio:
    """Load one content part.

    Args:
        part: `{"type": "image_url", "image_url": {"url": …}}`, `{"type": "input_audio",
            "input_audio": {"data": …}}` (OpenAI), `{"type": "image", "source": {"type": "base64",
            "data": …}}` (Anthropic), or `{"type": "image", "image": …}` and `{"type": "audio",
            "audio": …, "sample_rate": …}` with anything that `load_image` and `load_audio` take.
        where: Its name in error messages.
        policy: What may be loaded; None: the defaults of `MediaPolicy`.

    Raises:
        ValidationError: The part has another shape, or cannot be loaded.
        FetchError: An address cannot be fetched.
        LlamaError: Pillow is not installed.
    """
    policy = policy or MediaPolicy()
    kind = is_media_part(part)
    if kind is None:
        raise ValidationError(_refusal(part, where))
    source = _source(part, kind, where, policy)
    if kind == "image":
        return load_image(source, policy, where)
    return load_audio(source, part.get("sample_rate"), policy, where)


def load_media(data: str, where: str, policy: MediaPolicy | None = None) -> Image | Audio:
    """Load a picture or a sound, whichever its first bytes tell.

    Args:
        data: Base64 of a file as `load_image` and `load_audio` take it.
        where: Its name in error messages.
        policy: The limits; None: the defaults of `MediaPolicy`.

    Raises:
        ValidationError: It is neither, damaged, or too large.
        LlamaError: Pillow is not installed.
    """
    policy = policy or MediaPolicy()
    limits = limits_of("image", policy), limits_of("audio", policy)
    found = read_encoded(data, max(limits, key=lambda one: one.max_bytes), where)
    if format_of(found) is None:
        return load_audio(found, None, policy, where)
    return load_image(found, policy, where)


def _refusal(part: object, where: str) -> str:
    """Say why a part is not loaded, and what to send instead."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    reason = _REFUSED.get(kind) if isinstance(kind, str) else None
    found = shown(kind) if isinstance(part, Mapping) else f"a {type(part).__name__}"
    return f"{where} is {reason}" if reason else f"{where} is no picture or sound, but {found}"


def _source(part: Mapping[str, Any], kind: str, where: str, policy: MediaPolicy) -> Any:
    """Return where the data of a part is."""
    value = part.get("source", part.get(str(part["type"])))
    if value is None:  # Responses: {"type": "input_image", "image_url": "…"}
        value = part.get("image_url", part.get("audio_url", part.get("data")))
    if value is None or (isinstance(value, Mapping) and value.get("file_id") is not None):
        if part.get("file_id") is not None or value is not None:
            raise ValidationError(f"{where} names an uploaded file; send its data as base64")
        raise ValidationError(
            f"{where} has the type {part['type']!r} and no data; write {part['type']!r}: …"
        )
    if not isinstance(value, Mapping):
        return value
    found = [key for key in ("url", "data") if value.get(key) is not None]
    if len(found) != 1:
        raise ValidationError(f"{where} must have one of 'url' and 'data'")
    text = value[found[0]]
    if not isinstance(text, str):
        raise ValidationError(f"{where}: its data must be a str, got {type(text).__name__}")
    if found[0] == "url":
        return text
    # Data is never taken for a path or an address.
    return read_encoded(text, limits_of(kind, policy), where)
