"""Pictures and sounds over HTTP: every route, with right, wrong and missing ones."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from media.test_sounds import tone, wav
from multimodal.conftest import Files, picture, sound
from PIL import Image as Pillow
from support.http_requests import Reply, get, post, send
from support.strict_sdk import EXTENSIONS, assert_strict

from llama_cffi import Llama, LlamaPool, ValidationError
from llama_cffi.media import Audio
from llama_cffi.server.http_server import HttpServer

WAV = wav(tone(440, 16_000, 0.5))
SOUND = base64.b64encode(WAV).decode()
TEXT = {"type": "text", "text": "what?"}
SHORT: Any = {"max_tokens": 4, "temperature": 0}


def png(seed: int, width: int = 30, height: int = 20) -> str:
    out = io.BytesIO()
    Pillow.fromarray(picture(seed, width, height)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


PICTURE = png(1)
DATA_URL = f"data:image/png;base64,{PICTURE}"


def image(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def claude_image(**source: object) -> dict[str, Any]:
    return {"type": "image", "source": source}


@pytest.fixture(scope="module")
def pool(files: dict[str, Files]) -> Iterator[LlamaPool]:
    """A model that takes pictures and sounds."""
    with LlamaPool(files["both"].model, 2, n_ctx=2048, n_threads=1) as pool:
        yield pool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which clients may name pictures, and a picture beside it."""
    found = tmp_path_factory.mktemp("shared") / "media"
    (found / "sub").mkdir(parents=True)
    data = base64.b64decode(PICTURE)
    for path in (found / "a.png", found / "sub" / "b.png", found.parent / "secret.png"):
        path.write_bytes(data)
    (found / "link.png").symlink_to(found.parent / "secret.png")
    return found


@pytest.fixture(scope="module")
def server(pool: LlamaPool) -> Iterator[HttpServer]:
    with pool.serve(aliases=["tiny"]) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: HttpServer) -> str:
    return server.url


def ask(url: str, *parts: object, **options: object) -> Reply:
    message = {"role": "user", "content": [*parts]}
    return post(f"{url}/v1/chat/completions", {"messages": [message], **SHORT, **options})


# Chat completions


@pytest.mark.behaviour("vision: pictures by URL, base64 and data: URI, and errors for bad ones")
@pytest.mark.parametrize(
    "part",
    [
        image(DATA_URL),
        image(PICTURE),
        {"type": "image_url", "image_url": DATA_URL},
        {"type": "input_image", "image_url": DATA_URL},
        {"type": "image", "image": PICTURE},
        claude_image(type="base64", media_type="image/png", data=PICTURE),
    ],
)
def test_a_picture_in_every_shape(url: str, pool: LlamaPool, part: dict[str, Any]) -> None:
    reply = ask(url, part, TEXT, verbose=True)
    assert reply.status == 200, reply.body
    messages: Any = [
        {"role": "user", "content": [{"type": "image", "image": picture(1, 30, 20)}, TEXT]}
    ]
    expected = pool.llm.create_chat_completion(messages, **SHORT)
    assert (
        reply.json["choices"][0]["message"]["content"]
        == expected["choices"][0]["message"]["content"]
    )
    assert reply.json["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]
    assert "<__media__>" in reply.json["__verbose"]["prompt"]


@pytest.mark.parametrize(
    "value", [{"data": SOUND, "format": "wav"}, {"url": f"data:audio/wav;base64,{SOUND}"}]
)
def test_a_sound_in_every_shape(url: str, value: dict[str, str]) -> None:
    reply = ask(url, {"type": "input_audio", "input_audio": value}, TEXT)
    assert reply.status == 200, reply.body
    assert reply.json["usage"]["prompt_tokens"] > 750


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (image("data:image/png;base64,!!!"), "not valid base64"),
        (image("data:image/png;base64," + base64.b64encode(b"x" * 99).decode()), "no PNG, JPEG"),
        (image("data:text/plain;base64,AAAA"), "is text/plain, not a picture"),
        (image("data:image/png,AAAA"), "must be data:image/…;base64"),
        (image(DATA_URL[:-400]), "damaged or truncated"),
        (image("https://example.com/a.png"), "addresses are not fetched here; send the data as"),
        (image("http://127.0.0.1/a.png"), "addresses are not fetched here.*--media-urls"),
        (image("file:///etc/passwd"), "files are not read here.*--media-path"),
        (image("/etc/passwd"), "files are not read here"),
        (image("file://["), "no valid address"),
        (image(7), "its data must be a str, got int"),
        ({"type": "image_url"}, "has the type 'image_url' and no data"),
        ({"type": "image_url", "image_url": {}}, "must have one of 'url' and 'data'"),
        ({"type": "image", "image": [[1, 2]]}, "must be bytes, a path, a URL or base64"),
        ({"type": "input_audio", "input_audio": {"data": PICTURE}}, "no sound"),
        ({"type": "input_audio", "input_audio": {"data": SOUND[:400]}}, "truncated"),
        ({"type": "input_audio", "input_audio": {"url": "https://example.com/a"}}, "not fetched"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "video"),
    ],
)
def test_what_is_wrong_with_media_is_told(url: str, part: dict[str, Any], reason: str) -> None:
    reply = ask(url, part, TEXT)
    assert reply.status == 400, reply.body
    assert re.search(reason, reply.error["message"]), reply.error["message"]
    assert reply.error["message"].startswith("messages[0]['content'][0]")
    assert reply.error["param"] == "messages"
    assert "iVBOR" not in reply.error["message"]  # the data


