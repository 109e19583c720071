from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from media.test_sounds import tone, wav
from PIL import Image as Pillow

from llama_cffi import ValidationError
from llama_cffi.chat.media_parts import MARKER, split_at_media, take_media, without_marks
from llama_cffi.errors import TemplateError
from llama_cffi.media import Audio, Image, MediaPolicy, is_media_part, load_part

_out = io.BytesIO()
Pillow.new("RGB", (4, 3), "red").save(_out, "PNG")
PNG = base64.b64encode(_out.getvalue()).decode()
WAV = base64.b64encode(wav(tone(440, 16_000, 0.1))).decode()
URL = f"data:image/png;base64,{PNG}"
PIXELS = np.zeros((3, 4, 3), np.uint8)
IMAGES: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
    {"type": "image_url", "image_url": URL},
    {"type": "image_url", "image_url": {"url": PNG}},
    {"type": "input_image", "image_url": URL},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"type": "image", "image": PIXELS},
    {"type": "image", "image": URL},
    {"type": "image", "image": Pillow.new("RGB", (4, 3))},
    {"type": "image", "image": Image(PIXELS)},
]
SOUNDS: list[dict[str, Any]] = [
    {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}},
    {"type": "input_audio", "input_audio": {"url": f"data:audio/wav;base64,{WAV}"}},
    {"type": "audio", "audio": np.zeros(1600, np.float32), "sample_rate": 16_000},
    {"type": "audio", "audio": base64.b64decode(WAV)},
    {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{WAV}"}},
]


@pytest.mark.parametrize("part", IMAGES)
def test_pictures_in_every_shape(part: dict[str, Any]) -> None:
    assert is_media_part(part) == "image"
    image = load_part(part, "here")
    assert isinstance(image, Image)
    assert (image.width, image.height) == (4, 3)


@pytest.mark.parametrize("part", SOUNDS)
def test_sounds_in_every_shape(part: dict[str, Any]) -> None:
    assert is_media_part(part) == "audio"
    audio = load_part(part, "here")
    assert isinstance(audio, Audio)
    assert audio.duration_s == pytest.approx(0.1)


@pytest.mark.parametrize("part", [{"type": "text", "text": "x"}, {"type": "file"}, {}, "x", None])
def test_what_is_no_media(part: object) -> None:
    assert is_media_part(part) is None


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url"}, "here has the type 'image_url' and no data"),
        ({"type": "image_url", "image_url": {}}, "here must have one of 'url' and 'data'"),
        ({"type": "image_url", "image_url": {"url": 7}}, "its data must be a str, got int"),
        ({"type": "input_audio", "input_audio": {"data": "x", "url": "y"}}, "one of"),
        ({"type": "image", "image": 7}, "here must be bytes, a path, a URL or base64, got int"),
        ({"type": "text"}, "no picture or sound"),
        ({"type": "video_url"}, "here is a video, which is not decoded; send some frames"),
        ({"type": "document"}, "here is a document, which is not read"),
        ({"type": "input_image", "file_id": "x"}, "here names an uploaded file"),
        ({"type": "image", "source": {"type": "file", "file_id": "x"}}, "an uploaded file"),
        ({"type": ["image"]}, "no picture or sound"),
        ("image", "no picture or sound, but a str"),
    ],
)
def test_parts_that_are_wrong(part: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        load_part(part, "here")


@pytest.mark.parametrize("data", [__file__, "https://example.org/x.png", "file:///etc/passwd"])
def test_data_is_no_path_and_no_address(data: str) -> None:
    part = {"type": "image", "source": {"type": "base64", "data": data}}
    with pytest.raises(ValidationError, match="not valid base64"):
        load_part(part, "here")


def message(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": [*parts]}]


def test_media_become_marks_in_the_text() -> None:
    image = {"type": "image", "image": PIXELS}
    given = message({"type": "text", "text": "Look: "}, image, image, " here", "and")
    messages, media = take_media(given)
    first, second = media
    text = f"Look: {first}{second} here"
    assert messages == message({"type": "text", "text": text}, "and")
    assert split_at_media(text, media) == ["Look: ", first, "", second, " here"]
    assert without_marks(text, media) == f"Look: {MARKER}{MARKER} here"
    assert given[0]["content"][1] is image  # type: ignore[index]  # the caller's are as they were
    with pytest.raises(TemplateError, match="leaves out picture or sound 2 of 2"):
        without_marks(first, media)


def test_marks_cannot_be_guessed() -> None:
    (mark,) = take_media(message(Image(PIXELS)))[1]
    (other,) = take_media(message(Image(PIXELS)))[1]
    assert mark != other
    assert len(mark) > 24


@pytest.mark.parametrize(
    "messages", [[{"role": "user", "content": "x"}], "x", None, [None], message("x"), []]
)
def test_messages_without_media_stay_as_they_are(messages: Any) -> None:
    found, media = take_media(messages)
    assert found is messages
    assert media == {}


def test_the_error_names_the_part() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(ValidationError, match=r"messages\[0\]\['content'\]\[1\] is no PNG"):
        take_media(message("x", part))


def test_no_more_than_the_policy_allows() -> None:
    with pytest.raises(ValidationError, match="3 pictures and sounds; at most 2"):
        take_media(message(*[Image(PIXELS)] * 3), MediaPolicy(max_items=2))
