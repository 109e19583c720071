"""What was said, and when."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Segment", "Token", "Transcript"]


@dataclass(frozen=True)
class Token:
    """One token of a segment.

    Attributes:
        id: Its number in the vocabulary; timestamps and other control tokens are tokens too.
        text: Its text. A character that is split over tokens is U+FFFD here.
        probability: The probability that the model gave it, 0 to 1.
    """

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """A passage of speech.

    Attributes:
        start_s: Its beginning in seconds, within the audio.
        end_s: Its end in seconds; not before `start_s`, and within the audio.
        text: What was said, as the model writes it: usually with a space in front.
        tokens: Its tokens.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """The result of a transcription.

    Attributes:
        segments: The segments in order; empty if nothing was said.
        language: Code of the language that was given or detected, such as `en`.
        duration_s: Length of the audio in seconds.
    """

    segments: tuple[Segment, ...]
    language: str
    duration_s: float

    @property
    def text(self) -> str:
        """All of the text, without space around it."""
        return "".join(segment.text for segment in self.segments).strip()

    def to_srt(self) -> str:
        """Return the segments as SubRip subtitles (`.srt`)."""
        return "\n".join(
            f"{i}\n{_clock(s.start_s, ',')} --> {_clock(s.end_s, ',')}\n{s.text.strip()}\n"
            for i, s in enumerate(self.segments, 1)
        )

    def to_vtt(self) -> str:
        """Return the segments as WebVTT subtitles (`.vtt`)."""
        cues = (
            f"{_clock(s.start_s, '.')} --> {_clock(s.end_s, '.')}\n{_escaped(s.text.strip())}\n"
            for s in self.segments
        )
        return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float, point: str) -> str:
    """Return `01:02:03.456`."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
