"""Decoding sounds, within limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..errors import ValidationError
from ..validation import check_int
from .policy import MediaPolicy
from .sources import limits_of, read_source
from .types import MAX_RATE, MIN_RATE, Audio
from .wav import is_wav, read_header, read_samples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .sources import Source

    AudioSource = Source | Audio | NDArray[np.float32]

__all__ = ["load_audio"]

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
            8, 16, 24 or 32 bits, or of floats; or a str: a path, a data:, file: or https: URL, or
            base64.
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
        audio = Audio(cast("NDArray[np.float32]", source), sample_rate)
    else:
        data = read_source(source, limits_of("audio", policy), policy, where)
        audio = _decode(data, policy, where)
    _check_length(audio.duration_s, policy, where)
    return audio


def _decode(data: bytes, policy: MediaPolicy, where: str) -> Audio:
    if not is_wav(data):
        kind = next((name for magic, name in _OTHERS.items() if data.startswith(magic)), None)
        found = f"a file of {kind}" if kind else "no sound that is known here"
        raise ValidationError(
            f"{where} is {found}; WAV is read. Convert it (ffmpeg -i FILE sound.wav), or decode it "
            "yourself and pass samples (n,) float32"
        )
    header = read_header(data, where)
    rate = check_int(f"the sample rate of {where}", header.sample_rate, MIN_RATE, MAX_RATE)
    _check_length(header.n_frames / rate, policy, where)
    return Audio(read_samples(data, header), rate)


def _check_length(seconds: float, policy: MediaPolicy, where: str) -> None:
    if seconds > policy.max_audio_s:
        raise ValidationError(
            f"{where} lasts {seconds:.0f} s; at most {policy.max_audio_s:.0f} s are taken"
        )
