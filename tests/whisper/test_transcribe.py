"""Transcription with models that say a known text, and with random ones."""

from __future__ import annotations

import io
import re
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.children import Child
from support.tiny_whisper import (
    EOT,
    LANGUAGE,
    MULTILINGUAL,
    at,
    random_weights,
    scripted_weights,
    tone,
    word,
    write_model,
)

from llama_cffi import (
    CancelledError,
    ClosedError,
    DeadlineExceededError,
    UnknownOptionError,
    ValidationError,
)
from llama_cffi.whisper import Segment, Transcript, Whisper

SPEECH = tone(2.5)
ROOT = Path(__file__).parents[2]


def english() -> list[int]:
    hello = [word(" Hello"), word(" world"), word(".")]
    return [at(0.0), *hello, at(1.5), at(1.6), word(" again"), at(2.4), EOT]


def german() -> list[int]:
    def time(seconds: float) -> int:
        return at(seconds, MULTILINGUAL)

    spoken = [time(0.0), word(" über"), time(1.5), time(1.6), word(" 日本"), time(2.4), EOT + 1]
    # After the start token comes the language, after the language the task.
    return [LANGUAGE + 2, 0, *spoken]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    write_model(folder / "english.bin", scripted_weights(english()), ftype=1)
    write_model(folder / "german.bin", scripted_weights(german(), MULTILINGUAL), ftype=1)
    write_model(folder / "random.bin", random_weights(), ftype=1)
    return folder


@pytest.fixture(scope="module")
def whisper(folder: Path, libwhisper: Path) -> Iterator[Whisper]:
    with Whisper(folder / "english.bin", libwhisper, 1) as whisper:
        yield whisper


@pytest.fixture(scope="module")
def multilingual(folder: Path, libwhisper: Path) -> Iterator[Whisper]:
    with Whisper(folder / "german.bin", libwhisper, 1) as whisper:
        yield whisper


@pytest.fixture(scope="module")
def random(folder: Path, libwhisper: Path) -> Iterator[Whisper]:
    with Whisper(folder / "random.bin", libwhisper, 1) as whisper:
        yield whisper


def times(transcript: Transcript) -> list[tuple[float, float, str]]:
    return [(s.start_s, s.end_s, s.text) for s in transcript.segments]


def test_segments_with_timestamps(whisper: Whisper) -> None:
    result = whisper.transcribe(SPEECH)
    assert times(result) == [(0.0, 1.5, " Hello world."), (1.6, 2.4, " again")]
    assert (result.text, result.language, result.duration_s) == ("Hello world. again", "en", 2.5)
    first = result.segments[0]
    assert [t.id for t in first.tokens] == [*english()[:5]]
    assert [t.text for t in first.tokens] == ["[_BEG_]", " Hello", " world", ".", "[_TT_75]"]
    assert all(0.99 < t.probability <= 1 for t in first.tokens)
    assert whisper.transcribe(SPEECH) == result


def test_times_stay_inside_the_audio(whisper: Whisper) -> None:
    """The model speaks of 2.4 s, whatever it hears."""
    result = whisper.transcribe(SPEECH[:16_000])
    assert all(0 <= s.start_s <= s.end_s <= 1.0 for s in result.segments)
    assert result.segments


def test_windows_follow_each_other(whisper: Whisper) -> None:
    """After 30 s the next window begins; its segments are told as they are done."""
    seen: list[Segment] = []
    done: list[float] = []
    result = whisper.transcribe(
        tone(35), temperature_inc=0, on_segment=seen.append, progress=done.append
    )
    assert times(result)[:2] == [(0.0, 1.5, " Hello world."), (1.6, 2.4, " again")]
    assert list(result.segments) == seen
    starts = [s.start_s for s in seen]
    assert starts == sorted(starts)
    assert done == [0.0, 0.85, 1.0]


def test_without_timestamps(whisper: Whisper) -> None:
    (segment,) = whisper.transcribe(SPEECH, timestamps=False).segments
    assert segment.text.startswith(" Hello world.")
    assert (segment.start_s, segment.end_s) == (0.0, 2.5)


def test_beams_say_the_same(whisper: Whisper) -> None:
    assert whisper.transcribe(SPEECH, beam_size=3).text == "Hello world. again"


def test_the_language_is_detected_or_given(multilingual: Whisper) -> None:
    assert len(multilingual.languages) == 99
    found = multilingual.transcribe(SPEECH)
    assert (found.language, found.text) == ("de", "über 日本")
    given = multilingual.transcribe(SPEECH, language="fr", translate=True)
    assert (given.language, given.text) == ("fr", "über 日本")
    with pytest.raises(ValidationError, match=r"language='klingon' is not one of en, zh"):
        multilingual.transcribe(SPEECH, language="klingon")
    with pytest.raises(ValidationError, match="language='yue'"):
        multilingual.transcribe(SPEECH, language="yue")  # of models with 100 languages