def test_the_number_and_the_sum_of_pictures_are_limited(url: str) -> None:
    many = ask(url, *[image(PICTURE)] * 33, TEXT)
    assert many.status == 400
    assert "more than 32 pictures" in many.error["message"]
    out = io.BytesIO()
    Pillow.new("1", (6400, 6200)).save(out, "PNG")  # 39.7 megapixels, 5 KB
    large = image(base64.b64encode(out.getvalue()).decode())
    reply = ask(url, *[large] * 5, TEXT)
    assert reply.status == 400
    assert "more than 160,000,000 pixels together" in reply.error["message"]


def test_a_body_that_is_too_large(pool: LlamaPool) -> None:
    from llama_cffi.media import MediaPolicy
    from llama_cffi.server.settings import Settings

    policy, default = MediaPolicy(), Settings()
    largest = max(policy.max_image_bytes, policy.max_audio_bytes) * 4 / 3  # in base64
    assert largest + 64 * 1024 < default.max_body_bytes
    with pool.serve(max_body_bytes=10_000) as server:
        reply = ask(server.url, image("A" * 20_000), TEXT)
        assert (reply.status, reply.error["type"]) == (413, "request_too_large_error")
        assert ask(server.url, image(PICTURE), TEXT).status == 200
        form, kind = multipart(file=b"x" * 20_000)
        reply = send("POST", f"{server.url}/v1/audio/transcriptions", form, kind)
        assert reply.status == 413


@pytest.mark.behaviour("vision: the token count has the picture")
def test_the_count_has_the_cells_of_pictures(url: str) -> None:
    message = {"role": "user", "content": [image(PICTURE), TEXT]}
    used = ask(url, *message["content"]).json["usage"]["prompt_tokens"]  # type: ignore[misc]
    counted = post(f"{url}/v1/chat/completions/input_tokens", {"messages": [message]})
    assert counted.json["input_tokens"] == used
    text_only = post(f"{url}/v1/chat/completions/input_tokens", {"messages": [
        {"role": "user", "content": [TEXT]}]})  # fmt: skip
    assert used >= text_only.json["input_tokens"] + 12


def test_the_template_shows_where_the_picture_is(url: str) -> None:
    message = {"role": "user", "content": [TEXT, image(PICTURE)]}
    reply = post(f"{url}/apply-template", {"messages": [message]})
    assert "what?<__media__>" in reply.json["prompt"]


def test_other_pictures_are_other_prompts(url: str) -> None:
    """The second picture is evaluated; only what precedes it comes from the cache."""
    long = {"type": "text", "text": "what? " * 50}  # short prompts are not looked for in the cache

    def usage(seed: int) -> tuple[int, int]:
        found = ask(url, long, image(png(seed)), TEXT).json["usage"]
        return found["prompt_tokens"], found["prompt_tokens_details"]["cached_tokens"]

    n, _ = usage(77)
    assert usage(77) == (n, n - 1)
    assert usage(78)[1] < n - 12


