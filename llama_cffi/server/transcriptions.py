"""OpenAI's transcriptions: POST /v1/audio/transcriptions."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from ..api.aio import whole_async
from ..api.transcription import Window, as_segment, as_transcription, join, windows
from ..media import Audio, load_audio
from .body import BOOL, INTEGER, NUMBER, STRING, Kind, take
from .call import Answer, Call, Endpoint, Json, Stream, Text
from .errors import invalid, not_supported
from .fields import SEEDS
from .form import FILE
from .lora import use_adapters
from .media import check_takes, loading
from .paths import post
from .sse import event

if TYPE_CHECKING:
    from ..api.chat_completions import PreparedChat
    from ..api.llama import Llama
    from ..api.transcription import Transcription
    from ..media import MediaPolicy

__all__ = ["routes"]

_FIELDS: Mapping[str, Kind] = {
    "file": FILE,
    "model": STRING,
    "prompt": STRING,
    "language": STRING,
    "response_format": STRING,
    "temperature": NUMBER,
    "seed": INTEGER,
    "max_tokens": INTEGER,
    "stream": BOOL,
    "priority": INTEGER,
}
_OPTIONS = ("temperature", "seed", "max_tokens")
_FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
_TEXT = "text/plain; charset=utf-8"


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [
        *post("/audio/transcriptions", Endpoint(_create, form=_FIELDS), bare=False),
        *post("/audio/translations", Endpoint(_translate, reads_body=False), bare=False),
    ]


async def _translate(_: Call) -> Answer:
    raise not_supported("this server transcribes audio and does not translate it; ask a chat model")


async def _create(call: Call) -> Answer:
    given = take(call.body, _FIELDS, "file")
    form = given.get("response_format", "json")
    if form not in _FORMATS:
        message = f"response_format must be one of {', '.join(_FORMATS)}, got {form!r:.60}"
        raise invalid("response_format", message)
    options = {name: given[name] for name in _OPTIONS if name in given}
    options.setdefault("temperature", 0)
    if "seed" in options:
        options["seed"] %= SEEDS
    llm, policy = call.model.llm, call.state.settings.media_policy
    use_adapters(call)
    call.admit(call.model)
    audio = await whole_async(lambda: _load(llm, given["file"], policy))
    parts = windows(audio, given.get("prompt") or None, given.get("language") or None)
    run = _Run(call, parts, options)
    await run.prepare()
    if given.get("stream"):
        return Stream(run.events())
    async with aclosing(run.deltas()) as deltas:
        async for _ in deltas:
            pass
    segments = [as_segment(part, text) for part, text in zip(parts, run.texts, strict=True)]
    done = as_transcription(segments, audio.duration_s)
    return _shaped(done, form, given, llm)


def _load(llm: Llama, file: bytes, policy: MediaPolicy) -> Audio:
    with loading("file"):
        check_takes(llm, "audio", "file")
        return load_audio(file, None, policy, "file")


class _Run:
    """The chat completions that transcribe a sound, one after the other.

    Attributes:
        texts: What was said in each window, so far.
        usage: OpenAI's usage, so far.
    """

    def __init__(self, call: Call, parts: Sequence[Window], options: Mapping[str, Any]) -> None:
        self._call, self._parts, self._options = call, parts, options
        self._first: PreparedChat | None = None
        self.texts: list[str] = []
        self.usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}

    async def prepare(self) -> None:
        """Prepare the first window, so that what is wrong is told before the response begins."""
        self._first = await self._prepared(self._parts[0])

    async def deltas(self) -> AsyncGenerator[str, None]:
        """Yield the text as it comes; joined, it is that of the whole transcription."""
        n_sent = 0
        for i, part in enumerate(self._parts):
            prepared = self._first if i == 0 else await self._prepared(part)
            assert prepared is not None  # prepare() was called
            self.texts.append("")
            create = self._call.model.llm.create_chat_completion_async
            chunks: Any = await create(prepared, stream=True)
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._count(chunk.get("usage"))
                    for choice in chunk["choices"]:
                        self.texts[-1] += choice["delta"].get("content") or ""
                    text = join(self.texts)
                    if len(text) > n_sent:
                        yield text[n_sent:]
                        n_sent = len(text)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream."""
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                yield event({"type": "transcript.text.delta", "delta": delta})
        usage = {"type": "tokens", **self.usage}
        yield event({"type": "transcript.text.done", "text": join(self.texts), "usage": usage})

    async def _prepared(self, part: Window) -> PreparedChat:
        model = self._call.model
        options = {**self._options, "stream_options": {"include_usage": True}}
        with loading("file"):
            prepared = await model.llm.chat.prepare_async(part.messages, options, stream=True)
        model.check_length(len(prepared.request.tokens))
        return prepared

    def _count(self, usage: Mapping[str, int] | None) -> None:
        if usage is not None:
            self.usage["input_tokens"] += usage["prompt_tokens"]
            self.usage["output_tokens"] += usage["completion_tokens"]
            self.usage["total_tokens"] += usage["total_tokens"]


def _shaped(done: Transcription, form: str, given: Mapping[str, Any], llm: Llama) -> Answer:
    """Return a transcription in one of OpenAI's formats."""
    usage = {"type": "duration", "seconds": done["duration"]}
    if form == "text":
        return Text(done["text"] + "\n", _TEXT)
    if form == "json":
        return Json({"text": done["text"], "usage": usage})
    if form == "verbose_json":
        segments = [
            {
                "id": i,
                "seek": round(segment["start"] * 100),
                **segment,
                "tokens": llm.tokenize(segment["text"], False),
                "temperature": given.get("temperature", 0.0),
                "compression_ratio": _compression(segment["text"]),
            }
            for i, segment in enumerate(done["segments"])
        ]
        return Json(
            {
                "task": "transcribe",
                "language": given.get("language") or "unknown",
                **done,
                "segments": segments,
                "usage": usage,
            }
        )
    cues = []
    for i, segment in enumerate(done["segments"], 1):
        mark = "," if form == "srt" else "."
        times = f"{_time(segment['start'], mark)} --> {_time(segment['end'], mark)}"
        lines = [times, " ".join(segment["text"].split())]
        cues.append("\n".join([str(i), *lines] if form == "srt" else lines))
    head = ["WEBVTT"] if form == "vtt" else []
    return Text("\n\n".join([*head, *cues]) + "\n", _TEXT)


def _time(seconds: float, mark: str) -> str:
    ms = round(seconds * 1000)
    h, m, s = ms // 3_600_000, ms // 60_000 % 60, ms // 1000 % 60
    return f"{h:02}:{m:02}:{s:02}{mark}{ms % 1000:03}"


def _compression(text: str) -> float:
    """Return how well a text can be compressed: one that repeats itself is a sign of failure."""
    data = text.encode()
    return round(len(data) / len(zlib.compress(data)), 3)
