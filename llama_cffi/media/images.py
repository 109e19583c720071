"""Decoding pictures, within limits.

Formats and sizes are checked from the header, before anything is decoded.
"""

from __future__ import annotations

import io
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError, ValidationError
from .headers import FORMATS, format_of, size_of
from .policy import MediaPolicy
from .sources import Limits, read_source
from .types import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as PillowImage

    from .sources import Source

    ImageSource = Source | Image | PillowImage.Image | NDArray[np.uint8]

__all__ = ["load_image"]

# What Pillow raises for damaged files.
_DAMAGED = (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, MemoryError)
_MAX_SIDE = 65_535
_WHITE = (255, 255, 255)


def load_image(
    source: ImageSource, policy: MediaPolicy | None = None, where: str = "the picture"
) -> Image:
    """Load a picture.

    Of animations the first frame counts. The orientation in EXIF data is applied, and transparent
    parts become white.

    Args:
        source: An `Image`; an array (height, width, 3) uint8; a picture of Pillow; bytes, a binary
            file or a path of a PNG, JPEG, WEBP, GIF or BMP; or a str: a path, a data:, file: or
            https: URL, or base64.
        policy: What may be loaded; None: the defaults of `MediaPolicy`.
        where: Its name in error messages.

    Raises:
        ValidationError: It is no such picture, damaged, too large, or not allowed.
        FetchError: An address cannot be fetched.
        LlamaError: Pillow is not installed, which everything but arrays needs.
    """
    policy = policy or MediaPolicy()
    if isinstance(source, Image):
        return source
    if hasattr(source, "__array_interface__") and not hasattr(source, "getexif"):
        import numpy as np

        array: Any = source
        _check_size(array.shape[1], array.shape[0], policy, where) if array.ndim == 3 else None
        return Image(np.ascontiguousarray(array))
    if hasattr(source, "getexif") and hasattr(source, "convert"):
        return _of_pillow(source, policy, where)
    limits = Limits("image", "a picture", policy.max_image_bytes)
    data = read_source(source, limits, policy, where)
    if (kind := format_of(data)) is None:
        raise ValidationError(f"{where} is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture")
    if (size := size_of(data)) is None:
        raise ValidationError(f"{where} is damaged or truncated: its header has no size")
    _check_size(*size, policy, where)  # before Pillow sees it
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=[kind]) as picture:
            return _of_pillow(picture, policy, where)
    except (pillow.DecompressionBombError, *_DAMAGED) as e:
        if isinstance(e, ValidationError):
            raise
        raise ValidationError(f"{where} is damaged or truncated: {_reason(e)}") from None


def _pillow() -> Any:
    try:
        return import_module("PIL.Image")
    except ImportError:
        raise LlamaError(
            "decoding pictures needs Pillow: pip install 'llama-cffi[multimodal]'; or pass an "
            "array (height, width, 3) uint8"
        ) from None


def _of_pillow(picture: Any, policy: MediaPolicy, where: str) -> Image:
    """Convert a picture of Pillow: upright, on white, RGB."""
    import numpy as np
    from PIL import ImageOps

    _check_size(*picture.size, policy, where)
    try:
        if getattr(picture, "is_animated", False):
            picture.seek(0)
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16 bits; convert() would clip them
            picture = picture.point(lambda value: value / 256).convert("L")
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            paper = _pillow().new("RGB", picture.size, _WHITE)
            paper.paste(picture, mask=picture.getchannel("A"))
            picture = paper
        pixels = np.array(picture.convert("RGB"), dtype=np.uint8)
    except _DAMAGED as e:
        raise ValidationError(f"{where} is damaged or truncated: {_reason(e)}") from None
    return Image(pixels)


def _reason(error: Exception) -> str:
    """Return the reason in an error of Pillow, without data."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "its header makes no sense" if "BytesIO" in text else text[:120]


def _check_size(width: int, height: int, policy: MediaPolicy, where: str) -> None:
    if width * height > policy.max_pixels or max(width, height) > _MAX_SIDE:
        raise ValidationError(
            f"{where} has {width} x {height} pixels; at most {policy.max_pixels:,} in all and "
            f"{_MAX_SIDE:,} a side are decoded"
        )