def test_streams_and_many_clients(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": [image(DATA_URL), TEXT]}]
        whole = client.chat.completions.create(model="tiny", messages=messages, **SHORT)
        assert_strict(whole, EXTENSIONS | {"_request_id"})
        streamed = client.chat.completions.create(
            model="tiny", messages=messages, stream=True, **SHORT
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert text == whole.choices[0].message.content


def test_a_picture_in_the_result_of_a_tool(url: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [image(PICTURE), TEXT]},
    ]
    reply = post(f"{url}/v1/chat/completions", {"messages": messages, **SHORT})
    assert reply.status == 200, reply.body


def test_media_are_not_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask(url, image(DATA_URL), TEXT)
        ask(url, image(DATA_URL[:-9]), TEXT)
    assert PICTURE[:40] not in caplog.text


# What may be named


@pytest.mark.behaviour("security: files are read below the given folder only")
def test_files_of_the_folder(pool: LlamaPool, folder: Path) -> None:
    with pool.serve(media_path=folder) as server:
        for name in ("a.png", "sub/b.png", "file://a.png", "file://sub/b.png", f"{folder}/a.png",
                     f"file://{folder}/sub/b.png"):  # fmt: skip
            assert ask(server.url, image(name), TEXT).status == 200, name
        for name in ("../secret.png", "file://../secret.png", "sub/../../secret.png", "link.png",
                     f"{folder.parent}/secret.png", "file:///etc/passwd"):  # fmt: skip
            reply = ask(server.url, image(name), TEXT)
            assert reply.status == 400, name
            assert "only files in the media folder" in reply.error["message"]
        reply = ask(server.url, image("nothing.png"), TEXT)
        assert "there is no file 'nothing.png'" in reply.error["message"]
        assert str(folder) not in reply.error["message"]


@pytest.mark.behaviour("vision: addresses and files are refused unless they are allowed")
def test_hosts_that_may_be_named(pool: LlamaPool) -> None:
    with pool.serve(media_urls=["images.example"]) as server:
        for address, reason in (
            ("https://other.example/a.png", "not among the hosts"),
            ("https://127.0.0.1/a.png", "not among the hosts"),
            ("http://images.example/a.png", "only https"),
        ):
            reply = ask(server.url, image(address), TEXT)
            assert (reply.status, reply.error["param"]) == (400, "messages")
            assert reason in reply.error["message"]
    with pool.serve(media_urls=True) as server:
        for address in ("https://127.0.0.1/a.png", "https://[::1]/", "https://169.254.169.254/x"):
            reply = ask(server.url, image(address), TEXT)
            assert reply.status == 400
            assert "not on the public internet" in reply.error["message"]
        reply = ask(server.url, image("https://no-such-host.invalid/a.png"), TEXT)
        assert reply.status == 400
        assert "cannot find the host" in reply.error["message"]


# Responses, Messages


def test_responses(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        content: Any = [
            {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
            {"type": "input_text", "text": "what?"},
        ]
        asked: Any = [{"role": "user", "content": content}]
        found = client.responses.create(model="tiny", input=asked, max_output_tokens=4)
        assert_strict(found, EXTENSIONS | {"_request_id"})
        counted = client.responses.input_tokens.count(model="tiny", input=asked)
        assert found.usage is not None
        assert counted.input_tokens == found.usage.input_tokens > 12
        (item,) = client.responses.input_items.list(found.id).data
        assert item.content[0].image_url == DATA_URL  # type: ignore[union-attr]
        again = client.responses.create(
            model="tiny", input="and now?", previous_response_id=found.id, max_output_tokens=4
        )
        assert again.usage is not None
        assert again.usage.input_tokens > found.usage.input_tokens
        audio: Any = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}
        asked = [{"role": "user", "content": [audio, content[1]]}]
        assert client.responses.create(model="tiny", input=asked, max_output_tokens=4).usage


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "input_image", "image_url": "https://example.com/a.png"}, "not fetched here"),
        ({"type": "input_image", "file_id": "file-1"}, "there are no stored files"),
        ({"type": "input_image"}, "no data"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "no sound"),
        ({"type": "input_file", "file_data": "AAAA"}, "is a file"),
    ],
)
def test_wrong_media_in_responses(url: str, part: dict[str, Any], reason: str) -> None:
    asked = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}, part]}]}
    reply = post(f"{url}/v1/responses", asked)
    assert (reply.status, reply.error["param"]) == (400, "input")
    assert reply.error["message"].startswith("input[0].content[1]")
    assert reason in reply.error["message"]