def test_an_english_model_does_not_translate(whisper: Whisper) -> None:
    assert whisper.languages == ("en",)
    assert whisper.transcribe(SPEECH, language="en").language == "en"
    with pytest.raises(ValidationError, match="language='de' is not one of en"):
        whisper.transcribe(SPEECH, language="de")
    with pytest.raises(ValidationError, match="knows English only and cannot translate"):
        whisper.transcribe(SPEECH, translate=True)


def test_a_prompt_shifts_what_the_model_sees(whisper: Whisper) -> None:
    """The scripted model goes by position, so that it begins later in its script."""
    changed = whisper.transcribe(SPEECH, prompt=" Hello", temperature_inc=0)
    assert changed.text != "Hello world. again"
    with pytest.raises(ValidationError, match="prompt must have at most 2000 bytes"):
        whisper.transcribe(SPEECH, prompt="a" * 2001)
    with pytest.raises(ValidationError, match="no NUL"):
        whisper.transcribe(SPEECH, prompt="a\0b")


def test_random_weights_are_deterministic_in_any_thread(random: Whisper) -> None:
    results: list[Transcript] = []

    def run() -> None:
        results.append(random.transcribe(SPEECH, temperature_inc=0.5))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert results[0] == results[1] == results[2] == random.transcribe(SPEECH, temperature_inc=0.5)
    assert all(0 <= s.start_s <= s.end_s <= 2.5 for s in results[0].segments)


