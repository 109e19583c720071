"""Samples for whisper.cpp: checked arrays, and WAV files."""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ValidationError
from ..validation import check_int, missing_file, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MAX_AUDIO_S", "SAMPLE_RATE", "load_samples"]

SAMPLE_RATE = 16_000  # of every model
MAX_AUDIO_S = 4 * 3600
MIN_AUDIO_S = 0.1  # C returns nothing for less, and reads past the end of less than 201 samples
_LOUDEST = 16.0  # far above full scale; integers that were not divided are far above this
_MAX_WAV_BYTES = 2**31


def load_samples(
    audio: str | os.PathLike[str] | bytes | NDArray[np.floating] | Sequence[float],
    sample_rate: int = SAMPLE_RATE,
) -> NDArray[np.float32]:
    """Return samples as C takes them: (n,) float32, mono, 16 kHz, contiguous.

    Args:
        audio: A WAV file as path or bytes, or samples between -1 and 1.
        sample_rate: Samples per second of an array, in Hz; a file has its own.

    Raises:
        ValidationError: The audio cannot be read, has another shape or rate, is shorter than 0.1 s
            or longer than 4 h, or has samples that are not finite or far above 1.
    """
    import numpy as np

    if isinstance(audio, (str, os.PathLike)):
        samples, sample_rate = _read_wav(Path(audio).expanduser(), str(audio))
    elif isinstance(audio, (bytes, bytearray, memoryview)):
        samples, sample_rate = _read_wav(io.BytesIO(audio), "the WAV file")
    else:
        samples = _as_array(audio)
        check_int("sample_rate", sample_rate, 1)
    if sample_rate != SAMPLE_RATE:
        raise ValidationError(
            f"the audio has {sample_rate} Hz, and whisper.cpp takes {SAMPLE_RATE}: resample it, "
            "for example with soxr.resample(samples, rate, 16000)"
        )
    seconds = len(samples) / SAMPLE_RATE
    if not MIN_AUDIO_S <= seconds <= MAX_AUDIO_S:
        raise ValidationError(
            f"the audio has {seconds:g} s, outside {MIN_AUDIO_S:g}..{MAX_AUDIO_S}: "
            + ("pad it with silence" if seconds < MIN_AUDIO_S else "split it")
        )
    loudest = float(np.abs(samples).max())
    if not loudest <= _LOUDEST:
        hint = "divide 16-bit samples by 32768" if loudest > _LOUDEST else "NaN or infinite samples"
        raise ValidationError(f"samples must be within -1..1, the largest is {loudest:g}: {hint}")
    return samples


def _as_array(audio: NDArray[np.floating] | Sequence[float]) -> NDArray[np.float32]:
    import numpy as np

    try:
        array = np.asarray(audio)
    except ValueError as e:
        raise ValidationError(f"audio is not an array of samples: {e}") from None
    if array.dtype.kind != "f":
        hint = "; divide 16-bit samples by 32768" if array.dtype.kind in "iu" else ""
        raise ValidationError(
            "audio must be a WAV file (path or bytes) or an array of float32, got "
            f"{shown(audio) if array.dtype.kind == 'O' else array.dtype}{hint}"
        )
    if array.ndim != 1:
        raise ValidationError(
            f"audio must have one channel and the shape (n,), got {array.shape}; "
            "samples.mean(axis=...) mixes channels"
        )
    return np.ascontiguousarray(array, np.float32)


def _read_wav(file: Path | io.BytesIO, name: str) -> tuple[NDArray[np.float32], int]:
    """Return the samples of a PCM file, its channels mixed, and its rate."""
    if isinstance(file, Path) and not file.is_file():
        raise ValidationError(missing_file(file, "audio"))
    try:
        with wave.open(str(file) if isinstance(file, Path) else file, "rb") as reader:
            width, channels, rate = (
                reader.getsampwidth(), reader.getnchannels(), reader.getframerate()
            )  # fmt: skip
            if reader.getnframes() * width * channels > _MAX_WAV_BYTES:
                raise ValidationError(f"{name} has more than {MAX_AUDIO_S} s; split it")
            data = reader.readframes(reader.getnframes())
    except (wave.Error, EOFError, OSError, ValueError) as e:
        if isinstance(e, ValidationError):
            raise
        raise ValidationError(
            f"{name} cannot be read as WAV: {str(e) or 'it ends early'}. Convert it, for example "
            "with ffmpeg -i FILE -ar 16000 -ac 1 FILE.wav"
        ) from e
    return _from_pcm(data, width, channels), rate


def _from_pcm(data: bytes, width: int, channels: int) -> NDArray[np.float32]:
    """Return the mean of the channels, between -1 and 1."""
    import numpy as np

    data = data[: len(data) // (width * channels) * width * channels]
    if width == 1:  # unsigned
        integers = np.frombuffer(data, np.uint8).astype(np.int32) - 128
    elif width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        integers = padded.view("<i4")[:, 0] >> 8
    else:
        integers = np.frombuffer(data, f"<i{width}")
    scale = np.float32(2.0 ** (1 - 8 * width))
    mixed = integers.reshape(-1, channels).mean(axis=1, dtype=np.float64)
    return np.ascontiguousarray(mixed * scale, np.float32)