@pytest.mark.behaviour("messages: pictures are taken as base64 by a vision model")
def test_messages(url: str) -> None:
    block: Any = claude_image(type="base64", media_type="image/png", data=PICTURE)
    messages: Any = [{"role": "user", "content": [block, TEXT]}]
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        found = client.messages.create(model="tiny", messages=messages, max_tokens=4)
        assert_strict(found, EXTENSIONS | {"_request_id"})
        counted = client.messages.count_tokens(model="tiny", messages=messages)
        assert counted.input_tokens == found.usage.input_tokens > 12
        tool = [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [block, TEXT]}]},
        ]  # fmt: skip
        with_tool = client.messages.create(model="tiny", messages=tool, max_tokens=4)  # type: ignore[arg-type]
        n_cached = with_tool.usage.cache_read_input_tokens or 0
        assert with_tool.usage.input_tokens + n_cached > 12


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"type": "url", "url": "https://example.com/a.png"}, "content.0.source: addresses are"),
        ({"type": "base64", "media_type": "image/png", "data": "AAAA"}, "content.0.source is no"),
        ({"type": "file", "file_id": "x"}, "content.0.source.type='file' is not one of"),
        ({"type": "base64"}, "content.0.source.data is missing"),
        (None, "content.0.source is missing"),
    ],
)
def test_wrong_pictures_in_messages(url: str, source: object, reason: str) -> None:
    content = [{"type": "image", "source": source}, TEXT]
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    reply = post(f"{url}/v1/messages", body)
    assert reply.status == 400
    assert f"messages.0.{reason}" in reply.json["error"]["message"]


# llama-server's own completions


@pytest.mark.behaviour("vision: a marker in a raw prompt stands for a picture, and needs its data")
def test_native_completions(url: str) -> None:
    def complete(text: str, *data: object) -> Reply:
        prompt = {"prompt_string": text, "multimodal_data": [*data]}
        return post(f"{url}/completion", {"prompt": prompt, "n_predict": 4, "temperature": 0})

    one = complete("a <__media__> b", PICTURE)
    assert one.status == 200, one.body
    assert one.json["tokens_evaluated"] > 12
    assert one.json["prompt"].startswith("a ")
    assert one.json["prompt"].count("<__media__>") == 1
    assert complete("<__media__><__media__> b", PICTURE, SOUND).status == 200
    for text, data, reason in (
        ("a", [PICTURE], "0 times <__media__>, and multimodal_data has 1 items"),
        ("<__media__> b", [], "1 times <__media__>, and multimodal_data has 0"),
        ("<__media__> b", [7], "must be a list of base64 strings"),
        ("<__media__> b", ["AAAA"], "multimodal_data[0] is no sound"),
        ("<__media__> b", ["https://example.com/a.png"], "multimodal_data[0]"),
    ):
        reply = complete(text, *data)  # type: ignore[misc]
        assert (reply.status, reply.error["param"]) == (400, "prompt")
        assert reason in reply.error["message"]
    plain = post(f"{url}/completion", {"prompt": "a <__media__> b", "n_predict": 1})
    assert plain.status == 200  # text


# Decisions


@pytest.mark.behaviour("vision: pictures can be decided about")
def test_decisions_about_a_picture(url: str) -> None:
    def decide(part: object) -> Reply:
        content = [part, {"type": "input_text", "text": "Look."}]
        return post(f"{url}/v1/decisions", {
            "input": [{"role": "user", "content": content}],
            "questions": [{"type": "predicate", "instructions": "Is it red?"}],
        })  # fmt: skip

    found = decide({"type": "input_image", "image_url": DATA_URL})
    assert found.status == 200, found.body
    other = decide({"type": "input_image", "image_url": f"data:image/png;base64,{png(2)}"})
    probabilities = [r.json["answers"][0]["probability"] for r in (found, other)]
    assert probabilities[0] != probabilities[1]
    refused = decide({"type": "input_image", "image_url": "/etc/passwd"})
    assert refused.status == 400
    assert "input[0].content[0]: files are not read here" in refused.error["message"]
    state = [{"role": "user", "content": [image("/etc/passwd")]}]
    questions = {"q": {"type": "noul", "instructions": "Is it red?"}}
    refused = post(f"{url}/v1/systemone", {"state": state, "questions": questions})
    assert refused.status == 400
    assert "files are not read here" in refused.error["message"]


