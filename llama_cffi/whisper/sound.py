"""Samples for whisper.cpp: any sound that `load_audio` reads, as 16 kHz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ValidationError
from ..media import MediaPolicy, load_audio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..media.sounds import AudioSource

__all__ = ["MAX_AUDIO_S", "POLICY", "SAMPLE_RATE", "load_samples"]

SAMPLE_RATE = 16_000  # of every model
MIN_AUDIO_S = 0.1  # C returns nothing for less, and reads past the end of less than 201 samples
MAX_AUDIO_S = 4 * 3600.0  # C counts bytes of the spectrogram with 32 bits
POLICY = MediaPolicy(max_audio_s=MAX_AUDIO_S, max_audio_bytes=2**30)
_LOUDEST = 16.0  # far above full scale; integers that were not divided are far above this


def load_samples(
    audio: AudioSource, sample_rate: int = SAMPLE_RATE, policy: MediaPolicy = POLICY
) -> NDArray[np.float32]:
    """Return samples as C takes them: (n,) float32, mono, 16 kHz, contiguous.

    Args:
        audio: A sound.
        sample_rate: Samples per second of an array, in Hz; a file has its own.
        policy: What may be loaded.

    Raises:
        ValidationError: It is no sound, or not allowed, or shorter than 0.1 s, or longer than 4 h,
            or has samples far above 1.
        FetchError: An address cannot be fetched.
    """
    import numpy as np

    sound = load_audio(audio, sample_rate, policy, "the audio")
    if not MIN_AUDIO_S <= sound.duration_s <= MAX_AUDIO_S:
        advice = "pad it with silence" if sound.duration_s < MIN_AUDIO_S else "split it"
        raise ValidationError(
            f"the audio has {sound.duration_s:g} s, outside {MIN_AUDIO_S:g}..{MAX_AUDIO_S:g}: "
            + advice
        )
    loudest = float(np.abs(sound.samples).max())
    if loudest > _LOUDEST:
        raise ValidationError(
            f"samples must be within -1..1, the largest is {loudest:g}: divide 16-bit samples by "
            "32768"
        )
    return np.ascontiguousarray(sound.resampled(SAMPLE_RATE).samples, np.float32)
