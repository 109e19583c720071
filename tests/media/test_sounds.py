from __future__ import annotations

import base64
import io
import struct
import sys
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llama_cffi import ValidationError
from llama_cffi.media import Audio, MediaPolicy, load_audio
from llama_cffi.media import wav as wav_module
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


def riff(form: bytes, n_bytes: int | None = None, body: bytes = bytes(64)) -> bytes:
    """Write a WAV file with any format and declared size."""
    n = len(body) if n_bytes is None else n_bytes
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", n) + body
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width(width: int) -> None:
    samples = tone(440, 16_000)
    audio = load_audio(wav(samples, width=width))
    assert (audio.sample_rate, audio.duration_s, len(audio.samples)) == (16_000, 0.5, 8_000)
    assert audio.samples.dtype == np.float32
    assert abs(audio.samples - samples).max() < max(2.0 ** -(8 * width - 2), 1e-6)
    assert repr(audio) == "<Audio 0.50 s at 16000 Hz>"


@pytest.mark.parametrize("width", [4, 8])
def test_floats(width: int) -> None:
    samples = tone(440, 16_000)
    form = struct.pack("<HHIIHH", 3, 1, 16_000, 16_000 * width, width, 8 * width)
    found = load_audio(riff(form, body=samples.astype(f"<f{width}").tobytes()))
    assert np.array_equal(found.samples, samples.astype(np.float32))


def test_the_extensible_format() -> None:
    """Which many programs write for more than 16 bits or two channels."""
    form = struct.pack("<HHIIHHHHIH", 0xFFFE, 1, 16_000, 48_000, 3, 24, 22, 24, 4, 1) + bytes(14)
    data = wav(tone(440, 16_000), width=3)
    assert load_audio(riff(form, body=data[44:])).digest == load_audio(data).digest


def test_chunks_before_the_data() -> None:
    data = wav(tone(440, 16_000))
    extra = b"LIST\3\0\0\0abc\0"
    assert load_audio(data[:36] + extra + data[36:]).digest == load_audio(data).digest


def test_long_sounds_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = wav(np.stack([tone(440, 16_000), tone(99, 16_000)], axis=1), width=3)
    expected = load_audio(data)
    monkeypatch.setattr(wav_module, "_BLOCK", 1_000)
    assert load_audio(data).digest == expected.digest


def test_sounds_are_copies_that_cannot_be_changed() -> None:
    array = np.zeros(1_000, np.float32)
    audio = load_audio(array[::2], 16_000)
    array[:] = 1
    assert audio.samples.max() == 0
    assert audio.samples.flags.c_contiguous
    assert not audio.samples.flags.writeable


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
        (b"ID3\x03" + bytes(99), "is a file of MP3; WAV is read"),
        (b"fLaC" + bytes(99), "is a file of FLAC"),
        (b"nonsense" * 9, "no sound that is known here"),
        (b"", "is empty"),
        (wav(tone(440, 16_000))[:30], "without format or data"),
        (wav(tone(440, 16_000))[:900], "truncated"),
        ("data:image/png;base64,AAAA", "is image/png, not a sound"),
        (riff(struct.pack("<HHIIHH", 17, 1, 16_000, 64_000, 4, 32)), "compressed .WAV format 17"),
        (riff(struct.pack("<HHIIHH", 1, 0, 16_000, 0, 0, 16)), "has 0 channels of 16 bits"),
        (riff(struct.pack("<HHIIHH", 1, 99, 16_000, 0, 198, 16)), "has 99 channels"),
        (riff(struct.pack("<HHIIHH", 1, 1, 16_000, 0, 8, 64)), "channels of 64 bits"),
        (riff(struct.pack("<HHIIHH", 3, 1, 16_000, 0, 2, 16)), "channels of 16 bits"),
        (riff(struct.pack("<HHIIHH", 1, 1, 16_000, 0, 3, 16)), "frames of 3 bytes"),
        (riff(struct.pack("<HHIIHH", 1, 1, 0, 0, 2, 16)), "sample rate of the sound"),
        (riff(struct.pack("<HHIIHH", 1, 1, 4_000, 0, 2, 16)), "sample rate of the sound"),
        (riff(struct.pack("<HHIIHH", 1, 1, 2**31, 0, 2, 16)), "sample rate of the sound"),
        (riff(struct.pack("<HHIIHH", 1, 1, 16_000, 0, 2, 16), 2**32 - 1), "2,147,483,647 frames"),
        (riff(struct.pack("<HHIIHH", 1, 1, 16_000, 0, 2, 16), 0), "is empty: 0 samples"),
        (riff(b"\1\0\1\0"), "its format has 4 of 16 bytes"),
        (b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 100_000, "without format or data"),
        (riff(struct.pack("<HHIIHH", 3, 1, 16_000, 0, 8, 64), body=struct.pack("<d", 1e300)),
         "not finite"),
        (riff(struct.pack("<HHIIHH", 3, 1, 16_000, 0, 4, 32), body=b"\0\0\xc0\x7f"), "not finite"),
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
        (np.zeros(4, np.float64), 16_000, "float64"),
        (np.zeros(4, ">f4"), 16_000, ">f4"),
        (np.zeros(4, np.complex64), 16_000, "complex64"),
        (np.ma.zeros(4, np.float32), 16_000, "MaskedArray"),
        (np.float32(1), 16_000, "float32"),
        (np.zeros(4, np.float32), 16_000.5, "sample_rate"),
        (np.zeros(4, np.float32), "16000", "sample_rate"),
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


@pytest.mark.parametrize(("rate", "new"), [(44_100, 16_000), (8_000, 24_000), (192_000, 8_000)])
def test_the_windowed_sinc_agrees_with_soxr(rate: int, new: int) -> None:
    """On noise within the band that both leave as it is."""
    random = np.random.default_rng(7)
    n = rate // 2
    spectrum = np.zeros(n // 2 + 1, complex)
    n_band = round(0.8 * min(rate, new) / 2 / rate * n)
    spectrum[:n_band] = random.normal(size=n_band) + 1j * random.normal(size=n_band)
    noise = np.fft.irfft(spectrum, n)
    noise = (0.5 * noise / abs(noise).max()).astype(np.float32)
    ours, theirs = windowed_sinc(noise, rate, new), Audio(noise, rate).resampled(new).samples
    m = min(len(ours), len(theirs))
    middle = slice(m // 10, -m // 10)
    assert abs(ours[:m] - theirs[:m])[middle].max() < 1e-3


def test_without_soxr(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = Audio(tone(440, 44_100).astype(np.float32), 44_100)
    monkeypatch.setitem(sys.modules, "soxr", None)
    found = audio.resampled(16_000).samples
    assert np.array_equal(found, windowed_sinc(audio.samples, 44_100, 16_000))


def test_rates_without_a_common_divisor() -> None:
    """The most filters that there can be."""
    found = windowed_sinc(np.ones(1_000, np.float32), 8_009, 8_011)
    assert abs(found[100:-100] - 1).max() < 1e-4