# What the server tells


@pytest.mark.behaviour("vision: the models' list tells the modalities")
def test_modalities(url: str, files: dict[str, Files], tmp_path: Path) -> None:
    (model,) = get(f"{url}/v1/models").json["data"]
    assert model["architecture"]["input_modalities"] == ["text", "image", "audio"]
    props = get(f"{url}/props").json
    assert props["modalities"] == {"vision": True, "video": False, "audio": True}
    assert props["media_marker"] == "<__media__>"


def test_models_with_projectors_of_their_own(files: dict[str, Files], tmp_path: Path) -> None:
    from llama_cffi.api.config import LlamaConfig
    from llama_cffi.server.serving import serve

    preset = tmp_path / "presets.ini"
    alone = tmp_path / "alone.gguf"
    alone.symlink_to(files["janus_pro"].model)
    preset.write_text(
        f"[*]\nc = 1024\nt = 1\n[pictures]\nmodel = {alone}\nmmproj = {files['janus_pro'].mmproj}\n"
        f"[sounds]\nmodel = {files['qwen2a'].model}\nimage-max-tokens = 64\n[text]\nmodel={alone}\n"
    )
    with serve(models_preset=preset, port=0) as server:
        listed = {m["id"]: m for m in get(f"{server.url}/v1/models").json["data"]}
        told = {name: m["architecture"]["input_modalities"] for name, m in listed.items()}
        assert told == {"pictures": ["text", "image"], "sounds": ["text", "audio"],
                        "text": ["text"]}  # fmt: skip
        assert ask(server.url, image(PICTURE), TEXT, model="pictures").status == 200
        for name, reason in (
            ("sounds", "is a picture, but this model takes text and sounds only"),
            ("text", "is a picture, but this model takes text only: .*--mmproj"),
        ):
            reply = ask(server.url, image(PICTURE), TEXT, model=name)
            assert reply.status == 400
            with pytest.raises(ValidationError, match=reason):
                raise ValidationError(reply.error["message"])
    config = LlamaConfig(mmproj=files["janus_pro"].mmproj)
    with pytest.raises(ValidationError, match="is for one model, and there are 2"):
        serve([files["janus_pro"].model, files["qwen2a"].model], config)


def test_a_damaged_projector_is_told(files: dict[str, Files], tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.symlink_to(files["janus_pro"].model)
    (tmp_path / "mmproj.gguf").write_bytes(files["janus_pro"].mmproj.read_bytes()[:5000])
    with LlamaPool(model, 2, n_ctx=512, n_threads=1) as pool, pool.serve() as server:
        (listed,) = get(f"{server.url}/v1/models").json["data"]
        assert listed["architecture"]["input_modalities"] == ["text"]
        reply = ask(server.url, image(PICTURE), TEXT)
        assert reply.status == 501, reply.body
        assert "mmproj.gguf" in reply.error["message"]
        assert ask(server.url, TEXT).status == 200


# Transcription


def multipart(**fields: object) -> tuple[bytes, dict[str, str]]:
    lines = b""
    for name, value in fields.items():
        file = b'; filename="a.wav"' if isinstance(value, bytes) else b""
        data = value if isinstance(value, bytes) else str(value).encode()
        lines += b'--XY\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (
            name.encode(), file, data,
        )  # fmt: skip
    return lines + b"--XY--\r\n", {"content-type": "multipart/form-data; boundary=XY"}


def transcribe(url: str, **fields: object) -> Reply:
    form, kind = multipart(**fields)
    return send("POST", f"{url}/v1/audio/transcriptions", form, kind)