def wav(samples: NDArray[np.float32], rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def test_sounds_of_any_kind_and_rate(random: Whisper, tmp_path: Path) -> None:
    from llama_cffi.media import Audio
    from llama_cffi.whisper.sound import load_samples

    assert np.array_equal(load_samples(SPEECH), SPEECH)
    data = wav(SPEECH)
    read = load_samples(data)
    assert np.abs(read - SPEECH).max() < 1e-4
    path = tmp_path / "speech.wav"
    path.write_bytes(data)
    expected = random.transcribe(read, temperature_inc=0)
    for audio in (path, str(path), data, io.BytesIO(data), Audio(read, 16_000)):
        assert random.transcribe(audio, temperature_inc=0) == expected
    slower = load_samples(wav(tone(2.5), rate=8000))
    assert len(slower) == 2 * len(SPEECH)
    assert random.transcribe(SPEECH, sample_rate=8000, temperature_inc=0).duration_s == 5.0


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (np.zeros(0, np.float32), "the sound is empty"),
        (np.zeros(1599, np.float32), r"has 0.0999375 s, outside 0.1..14400: pad it with silence"),
        (np.zeros((2, 16_000), np.float32), r"\(n,\) float32, mono, got \(2, 16000\)"),
        (np.zeros(16_000, np.int16), "divide integers by their range"),
        (np.full(16_000, np.nan, np.float32), "not finite"),
        (np.full(16_000, np.inf, np.float32), "not finite"),
        (np.full(16_000, 3000, np.float32), "largest is 3000: divide 16-bit samples"),
        ("missing.wav", "missing.wav"),
        (b"", "the audio"),
        (b"ID3 is no WAV file at all", "Convert it"),
        (wav(SPEECH)[:2000], "the audio is truncated"),
        (None, "the audio"),
        ([[1.0], [1.0, 2.0]], "the audio"),
    ],
    ids=lambda value: "",
)
def test_bad_audio(whisper: Whisper, audio: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        whisper.transcribe(audio)  # type: ignore[arg-type]


def test_limits_and_policy(whisper: Whisper, tmp_path: Path) -> None:
    from llama_cffi.media import MediaPolicy

    with pytest.raises(ValidationError, match="the audio lasts 2 s; at most 1 s are taken"):
        whisper.transcribe(SPEECH, policy=MediaPolicy(max_audio_s=1))
    with pytest.raises(ValidationError):
        whisper.transcribe(tmp_path / "speech.wav", policy=MediaPolicy(files=False))
    long = np.zeros(16_000 * 14_401, np.float32)
    with pytest.raises(ValidationError, match="at most 14400 s"):
        whisper.transcribe(long)
    with pytest.raises(ValidationError, match=r"has 14401 s, outside 0.1..14400: split it"):
        whisper.transcribe(long, policy=MediaPolicy(max_audio_s=1e6))


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("temperature", 1.5, r"temperature=1.5 is outside \[0, 1\]"),
        ("temperature_inc", -1, "temperature_inc"),
        ("beam_size", 9, r"beam_size=9 is outside 1..8"),
        ("deadline_s", -1, "deadline_s"),
        ("translate", "yes", "translate must be True or False"),
        ("timestamps", "no", "timestamps must be True or False"),
        ("sample_rate", 0, "sample_rate=0"),
        ("sample_rate", 100, "sample_rate=100 is outside 8000..192000"),
        ("on_segment", 3, "on_segment must be callable"),
        ("progress", "bar", "progress='bar' must be a bool or a function"),
    ],
)
def test_bad_options(whisper: Whisper, option: str, value: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        whisper.transcribe(SPEECH, **{option: value})  # type: ignore[arg-type]


def test_misspelt_options(whisper: Whisper, folder: Path, libwhisper: Path) -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'temperature'"):
        whisper.transcribe(SPEECH, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="n_threads=0"):
        Whisper(folder / "english.bin", libwhisper, 0)
    with pytest.raises(ValidationError, match="path must be"):
        Whisper(3)  # type: ignore[arg-type]


def test_deadline_and_cancel(random: Whisper) -> None:
    with pytest.raises(DeadlineExceededError, match=r"did not end within 0 s"):
        random.transcribe(SPEECH, deadline_s=0)
    with pytest.raises(CancelledError, match="cancelled"):
        random.transcribe(SPEECH, progress=lambda done: False)
    with pytest.raises(CancelledError):
        random.transcribe(tone(20), progress=lambda done: random.cancel())
    assert random.transcribe(SPEECH, temperature_inc=0).duration_s == 2.5


def test_an_exception_of_a_callback_reaches_the_caller(whisper: Whisper) -> None:
    def fail(segment: Segment) -> None:
        raise KeyError(segment.text)

    with pytest.raises(KeyError, match=r" Hello world."):
        whisper.transcribe(SPEECH, on_segment=fail)


def test_close(folder: Path, libwhisper: Path) -> None:
    whisper = Whisper(folder / "random.bin", libwhisper, 1)
    with pytest.raises(CancelledError, match="its model was closed"):
        whisper.transcribe(tone(20), progress=lambda done: whisper.close())
    whisper.close()
    with pytest.raises(ClosedError):
        whisper.transcribe(SPEECH)
    assert repr(whisper) == "<Whisper random.bin F16 whisper.cpp v1.8.5 closed>"


def test_weights_that_the_build_cannot_use_are_refused(tmp_path: Path, libwhisper: Path) -> None:
    path = write_model(tmp_path / "f32.bin", random_weights())
    with pytest.raises(RuntimeError, match=r"32-bit weights, which whisper.cpp v1.8.5 cannot"):
        Whisper(path, libwhisper)


def test_ctrl_c_fork_and_exit(child: Child, folder: Path, libwhisper: Path) -> None:
    done = child(
        """
        import os, signal, sys, threading
        import numpy
        from llama_cffi import LlamaError
        from llama_cffi.whisper import Whisper

        whisper = Whisper(sys.argv[1], sys.argv[2], 1)
        samples = numpy.sin(numpy.arange(320_000) / 10, dtype="float32")
        try:
            whisper.transcribe(samples, progress=lambda _: os.kill(os.getpid(), signal.SIGINT))
        except KeyboardInterrupt:
            print("interrupted")
        pid = os.fork()
        if not pid:
            try:
                whisper.transcribe(samples)
            except LlamaError as e:
                print("forked" in str(e), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        started = threading.Event()

        def run():
            try:
                whisper.transcribe(samples, progress=lambda _: started.set())
            except LlamaError:
                pass

        threading.Thread(target=run, daemon=True).start()
        started.wait()
        print("exit")
        """,
        folder / "random.bin",
        libwhisper,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["interrupted", "True", "exit"]


def test_subtitles() -> None:
    segments = (Segment(0.0, 1.5, " Hello & bye."), Segment(3661.25, 3662.0, " again"))
    transcript = Transcript(segments, "en", 3700.0)
    assert transcript.to_srt() == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello & bye.\n\n"
        "2\n01:01:01,250 --> 01:01:02,000\nagain\n"
    )
    assert transcript.to_vtt() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello &amp; bye.\n\n"
        "01:01:01.250 --> 01:01:02.000\nagain\n"
    )


def test_the_example_of_the_page_runs(
    child: Child, folder: Path, libwhisper: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "whisper.md").read_text("utf-8")
    block = re.findall(r"^```py\n(.*?)^```$", page, re.S | re.M)[0]
    (tmp_path / "ggml-base.en.bin").symlink_to(folder / "english.bin")
    (tmp_path / "speech.wav").write_bytes(wav(SPEECH))
    code = "import os, sys; os.chdir(sys.argv[1])\n" + block
    done = child(code, tmp_path, LLAMA_CFFI_WHISPER_LIB=str(libwhisper))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Hello world." in done.stdout
