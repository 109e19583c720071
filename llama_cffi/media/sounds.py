"""Decoding sounds, within limits: WAV files by the standard library."""

from __future__ import annotations

import io
import struct
import wave
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from .policy import MediaPolicy
from .sources import Limits, read_source
from .types import Audio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .sources import Source

    AudioSource = Source | Audio | NDArray[np.float32]

__all__ = ["load_audio"]

_MAX_CHANNELS = 32
_OTHERS = {b"fLaC": "FLAC", b"OggS": "Ogg", b"ID3": "MP3", b"\xff\xfb": "MP3", b"\xff\xf3": "MP3"}


def load_audio(
    source: AudioSource,
    sample_rate: int | None = None,
    policy: MediaPolicy | None = None,
    where: str = "the sound",
) -> Audio:
    """Load a sound, mono.

    Args:
        source: An `Audio`; samples (n,) float32; bytes, a binary file or a path of a WAV file of
            8, 16, 24 or 32 bits; or a str: a path, a data:, file: or https: URL, or base64.
        sample_rate: The sample rate of an array, Hz; files have their own.
        policy: What may be loaded; None: the defaults of `MediaPolicy`.
        where: Its name in error messages.

    Raises:
        ValidationError: It is no such sound, damaged, too long, or not allowed.
        FetchError: An address cannot be fetched.
    """
    policy = policy or MediaPolicy()
    if isinstance(source, Audio):
        audio = source
    elif hasattr(source, "__array_interface__"):
        if sample_rate is None:
            raise ValidationError(f"{where} is an array; pass its sample_rate in Hz, too")
        import numpy as np

        audio = Audio(np.ascontiguousarray(source), sample_rate)
    else:
        limits = Limits("audio", "a sound", policy.max_audio_bytes)
        audio = _decode(read_source(source, limits, policy, where), policy, where)
    if audio.duration_s > policy.max_audio_s:
        raise _too_long(audio.duration_s, policy, where)
    return audio


def _decode(data: bytes, policy: MediaPolicy, where: str) -> Audio:
    import numpy as np

    if not (data[:4] in (b"RIFF", b"RIFX") and data[8:12] == b"WAVE"):
        kind = next((name for magic, name in _OTHERS.items() if data.startswith(magic)), None)
        found = f"a {kind} file" if kind else "no sound that is known here"
        raise ValidationError(
            f"{where} is {found}; WAV is read. Convert it (ffmpeg -i FILE sound.wav), or decode it "
            "yourself and pass samples (n,) float32"
        )
    try:
        with wave.open(io.BytesIO(data)) as file:
            n_channels, width, rate, n_frames = file.getparams()[:4]
            if not 1 <= n_channels <= _MAX_CHANNELS or width not in (1, 2, 3, 4):
                raise ValidationError(
                    f"{where} has {n_channels} channels of {8 * width} bits; 1 to {_MAX_CHANNELS} "
                    "of 8, 16, 24 or 32 bits are read"
                )
            if rate > 0 and n_frames / rate > policy.max_audio_s:
                raise _too_long(n_frames / rate, policy, where)
            raw = file.readframes(n_frames)
    except (wave.Error, struct.error, EOFError, ArithmeticError, RuntimeError, OSError) as e:
        raise ValidationError(
            f"{where} is no WAV file of PCM: {e or 'its header is cut off'}"
        ) from None
    if len(raw) != n_frames * n_channels * width:
        raise ValidationError(
            f"{where} is truncated: {n_frames} frames are declared, and "
            f"{len(raw) // (n_channels * width)} are there"
        )
    samples = _as_floats(raw, width).reshape(-1, n_channels).mean(axis=1)
    return Audio(samples.astype(np.float32), rate)


def _as_floats(raw: bytes, width: int) -> NDArray[np.float64]:
    """Return PCM samples from -1 to 1."""
    import numpy as np

    found: Any
    if width == 1:
        return (np.frombuffer(raw, np.uint8) - 128.0) / 128
    if width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        found = np.zeros((len(parts), 4), np.uint8)
        found[:, 1:] = parts
        return found.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(raw, f"<i{width}") / 2.0 ** (8 * width - 1)


def _too_long(seconds: float, policy: MediaPolicy, where: str) -> ValidationError:
    return ValidationError(
        f"{where} lasts {seconds:.0f} s; at most {policy.max_audio_s:.0f} s are taken"
    )
