"""Pictures and sounds as arrays, from files, bytes, data URLs and the web."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Audio", "Image", "MediaPolicy", "is_media_part", "load_part"]


@dataclass(frozen=True, eq=False)
class Image:
    """A picture: (height, width, 3) uint8."""

    pixels: NDArray[np.uint8]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of shape and pixels."""
        return hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes()).digest()


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound: (n,) float32, and its sample rate in Hz."""

    samples: NDArray[np.float32]
    sample_rate: int

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of rate and samples."""
        head = repr(self.sample_rate).encode()
        return hashlib.sha256(head + self.samples.tobytes()).digest()

    def resampled(self, sample_rate: int) -> Audio:
        """Return the sound at another rate."""
        if sample_rate != self.sample_rate:
            raise ValidationError("not there yet")
        return self


@dataclass(frozen=True)
class MediaPolicy:
    """What may be loaded."""


def is_media_part(part: object) -> str | None:
    """Return `image` or `audio`; None for other parts."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if kind in ("image", "audio") else None


def load_part(part: Mapping[str, Any], where: str, policy: MediaPolicy) -> Image | Audio:
    """Load one content part."""
    if part["type"] == "image":
        return Image(part["image"])
    return Audio(part["audio"], part.get("sample_rate", 16000))
