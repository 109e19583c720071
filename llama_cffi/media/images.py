"""Decoding pictures, within limits.

Formats and sizes are checked from the header, before anything is decoded.
"""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError, ValidationError
from .headers import FORMATS, format_of, size_of
from .policy import MediaPolicy
from .sources import limits_of, read_source
from .types import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as PillowImage

    from .sources import Source

    ImageSource = Source | Image | PillowImage.Image | NDArray[np.uint8]

__all__ = ["load_image"]

_MAX_SIDE = 65_535
_WHITE = (255, 255, 255)
_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ORIENTATION = 0x0112  # in EXIF data
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def load_image(
    source: ImageSource, policy: MediaPolicy | None = None, where: str = "the picture"
) -> Image:
    """Load a picture.

    Of animations the first frame counts (of a Pillow picture, its current frame). The orientation
    in EXIF data is applied, and transparent parts become white. The pixels are a copy.

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
        _check_size(source.width, source.height, policy, where)
        return source
    if _is_pillow(source):  # asked for its array interface, it would decode before it is checked
        return _of_pillow(source, policy, where)
    if hasattr(source, "__array_interface__"):
        array: Any = source
        if len(getattr(array, "shape", ())) == 3:
            _check_size(array.shape[1], array.shape[0], policy, where)
        return Image(array)
    data = read_source(source, limits_of("image", policy), policy, where)
    if (kind := format_of(data)) is None:
        raise ValidationError(f"{where} is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture")
    if (size := size_of(data)) is None:
        raise ValidationError(f"{where} is damaged or truncated: its header has no size")
    _check_size(*size, policy, where)  # before Pillow sees it
    pillow = _pillow()
    _check_limit_of_pillow(*size, pillow, where)
    try:
        picture = pillow.open(io.BytesIO(data), formats=[kind])
    except Exception as e:
        raise _damaged(e, where) from None
    with picture:
        return _of_pillow(picture, policy, where)


def _is_pillow(source: object) -> bool:
    """Whether an object is a picture of Pillow, without importing it."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(source, pillow.Image)


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
    width, height = picture.size
    _check_size(width, height, policy, where)
    _check_limit_of_pillow(width, height, _pillow(), where)
    try:
        picture.load()
        turn = _TURNS.get(_orientation(picture))
        pixels = _rgb(picture if turn is None else picture.transpose(_pillow().Transpose[turn]))
    except Exception as e:  # Pillow raises almost anything for damaged files
        raise _damaged(e, where) from None
    return Image(pixels)


def _orientation(picture: Any) -> int:
    """Return how the picture is stored, 1 to 8; damaged EXIF data does not count."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _rgb(picture: Any) -> NDArray[np.uint8]:
    import numpy as np

    if picture.mode in _16_BITS:  # convert() would clip them
        values = np.asarray(picture)
        grey = np.clip(values >> 8, 0, 255).astype(np.uint8)
        if isinstance(clear := picture.info.get("transparency"), int):
            grey[values == clear] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if _is_transparent(picture):
        picture = picture.convert("RGBA")
        paper = _pillow().new("RGB", picture.size, _WHITE)
        paper.paste(picture, mask=picture.getchannel("A"))
        picture = paper
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def _is_transparent(picture: Any) -> bool:
    # Pillow's own has_transparency_data came after Pillow 10.0.
    palette = picture.palette.mode if picture.mode == "P" and picture.palette else ""
    return (
        picture.mode in ("RGBA", "LA", "PA", "RGBa", "La")
        or palette.endswith("A")
        or "transparency" in picture.info
    )


def _damaged(error: Exception, where: str) -> ValidationError:
    """Return the error for what Pillow raised, without data."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    reason = "its header makes no sense" if "BytesIO" in text else text[:120]
    return ValidationError(f"{where} is damaged or truncated: {reason}")


def _check_size(width: int, height: int, policy: MediaPolicy, where: str) -> None:
    if width * height > policy.max_pixels or max(width, height) > _MAX_SIDE:
        raise ValidationError(
            f"{where} has {width} x {height} pixels; at most {policy.max_pixels:,} in all and "
            f"{_MAX_SIDE:,} a side are decoded"
        )


def _check_limit_of_pillow(width: int, height: int, pillow: Any, where: str) -> None:
    """Refuse what Pillow would only warn of."""
    limit = pillow.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ValidationError(
            f"{where} has {width} x {height} pixels; PIL.Image.MAX_IMAGE_PIXELS is {limit:,}"
        )
