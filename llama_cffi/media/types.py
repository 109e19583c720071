"""A picture and a sound, decoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from ..html_repr import shown_by
from ..validation import check_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MAX_RATE", "MIN_RATE", "Audio", "Image"]

# Of sounds, Hz.
MIN_RATE, MAX_RATE = 8_000, 192_000


@dataclass(frozen=True, eq=False)
class Image:
    """A picture.

    Shapes: *pixels* (height, width, 3) uint8, RGB.

    Attributes:
        pixels: The pixels, contiguous and read-only: a copy of a writable array.

    Raises:
        ValidationError: The array has another shape or type, or no pixels.
    """

    pixels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        array = _plain_array(self.pixels)
        if array is None or array.ndim != 3 or array.shape[2] != 3 or array.dtype != "uint8":
            raise ValidationError(
                f"a picture must be an array (height, width, 3) uint8, got {_told(self.pixels)}; "
                "grey pictures need three equal channels, and transparent ones a background"
            )
        if not (array.shape[0] and array.shape[1]):
            raise ValidationError(
                f"the picture is empty: {array.shape[1]} x {array.shape[0]} pixels"
            )
        object.__setattr__(self, "pixels", _frozen(array))

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
        found = hashlib.sha256(f"image {self.width} {self.height} ".encode())
        found.update(self.pixels.data)
        return found.digest()

    _repr_html_ = shown_by("picture")

    def __repr__(self) -> str:
        return f"<Image {self.width}x{self.height}>"


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound.

    Shapes: *samples* (n,) float32, mono, from -1 to 1.

    Attributes:
        samples: The samples, contiguous and read-only: a copy of a writable array.
        sample_rate: Samples per second, 8,000 to 192,000 Hz.

    Raises:
        ValidationError: The array has another shape or type, no samples, or some that are not
            finite; or the rate is out of range.
    """

    samples: NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        import numpy as np

        array = _plain_array(self.samples)
        if array is None or array.ndim != 1 or array.dtype != "float32":
            raise ValidationError(
                f"a sound must be an array (n,) float32, mono, got {_told(self.samples)}; take the "
                "mean of its channels, and divide integers by their range"
            )
        check_int("sample_rate", self.sample_rate, MIN_RATE, MAX_RATE)
        if not len(array):
            raise ValidationError("the sound is empty: 0 samples")
        if not np.isfinite(array).all():
            raise ValidationError("the sound has samples that are not finite numbers")
        object.__setattr__(self, "samples", _frozen(array))

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of rate and samples: equal for equal sounds."""
        found = hashlib.sha256(f"audio {self.sample_rate} ".encode())
        found.update(self.samples.data)
        return found.digest()

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
        check_int("sample_rate", sample_rate, MIN_RATE, MAX_RATE)
        return Audio(resample(self.samples, self.sample_rate, sample_rate), sample_rate)

    def part(self, start_s: float, end_s: float) -> Audio:
        """Return the part from *start_s* to *end_s* seconds.

        Raises:
            ValidationError: It is empty.
        """
        rate = self.sample_rate
        return Audio(self.samples[round(start_s * rate) : round(end_s * rate)], rate)

    _repr_html_ = shown_by("sound")

    def __repr__(self) -> str:
        return f"<Audio {self.duration_s:.2f} s at {self.sample_rate} Hz>"


def _plain_array(value: object) -> NDArray[Any] | None:
    """Return an array without what a subclass adds, such as a mask; None: it is none."""
    import numpy as np

    if not hasattr(value, "__array_interface__"):
        return None
    return None if isinstance(value, np.ma.MaskedArray) else np.asarray(value)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that nobody can change: results are cached by its digest."""
    import numpy as np

    if array.flags.c_contiguous and array.flags.owndata and not array.flags.writeable:
        return array
    found = np.array(array, order="C")
    found.flags.writeable = False
    return found


def _told(value: object) -> str:
    """Describe what was given instead of an array."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    kind = type(value).__name__
    return (
        f"{shape} {dtype}" if kind == "ndarray" else f"{kind} {shape or ''} {dtype or ''}".strip()
    )
