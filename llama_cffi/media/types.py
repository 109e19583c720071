"""A picture and a sound, decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import ValidationError
from ..validation import check_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Audio", "Image"]

_MIN_RATE, _MAX_RATE = 8_000, 192_000


@dataclass(frozen=True, eq=False)
class Image:
    """A picture.

    Shapes: *pixels* (height, width, 3) uint8, RGB.

    Attributes:
        pixels: The pixels; not to be changed.

    Raises:
        ValidationError: The array has another shape or type, or no pixels.
    """

    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        shape, dtype = getattr(self.pixels, "shape", None), getattr(self.pixels, "dtype", None)
        if shape is None or len(shape) != 3 or shape[2] != 3 or dtype != "uint8":
            raise ValidationError(
                f"a picture must be (height, width, 3) uint8, got {shape} {dtype}; grey pictures "
                "need three equal channels, and transparent ones a background"
            )
        if not (shape[0] and shape[1]):
            raise ValidationError(f"the picture is empty: {shape[1]} x {shape[0]} pixels")

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of size and pixels: equal for equal pictures."""
        head = f"image {self.width} {self.height} ".encode()
        return hashlib.sha256(head + self.pixels.tobytes()).digest()

    def __repr__(self) -> str:
        return f"<Image {self.width}x{self.height}>"


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound.

    Shapes: *samples* (n,) float32, mono, from -1 to 1.

    Attributes:
        samples: The samples; not to be changed.
        sample_rate: Samples per second, 8,000 to 192,000 Hz.

    Raises:
        ValidationError: The array has another shape or type, no samples, or some that are not
            finite; or the rate is out of range.
    """

    samples: NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        import numpy as np

        shape, dtype = getattr(self.samples, "shape", None), getattr(self.samples, "dtype", None)
        if shape is None or len(shape) != 1 or dtype != "float32":
            raise ValidationError(
                f"a sound must be (n,) float32, mono, got {shape} {dtype}; take the mean of its "
                "channels, and divide integers by their range"
            )
        check_int("sample_rate", self.sample_rate, _MIN_RATE, _MAX_RATE)
        if not len(self.samples):
            raise ValidationError("the sound is empty: 0 samples")
        if not np.isfinite(self.samples).all():
            raise ValidationError("the sound has samples that are not finite numbers")

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of rate and samples: equal for equal sounds."""
        head = f"audio {self.sample_rate} ".encode()
        return hashlib.sha256(head + self.samples.tobytes()).digest()

    def resampled(self, sample_rate: int) -> Audio:
        """Return the sound at another sample rate.

        By soxr if it is installed, else by a windowed sinc.

        Args:
            sample_rate: Samples per second.

        Raises:
            ValidationError: The rate is out of range.
        """
        from .resampling import resample

        if sample_rate == self.sample_rate:
            return self
        check_int("sample_rate", sample_rate, _MIN_RATE, _MAX_RATE)
        return Audio(resample(self.samples, self.sample_rate, sample_rate), sample_rate)

    def part(self, start_s: float, end_s: float) -> Audio:
        """Return the part from *start_s* to *end_s* seconds.

        Raises:
            ValidationError: It is empty.
        """
        rate = self.sample_rate
        return Audio(self.samples[round(start_s * rate) : round(end_s * rate)], rate)

    def __repr__(self) -> str:
        return f"<Audio {self.duration_s:.2f} s at {self.sample_rate} Hz>"
