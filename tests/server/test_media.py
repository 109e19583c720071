"""Pictures and sounds for a model that takes text only; forms, and the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.http_requests import Reply, get, post, send

from llama_cffi import ValidationError
from llama_cffi.media import MediaPolicy
from llama_cffi.server.body import BOOL, INTEGER, NUMBER, STRING
from llama_cffi.server.errors import ApiError
from llama_cffi.server.form import FILE, parse_form
from llama_cffi.server.settings import Settings

IMAGE_URL: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND: Any = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
INPUT_IMAGE: Any = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
CLAUDE: Any = {"type": "image", "source": {"type": "base64", "data": "AAAA"}}
QUESTION = {"type": "predicate", "instructions": "Is it red?"}
ROUTES: list[tuple[str, str, Any]] = [
    ("chat/completions", "messages[0]['content'][0] is a picture", IMAGE_URL),
    ("chat/completions", "messages[0]['content'][0] is a sound", SOUND),
    ("chat/completions/input_tokens", "messages[0]['content'][0] is a picture", IMAGE_URL),
    ("responses", "input[0].content[0] is a picture", INPUT_IMAGE),
    ("responses/input_tokens", "input[0].content[0] is a picture", INPUT_IMAGE),
    ("messages", "messages.0.content.0.source is a picture", CLAUDE),
    ("messages/count_tokens", "messages.0.content.0.source is a picture", CLAUDE),
    ("decisions", "input[0].content[0] is a picture", INPUT_IMAGE),
]


@pytest.mark.behaviour(
    "vision: what a text model does not take is refused by its place in the request"
)
@pytest.mark.parametrize(("path", "place", "part"), ROUTES)
def test_a_model_that_takes_text_only_says_so(url: str, path: str, place: str, part: Any) -> None:
    field = "input" if path.startswith(("responses", "decisions")) else "messages"
    turns = [{"role": "user", "content": [part]}]
    body = {field: turns, "max_tokens": 4, "questions": [QUESTION], "stream": True}
    reply = post(f"{url}/{path}", body)
    assert reply.status == 400, reply.body
    message = reply.json["error"]["message"]
    assert message.startswith(f"{place}, but this model takes text only: ")
    assert "AAAA" not in message


def test_systemone_reads_no_files(url: str) -> None:
    state = [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]
    questions = {"q": {"type": "noul", "instructions": "Is it red?"}}
    reply = post(f"{url}/systemone", {"state": state, "questions": questions})
    assert reply.status == 400
    assert "this model takes text only" in reply.error["message"]


def test_the_template_route_takes_no_pictures(url: str) -> None:
    reply = post(f"{url}/apply-template", {"messages": [{"role": "user", "content": [IMAGE_URL]}]})
    assert reply.status in (400, 404)


def test_the_modalities_of_a_text_model(url: str) -> None:
    (model,) = get(f"{url}/models").json["data"]
    assert model["architecture"]["input_modalities"] == ["text"]


FORM = {"content-type": "multipart/form-data; boundary=XY"}


def part(name: str, value: bytes, more: str = "") -> bytes:
    head = f'--XY\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


def transcribe(url: str, body: bytes, headers: dict[str, str] = FORM) -> Reply:
    return send("POST", f"{url}/audio/transcriptions", body, headers)


def test_a_text_model_does_not_transcribe(url: str) -> None:
    reply = transcribe(url, part("file", b"RIFF", '; filename="a.wav"') + b"--XY--\r\n")
    assert reply.status == 400
    assert reply.error["message"].startswith("file is a sound, but this model takes text only: ")
    missing = transcribe(url, part("model", b"demo") + b"--XY--")
    assert (missing.status, missing.error["param"]) == (400, "file")
    assert transcribe(url, b"{}", {"content-type": "application/json"}).status == 415


KINDS = {"file": FILE, "n": INTEGER, "x": NUMBER, "b": BOOL, "t": STRING}


def test_the_fields_of_a_form() -> None:
    data = bytes(range(256)) + b"\r\n--X\r\n\r\n--"
    body = (
        b"a preamble\r\n"
        + part("file", data, "; filename*=UTF-8''a%20b.wav")
        + part("n", b" 7 ") + part("x", b"0.5") + part("b", b"True") + part("t", "é 7".encode())
        + part("unknown", b"\xff") + b"--XY--\r\nan epilogue"
    )  # fmt: skip
    found = parse_form(body, FORM["content-type"], KINDS)
    assert found == {"file": data, "n": 7, "x": 0.5, "b": True, "t": "é 7"}
    found = parse_form(
        part("n", b"[7]") + part("b", b"NaN") + b"--XY--", FORM["content-type"], KINDS
    )
    assert found == {"n": "[7]", "b": "NaN"}  # `take` refuses them
    assert parse_form(b"--XY--", FORM["content-type"], KINDS) == {}
    quoted = 'multipart/form-data; charset=utf-8; boundary="X Y"'
    assert parse_form(part("t", b"a").replace(b"--XY", b"--X Y") + b"--X Y--", quoted, KINDS)


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"", "multipart/form-data", "has no boundary"),
        (b"", FORM["content-type"], "last boundary is missing"),
        (part("t", b"a"), FORM["content-type"], "last boundary is missing"),
        (b"--XY\r\nno\r\n--XY--", FORM["content-type"], "part without headers"),
        (b"--XY\r\nA: " + b"b" * 9000 + b"\r\n\r\n\r\n--XY--", FORM["content-type"], "too long"),
        (part("t", b"a") * 101 + b"--XY--", FORM["content-type"], "101 parts"),
        (part("t", b"\xff") + b"--XY--", FORM["content-type"], "t must be a string, and is not"),
    ],
)
def test_what_is_no_form(body: bytes, content_type: str, reason: str) -> None:
    with pytest.raises(ApiError, match=reason) as found:
        parse_form(body, content_type, KINDS)
    assert found.value.status == 400


def test_what_may_be_loaded_by_default_and_on_request(tmp_path: Path) -> None:
    assert Settings().media_policy == MediaPolicy(urls=False, files=False)
    assert Settings(media_urls=True).media_policy.urls is True
    assert Settings(media_urls=["a.example", ""]).media_policy.urls == ("a.example",)
    assert Settings(media_urls=[]).media_policy.urls is False
    assert Settings(media_path=str(tmp_path)).media_policy.files == tmp_path
    for wrong, reason in (
        ({"media_urls": "all"}, "media_urls must be"),
        ({"media_urls": [7]}, "media_urls must be a str"),
        ({"media_path": tmp_path / "no"}, "is not a folder; make it"),
        ({"media_path": 7}, "media_path"),
    ):
        with pytest.raises(ValidationError, match=re.compile(reason)):
            Settings(**wrong)  # type: ignore[arg-type]
