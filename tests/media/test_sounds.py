from __future__ import annotations

import base64
import io
import struct
import wave
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_cffi import ValidationError
from llama_cffi.media import Audio, MediaPolicy, load_audio
from llama_cffi.media.resampling import windowed_sinc


def wav(samples: NDArray[np.float64], rate: int = 16_000, width: int = 2) -> bytes:
    """Write samples, (n,) or (n, channels), as PCM."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        if width == 1:
            file.writeframes((samples * 127 + 128).round().astype(np.uint8).tobytes())
        else:
            whole = (samples * (2.0 ** (8 * width - 1) - 1)).round().astype("<i8")
            flat = whole.reshape(-1, 1).view(np.uint8)[:, :width]
            file.writeframes(flat.tobytes())
    return out.getvalue()


def tone(hz: float, rate: int, seconds: float = 0.5) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width(width: int) -> None:
    samples = tone(440, 16_000)
    audio = load_audio(wav(samples, width=width))
    assert (audio.sample_rate, audio.duration_s, len(audio.samples)) == (16_000, 0.5, 8_000)
    assert audio.samples.dtype == np.float32
    assert abs(audio.samples - samples).max() < max(2.0 ** -(8 * width - 2), 1e-6)
    assert repr(audio) == "<Audio 0.50 s at 16000 Hz>"


def test_channels_are_averaged() -> None:
    left, right = tone(440, 8_000), tone(880, 8_000)
    audio = load_audio(wav(np.stack([left, right], axis=1), 8_000))
    assert abs(audio.samples - (left + right) / 2).max() < 1e-4


def test_sources() -> None:
    data = wav(tone(440, 16_000))
    expected = load_audio(data)
    text = base64.b64encode(data).decode()
    for source in (io.BytesIO(data), text, f"data:audio/wav;base64,{text}", expected):
        assert load_audio(source).digest == expected.digest
    samples = expected.samples
    assert load_audio(samples, 16_000).digest == expected.digest
    assert load_audio(samples, 8_000).digest != expected.digest
    with pytest.raises(ValidationError, match="pass its sample_rate"):
        load_audio(samples)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"ID3\x03" + bytes(99), "is a MP3 file; WAV is read"),
        (b"fLaC" + bytes(99), "is a FLAC file"),
        (b"nonsense" * 9, "no sound that is known here"),
        (b"", "is empty"),
        (wav(tone(440, 16_000))[:30], "is no WAV file of PCM"),
        (wav(tone(440, 16_000))[:900], "truncated"),
        ("data:image/png;base64,AAAA", "is image/png, not a sound"),
        (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32),
         "is no WAV file of PCM"),  # floats
    ],
)  # fmt: skip
def test_what_is_no_sound(source: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        load_audio(source)


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros((4, 2), np.float32), 16_000, r"got \(4, 2\)"),
        (np.zeros(4, np.int16), 16_000, "int16"),
        (np.zeros(0, np.float32), 16_000, "is empty"),
        (np.array([0, np.nan], np.float32), 16_000, "not finite"),
        (np.array([0, np.inf], np.float32), 16_000, "not finite"),
        (np.zeros(4, np.float32), 4_000, "sample_rate"),
        (np.zeros(4, np.float32), 400_000, "sample_rate"),
    ],
)
def test_arrays_that_are_no_sound(samples: Any, rate: int, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        load_audio(samples, rate)


def test_limits() -> None:
    data = wav(tone(440, 16_000, 2.0))
    with pytest.raises(ValidationError, match="lasts 2 s; at most 1 s"):
        load_audio(data, policy=MediaPolicy(max_audio_s=1))
    with pytest.raises(ValidationError, match="has more than 100 bytes"):
        load_audio(data, policy=MediaPolicy(max_audio_bytes=100))
    # A header that promises an hour is refused before anything is read.
    lying = bytearray(data)
    lying[40:44] = struct.pack("<I", 3600 * 32_000)
    with pytest.raises(ValidationError, match=r"lasts 3600 s|truncated"):
        load_audio(bytes(lying))


def test_mutated_sounds_load_or_are_refused() -> None:
    random = np.random.default_rng(3)
    data = wav(tone(440, 8_000, 0.05), 8_000)
    for _ in range(400):
        changed = bytearray(data)
        for at in random.integers(0, 60, random.integers(1, 5)):
            changed[at] = random.integers(0, 256)
        with suppress(ValidationError):
            load_audio(bytes(changed))


@pytest.mark.parametrize("by_soxr", [True, False])
@pytest.mark.parametrize(
    ("rate", "new"), [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (22_050, 24_000)]
)
def test_resampling_keeps_tones_and_removes_what_would_alias(
    rate: int, new: int, by_soxr: bool
) -> None:
    def resample(samples: NDArray[np.float64]) -> NDArray[np.float32]:
        audio = Audio(samples.astype(np.float32), rate)
        return audio.resampled(new).samples if by_soxr else windowed_sinc(audio.samples, rate, new)

    found = resample(tone(1_000, rate))
    expected = tone(1_000, new)
    n = min(len(found), len(expected))
    assert abs(len(found) - len(expected)) <= 1
    middle = slice(n // 10, -n // 10)
    assert abs(found[:n] - expected[:n])[middle].max() < 2e-3
    if new < rate:  # above the new band
        high = resample(tone(0.62 * new, rate))
        assert 20 * np.log10(np.abs(high[middle]).max() / 0.5) < -60


@settings(max_examples=20)
@given(st.integers(1, 400), st.sampled_from([(44_100, 16_000), (8_000, 16_000)]))
def test_resampling_any_length(n: int, rates: tuple[int, int]) -> None:
    rate, new = rates
    found = windowed_sinc(np.ones(n, np.float32), rate, new)
    assert len(found) == -(-n * new // rate)
    assert np.isfinite(found).all()


def test_parts_of_a_sound() -> None:
    audio = load_audio(wav(tone(440, 16_000, 1.0)))
    assert audio.part(0.25, 0.5).duration_s == 0.25
    with pytest.raises(ValidationError, match="empty"):
        audio.part(2, 3)