@pytest.mark.behaviour("transcription: text, JSON, subtitles and streams have the same text")
def test_transcriptions_with_openais_client(url: str) -> None:
    more = {"max_tokens": 4, "seed": 1}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        create = client.audio.transcriptions.create

        def ask_for(form: Any, **options: Any) -> Any:
            return create(
                model="tiny", file=("a.wav", WAV), response_format=form, extra_body=more, **options
            )

        found = ask_for("json", temperature=0, prompt="Ada, Grace", language="en")
        assert_strict(found, EXTENSIONS | {"_request_id"})
        assert found.usage.seconds == 0.5
        text = ask_for("json").text
        assert ask_for("text").strip() == text
        verbose = ask_for("verbose_json")
        assert (verbose.text, verbose.duration, verbose.language) == (text, 0.5, "unknown")
        assert [(s.start, s.end, s.text) for s in verbose.segments] == [(0.0, 0.5, text)]
        assert ask_for("srt") == f"1\n00:00:00,000 --> 00:00:00,500\n{text}\n"
        assert ask_for("vtt") == f"WEBVTT\n\n00:00:00.000 --> 00:00:00.500\n{text}\n"
        events = list(ask_for("json", stream=True))
        assert "".join(e.delta for e in events if e.type == "transcript.text.delta") == text
        assert events[-1].type == "transcript.text.done"
        assert events[-1].text == text
        assert events[-1].usage.output_tokens == 4


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({}, 400, "file is missing; it must be a file"),
        ({"file": b""}, 400, "file is empty"),
        ({"file": b"no sound"}, 400, "file is no sound"),
        ({"file": WAV[:2000]}, 400, "truncated"),
        ({"file": wav(tone(440, 16_000, 0.02))}, 400, "at least 400"),
        ({"file": WAV, "response_format": "xml"}, 400, "response_format must be one of json"),
        ({"file": WAV, "temperature": "hot"}, 400, "temperature must be a number"),
        ({"file": WAV, "temperature": 1e300}, 400, "temperature"),
        ({"file": WAV, "stream": "perhaps"}, 400, "stream must be true or false"),
        ({"file": WAV, "prompt": "x" * 3000}, 400, "tokens"),
    ],
)
def test_wrong_transcriptions(url: str, fields: Any, status: int, reason: str) -> None:
    reply = transcribe(url, **fields)
    assert reply.status == status, reply.body
    assert reason in reply.error["message"]


@pytest.mark.behaviour("transcription: wrong forms and sounds are 4xx")
def test_forms_that_are_none(url: str) -> None:
    whole, kind = multipart(file=WAV)
    address = f"{url}/v1/audio/transcriptions"
    for body, headers, status, reason in (
        (b"{}", {"content-type": "application/json"}, 415, "must be multipart/form-data"),
        (whole, {"content-type": "multipart/form-data"}, 400, "has no boundary"),
        (whole[:-9], kind, 400, "its last boundary is missing"),
        (b"", kind, 400, "its last boundary is missing"),
        (b"--XY\r\nno headers\r\n--XY--", kind, 400, "without headers"),
        (b"--XY\r\nX: y\r\n\r\n\r\n" * 101 + b"--XY--", kind, 400, "101 parts; at most 100"),
    ):
        reply = send("POST", address, body, headers)
        assert (reply.status, reason in reply.error["message"]) == (status, True), reply.body
    file = b'--XY\r\nContent-Disposition: form-data; name="%s"\r\n\r\n\xff\r\n--XY--'
    reply = send("POST", address, file % b"prompt", kind)
    assert "prompt must be a string, and is not UTF-8" in reply.error["message"]


def test_a_model_without_ears(files: dict[str, Files]) -> None:
    with (
        LlamaPool(files["janus_pro"].model, 1, n_ctx=256, n_threads=1) as pool,
        pool.serve() as server,
    ):
        reply = transcribe(server.url, file=WAV)
        assert reply.status == 400
        assert "file is a sound, but this model takes text and pictures" in reply.error["message"]


@pytest.mark.behaviour("transcription: long sounds are cut where it is quiet")
def test_long_sounds_are_cut_where_it_is_quiet(files: dict[str, Files]) -> None:
    noise = sound(1, 40.0)
    noise[27 * 16_000 : 27 * 16_000 + 8000] = 0.0
    with Llama(files["qwen2a"].model, n_ctx=1024, n_threads=1) as llm:
        found = llm.transcribe(noise, sample_rate=16_000, max_tokens=2, language="German")
        assert found["duration"] == 40.0
        assert found["text"] == " ".join(segment["text"] for segment in found["segments"])
        cuts = {segment[edge] for segment in found["segments"] for edge in ("start", "end")}
        assert cuts <= {0.0, 40.0} | {c for c in cuts if 27.0 < c < 27.5}
        with pytest.raises(ValidationError, match="sample_rate"):
            llm.transcribe(noise)


def test_pools_transcribe(pool: LlamaPool) -> None:
    audio = Audio(sound(3), 16_000)
    found = asyncio.run(pool.transcribe(audio, max_tokens=3))
    assert found == pool.llm.transcribe(audio, max_tokens=3)
