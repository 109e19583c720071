"""Transcription by chat models that take sounds: an instruction, and windows of long sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from ..media import Audio
from ..validation import check_str

if TYPE_CHECKING:
    from .chat_completions import ChatCompletionOptions
    from .types import CreateChatCompletionResponse

__all__ = [
    "Transcription",
    "TranscriptionSegment",
    "Window",
    "as_segment",
    "as_transcription",
    "content_of",
    "cut",
    "join",
    "transcription_options",
    "windows",
]

_WINDOW_S = 30.0  # what most encoders of speech take at once
_SEARCH_S = 5.0  # of the end of a window, in which the quietest place is searched
_LAST_S = 1.0  # length of the last window at least
_FRAMES_PER_S = 50
_QUIET_FRAMES = 5
_INSTRUCTION = "Transcribe the speech in this recording word for word. Write nothing else."


class TranscriptionSegment(TypedDict):
    """A part of a transcription.

    Attributes:
        start: Where it begins, seconds.
        end: Where it ends, seconds.
        text: What is said.
    """

    start: float
    end: float
    text: str


class Transcription(TypedDict):
    """What is said in a sound.

    Attributes:
        text: All of it.
        segments: Its parts: a window of at most 30 seconds each, without silent ones.
        duration: Length of the sound, seconds.
    """

    text: str
    segments: list[TranscriptionSegment]
    duration: float


class Window(NamedTuple):
    """A part of a sound that is transcribed by one chat completion.

    Attributes:
        start: Where it begins, seconds.
        end: Where it ends, seconds.
        messages: The conversation.
    """

    start: float
    end: float
    messages: Sequence[Mapping[str, object]]


def cut(audio: Audio) -> list[tuple[float, float]]:
    """Return the windows of a sound: at most 30 s, cut at the quietest place of the last 5 s.

    Args:
        audio: The sound.

    Returns:
        Start and end of each, in seconds.
    """
    found, start = [], 0.0
    while audio.duration_s - start > _WINDOW_S:
        end = min(start + _WINDOW_S, audio.duration_s - _LAST_S)
        at = _quietest(audio, start + _WINDOW_S - _SEARCH_S, end)
        found.append((start, at))
        start = at
    return [*found, (start, audio.duration_s)]


def _quietest(audio: Audio, start: float, end: float) -> float:
    """Return the middle of the tenth of a second with the least energy."""
    import numpy as np

    n = audio.sample_rate // _FRAMES_PER_S
    samples = audio.part(start, end).samples
    frames = samples[: len(samples) // n * n].reshape(-1, n)
    energy = np.square(frames, dtype=np.float64).mean(axis=1)
    smooth = np.convolve(energy, np.ones(_QUIET_FRAMES), "valid")
    return start + (int(smooth.argmin()) + _QUIET_FRAMES / 2) * n / audio.sample_rate


def windows(audio: Audio, prompt: str | None = None, language: str | None = None) -> list[Window]:
    """Return the conversations that transcribe a sound, in order.

    Args:
        audio: The sound.
        prompt: Words that help, such as names.
        language: The language that is spoken.

    Raises:
        ValidationError: An argument is not a str.
    """
    lines = [_INSTRUCTION]
    if language is not None:
        lines.append(f"The language is {check_str('language', language)}.")
    if prompt is not None:
        lines.append(f"These words may help: {check_str('prompt', prompt)}")
    text = "\n".join(lines)
    return [
        Window(start, end, [{"role": "user", "content": [audio.part(start, end), text]}])
        for start, end in cut(audio)
    ]


def transcription_options(options: ChatCompletionOptions) -> ChatCompletionOptions:
    """Return the options of each chat completion: greedy unless they say otherwise."""
    if options.get("temperature") is not None or options.get("sampling") is not None:
        return options
    return {**options, "temperature": 0.0}


def content_of(done: CreateChatCompletionResponse) -> str:
    """Return the text of a chat completion."""
    return done["choices"][0]["message"]["content"] or ""


def as_segment(window: Window, text: str) -> TranscriptionSegment:
    """Return a window with what is said in it."""
    start, end = round(window.start, 3), round(window.end, 3)
    return {"start": start, "end": end, "text": text.strip()}


def as_transcription(segments: Sequence[TranscriptionSegment], duration_s: float) -> Transcription:
    """Return the segments of a sound of *duration_s* seconds as its transcription."""
    found = [segment for segment in segments if segment["text"]]
    text = join([segment["text"] for segment in found])
    return {"text": text, "segments": found, "duration": round(duration_s, 3)}


def join(texts: Sequence[str]) -> str:
    """Return the texts of windows as one."""
    return " ".join(text.strip() for text in texts if text.strip())
