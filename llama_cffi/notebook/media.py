"""Pictures and sounds as HTML: small copies as data: URLs, or their names.

Nothing is read or fetched for a view: what is a path or an address is named.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError
from ..media import Audio, Image, MediaPolicy, is_media_part, load_part
from . import html

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["label", "media_of", "picture", "shown_part", "sound"]

_SIDE = 256  # pixels of a small copy
_MAX_PICTURE_BYTES = 64_000
_MAX_SOUND_BYTES = 1_000_000
_MAX_NAME = 60
_NOTHING_READ = MediaPolicy(urls=False, files=False)
_NAMES = {"image": "picture", "audio": "sound"}


def media_of(part: object) -> Image | Audio | None:
    """Return the picture or sound in a content part; None if it is none, or is elsewhere."""
    if isinstance(part, (Image, Audio)):
        return part
    if not isinstance(part, Mapping) or is_media_part(part) is None:
        return None
    try:
        return load_part(part, "the part", _NOTHING_READ)
    except LlamaError:  # elsewhere, damaged, or without Pillow
        return None


def label(part: object) -> str | None:
    """Return what stands for a part where only text is shown; None: it is no picture or sound."""
    if isinstance(part, Image):
        return f"[picture {part.width}x{part.height}]"
    if isinstance(part, Audio):
        return f"[sound {part.duration_s:.1f} s]"
    kind = is_media_part(part)
    if kind is None:
        return None
    if (media := media_of(part)) is not None:
        return label(media)
    name = _name(part)
    return f"[{_NAMES[kind]}{' ' if name else ''}{name}]"


def shown_part(part: object) -> str | None:
    """Return the HTML of a part; None: it is no picture or sound."""
    media = media_of(part)
    if isinstance(media, Image):
        return picture(media)
    if isinstance(media, Audio):
        return sound(media)
    text = label(part)
    return None if text is None else html.dim(text)


def picture(image: Image) -> str:
    """Return a picture as HTML, reduced to 256 pixels; its size where Pillow is not installed."""
    text = str(label(image))
    data = _small(image.pixels)
    if data is None:
        return html.dim(text)
    title = html.escape(f"{image.width} x {image.height} pixels")
    return (
        f'<img src="{data}" alt="{html.escape(text)}" title="{title}" '
        'style="max-width:100%;border-radius:.3em;margin:.2em .4em .2em 0;vertical-align:top">'
    )


def sound(audio: Audio) -> str:
    """Return a sound as HTML: controls to hear it, or its length if it is long."""
    text = str(label(audio))
    if 2 * len(audio.samples) > _MAX_SOUND_BYTES:
        return html.dim(text)
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(audio.sample_rate)
        written.writeframes((audio.samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<audio controls src="data:audio/wav;base64,{data}" style="vertical-align:middle">'
        f"{html.escape(text)}</audio> {html.dim(text)}"
    )


def _small(pixels: NDArray[np.uint8]) -> str | None:
    """Return a data: URL of a picture; None without Pillow."""
    try:
        pillow: Any = import_module("PIL.Image")
    except ImportError:
        return None
    small = pillow.fromarray(pixels)
    small.thumbnail((_SIDE, _SIDE))
    for form, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 80})):
        file = io.BytesIO()
        small.save(file, form, **options)
        if len(file.getvalue()) <= _MAX_PICTURE_BYTES:
            break
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{data}"


def _name(part: object) -> str:
    """Return where the picture or sound of a part is, if it is a path or an address."""
    assert isinstance(part, Mapping)
    found = [part.get(key) for key in (part["type"], "source", "image_url", "audio_url")]
    value = next((v for v in found if v is not None), "")
    if isinstance(value, Mapping):
        value = value.get("url", "")
    text = str(value) if isinstance(value, str) or hasattr(value, "__fspath__") else ""
    text = "" if text.startswith("data:") or len(text) > 2000 else text.split("?")[0]
    name = text if "://" in text else text.replace("\\", "/").rsplit("/", 1)[-1]
    return name if len(name) <= _MAX_NAME else f"…{name[-_MAX_NAME:]}"
