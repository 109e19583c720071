"""Reading WAV files: PCM of 8 to 32 bits, and floats."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ValidationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["WavHeader", "is_wav", "read_header", "read_samples"]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_WIDTHS = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}
_MAX_CHANNELS = 32
_MAX_CHUNKS = 1_000
_BLOCK = 2**20  # frames at a time


@dataclass(frozen=True)
class WavHeader:
    """What the header of a WAV file declares.

    Attributes:
        is_float: Whether the samples are floats; else they are integers.
        n_channels: Number of channels.
        sample_rate: Frames per second.
        width: Bytes of a sample.
        n_frames: Number of frames; a frame has a sample of each channel.
        start: Where the frames begin in the file.
    """

    is_float: bool
    n_channels: int
    sample_rate: int
    width: int
    n_frames: int
    start: int


def is_wav(data: bytes) -> bool:
    """Whether bytes begin as a WAV file does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def read_header(data: bytes, where: str) -> WavHeader:
    """Read the header of a WAV file; the frames that it declares are all there.

    Format: http://soundfile.sapp.org/doc/WaveFormat/

    Raises:
        ValidationError: It is damaged, truncated, or of a kind that is not read.
    """
    at, form = 12, None
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if kind == b"fmt ":
            form = data[at : at + min(size, 40)]
        elif kind == b"data":
            if form is None:
                break
            return _header(form, at, size, len(data), where)
        at += size + size % 2
    raise ValidationError(f"{where} is damaged or truncated: a WAV file without format or data")


def _header(form: bytes, start: int, n_bytes: int, n_file: int, where: str) -> WavHeader:
    if len(form) < 16:
        raise ValidationError(f"{where} is damaged: its format has {len(form)} of 16 bytes")
    tag, n_channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", form)
    if tag == _EXTENSIBLE and len(form) >= 26:
        (tag,) = struct.unpack_from("<H", form, 24)
    if tag not in _WIDTHS:
        raise ValidationError(
            f"{where} is compressed (WAV format {tag}); PCM and floats are read: "
            "ffmpeg -i FILE -c:a pcm_s16le sound.wav"
        )
    width = (bits + 7) // 8
    if not 1 <= n_channels <= _MAX_CHANNELS or width not in _WIDTHS[tag]:
        raise ValidationError(
            f"{where} has {n_channels} channels of {bits} bits; 1 to {_MAX_CHANNELS} of 8, 16, 24 "
            "or 32 bits, or of floats of 32 or 64, are read"
        )
    if frame != n_channels * width:
        raise ValidationError(
            f"{where} is damaged: frames of {frame} bytes for {n_channels} channels of {bits} bits"
        )
    if n_bytes > n_file - start:
        raise ValidationError(
            f"{where} is truncated: {n_bytes // frame:,} frames are declared, and "
            f"{(n_file - start) // frame:,} are there"
        )
    return WavHeader(tag == _FLOAT, n_channels, rate, width, n_bytes // frame, start)


def read_samples(data: bytes, header: WavHeader) -> NDArray[np.float32]:
    """Return the mean of the channels: (n_frames,) float32, from -1 to 1."""
    import numpy as np

    samples = np.empty(header.n_frames, np.float32)
    n_frame = header.n_channels * header.width
    raw = np.frombuffer(data, np.uint8, header.n_frames * n_frame, header.start)
    for at in range(0, header.n_frames, _BLOCK):
        block = raw[at * n_frame : (at + _BLOCK) * n_frame]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            values = _values(block, header).reshape(-1, header.n_channels)
            samples[at : at + _BLOCK] = values.mean(axis=1)
    return samples


def _values(raw: NDArray[np.uint8], header: WavHeader) -> NDArray[np.float64]:
    """Return samples from -1 to 1."""
    import numpy as np

    width = header.width
    if header.is_float:
        return raw.view(f"<f{width}").astype(np.float64)
    if width == 1:  # unsigned
        return raw / 128.0 - 1.0
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = raw.reshape(-1, 3)
        raw, width = wide.reshape(-1), 4
    return raw.view(f"<i{width}") / 2.0 ** (8 * width - 1)
