"""OpenAI's options mean what OpenAI's reference says, with every class that takes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from support.tiny_chat import Script

from llama_cffi import Llama, LlamaPool, Model, UnifiedLLM
from llama_cffi.api.chat_message import FirstCall
from llama_cffi.chat.formats import FORMATS
from llama_cffi.demo import model_path
from llama_cffi.errors import UnknownOptionError, ValidationError
from llama_cffi.llama_cpp import Llama as DropIn

ASK = [{"role": "user", "content": "What is 17 + 25?"}]
CHAT_NAMES = sorted(ChatParams.__annotations__.keys() - {"messages"})
TEXT_NAMES = sorted(TextParams.__annotations__.keys() - {"prompt", "max_tokens"})
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
WITHOUT_EFFECT: dict[str, Any] = {
    "user": "u-1",
    "metadata": {"run": "7"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "s-1",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "explicit"},
    "prediction": {"type": "content", "content": "42"},
    "modalities": ["text"],
    "verbosity": "medium",
    "parallel_tool_calls": True,
    "logit_bias": {},
    "tools": [],
    "response_format": {"type": "text"},
    "n": 1,
    "top_logprobs": 0,
}
FUNCTION = {
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": FUNCTION}]

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def faces() -> Iterator[dict[str, tuple[Ask, Ask]]]:
    """Every class -> its chat and its text completion; streams as lists of chunks."""
    options: dict[str, Any] = {"n_ctx": 512, "n_threads": 1}

    async def gathered(answer: Any) -> Any:
        answer = await answer
        return [chunk async for chunk in answer] if hasattr(answer, "__aiter__") else answer

    def sync(method: Ask) -> Ask:
        def ask(*args: Any, **given: Any) -> Any:
            answer = method(*args, **given)
            return answer if isinstance(answer, dict) else [*answer]

        return ask

    def awaited(method: Ask) -> Ask:
        return lambda *args, **given: asyncio.run(gathered(method(*args, **given)))

    with (
        Model(model_path()) as model,
        Llama(model, **options) as llm,
        LlamaPool(model, 2, **options) as pool,
        DropIn(str(model_path()), verbose=False, **options) as drop_in,
    ):
        yield {
            "Llama": (sync(llm.create_chat_completion), sync(llm.create_completion)),
            "Llama, asynchronous": (
                awaited(llm.create_chat_completion_async),
                awaited(llm.create_completion_async),
            ),
            "LlamaPool": (
                awaited(pool.create_chat_completion),
                awaited(pool.llm.create_completion_async),
            ),
            "llama_cpp": (sync(drop_in.create_chat_completion), sync(drop_in.create_completion)),
        }


FACES = pytest.mark.parametrize("face", ["Llama", "Llama, asynchronous", "LlamaPool", "llama_cpp"])


def said(answer: Any) -> list[str]:
    if isinstance(answer, list):
        deltas = [choice["delta"] for chunk in answer for choice in chunk["choices"]]
        return ["".join(delta.get("content") or "" for delta in deltas)]
    return [choice["message"]["content"] for choice in answer["choices"]]


@FACES
def test_none_means_not_given(faces: dict[str, tuple[Ask, Ask]], face: str) -> None:
    chat, text = faces[face]
    own = {name: None for name in CHAT_NAMES if name != "max_tokens"}
    assert said(chat(ASK, **{**own, **GREEDY})) == said(chat(ASK, **GREEDY)) == ["42"]
    assert said(chat(ASK, **{**own, **GREEDY}, stream=True)) == ["42"]
    assert said(chat(ASK, **{**own, "temperature": 0}, max_tokens=None)) == ["42"]
    plain = text("The sun is", **GREEDY)["choices"]
    assert text("The sun is", **{**dict.fromkeys(TEXT_NAMES), **GREEDY})["choices"] == plain


@FACES
@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_options_of_openais_service_change_nothing(
    faces: dict[str, tuple[Ask, Ask]], face: str, name: str
) -> None:
    chat, _ = faces[face]
    assert said(chat(ASK, **{name: WITHOUT_EFFECT[name]}, **GREEDY)) == ["42"]


@FACES
def test_user_is_accepted_for_text_too(faces: dict[str, tuple[Ask, Ask]], face: str) -> None:
    _, text = faces[face]
    plain = text("The sun is", **GREEDY)["choices"]
    assert text("The sun is", user="u-1", **GREEDY)["choices"] == plain


@FACES
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio=.* answer in text only"),
        ({"modalities": ["text", "audio"]}, "modalities=.* answer in text only"),
        ({"modalities": []}, "modalities="),
        ({"web_search_options": {}}, "web_search_options=.* a search function in tools"),
        ({"verbosity": "low"}, "verbosity='low'.* in the system message"),
        ({"moderation": {"model": "m"}}, "moderation=.* service of OpenAI"),
        ({"stream_options": {"include_usage": True}}, "stream_options is for stream=True"),
        ({"stream_options": True, "stream": True}, "stream_options must be a dict"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "must be True or False"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "are the same option; give one"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    faces: dict[str, tuple[Ask, Ask]], face: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        faces[face][0](ASK, **options)


@FACES
def test_a_misspelt_stream_option_is_named(faces: dict[str, tuple[Ask, Ask]], face: str) -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'include_usage'"):
        faces[face][0](ASK, stream=True, stream_options={"included_usage": True})


@FACES
def test_max_completion_tokens_limits_the_answer(
    faces: dict[str, tuple[Ask, Ask]], face: str
) -> None:
    chat, _ = faces[face]
    answer = chat(ASK, temperature=0, max_completion_tokens=1)
    assert answer["usage"]["completion_tokens"] == 1
    assert answer["choices"][0]["finish_reason"] == "length"


@FACES
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_ends_with_the_usage_if_asked(
    faces: dict[str, tuple[Ask, Ask]], face: str, n: int
) -> None:
    chat, text = faces[face]
    for ask, prompt in ((chat, ASK), (text, "The sun is")):
        whole = ask(prompt, n=n, **GREEDY)
        chunks = ask(prompt, n=n, stream=True, stream_options={"include_usage": True}, **GREEDY)
        *others, last = chunks
        assert [chunk["usage"] for chunk in others] == [None] * len(others)
        assert last["choices"] == []
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert [last["usage"][c] for c in counts] == [whole["usage"][c] for c in counts]
        assert last["usage"]["completion_tokens"] > 0
        for chunk in chunks:
            if ask is chat:
                ChatCompletionChunk.model_validate(chunk)
            assert {**chunk, "choices": 0, "usage": 0} == {**last, "choices": 0, "usage": 0}
        for options in (None, {}, {"include_usage": False}, {"include_obfuscation": True}):
            chunks = ask(prompt, n=n, stream=True, stream_options=options, **GREEDY)
            assert not any("usage" in chunk for chunk in chunks)
            assert all(chunk["choices"] for chunk in chunks)


@FACES
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_names_the_stop_string_if_asked(
    faces: dict[str, tuple[Ask, Ask]], face: str, n: int
) -> None:
    chat, text = faces[face]
    for ask, prompt in ((chat, ASK), (text, "1, 2, 3,")):
        for stop, named in ((["4", "s"], True), (["never"], False)):
            options: dict[str, Any] = {"n": n, "stop": stop, **GREEDY}
            plain = ask(prompt, stream=True, **options)
            assert not any("stop_reason" in c for chunk in plain for c in chunk["choices"])
            chunks = ask(
                prompt, stream=True, stream_options={"include_stop_reason": True}, **options
            )
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            told = [c["stop_reason"] for c in choices if "stop_reason" in c]
            assert len(told) == n
            assert all("stop_reason" in c for c in choices if c["finish_reason"])
            assert all((reason in stop) if named else reason is None for reason in told)


def test_usage_at_the_end_does_not_end_in_the_text_of_unified_llm() -> None:
    with UnifiedLLM(model_path(), n_ctx=512, n_threads=1) as llm:
        pieces = llm.generate(
            "What is 17 + 25?", stream=True, temperature=0, stream_options={"include_usage": True}
        )
        assert "".join(pieces) == "42"


def calls(llm: Llama, **options: Any) -> Any:
    """Return the calls of an answer that makes two."""
    text = "".join(
        f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call>\n'
        for city in ("Paris", "Rome")
    )
    script = Script(llm, text)
    answer = llm.create_chat_completion(
        ASK, tools=TOOLS, logits_processor=script, max_tokens=200, **options
    )
    if isinstance(answer, dict):
        choice: Any = answer["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        return [call["function"]["arguments"] for call in choice["message"]["tool_calls"]]
    parts: dict[int, str] = {}
    for chunk in answer:
        delta: Any = chunk["choices"][0]["delta"]
        for part in delta.get("tool_calls", ()):
            arguments = part["function"].get("arguments", "")
            parts[part["index"]] = parts.get(part["index"], "") + arguments
    return [*parts.values()]


@pytest.mark.parametrize("stream", [False, True])
def test_without_parallel_tool_calls_there_is_at_most_one(stream: bool) -> None:
    with Llama(model_path(), n_ctx=1024, n_threads=1) as llm:
        cities = [json.loads(call)["city"] for call in calls(llm, stream=stream)]
        assert cities == ["Paris", "Rome"]
        one = calls(llm, stream=stream, parallel_tool_calls=False)
        assert [json.loads(call)["city"] for call in one] == ["Paris"]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_first_call_keeps_the_text_around_calls(step: int) -> None:
    text = "Wait." + "".join(
        f'<tool_call>{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}</tool_call>'
        for city in ("Paris", "Rome", "Oslo")
    )
    reader = FirstCall(FORMATS["hermes"].stream(TOOLS))
    deltas = [d for i in range(0, len(text), step) for d in reader.push(text[i : i + step])]
    deltas += reader.finish()
    assert "".join(delta.get("content") or "" for delta in deltas) == "Wait."
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert {part["index"] for part in parts} == {0}
    assert json.loads("".join(p["function"].get("arguments", "") for p in parts)) == {
        "city": "Paris"
    }


@pytest.mark.parametrize("stream", [False, True])
def test_functions_are_tools_in_the_older_form(
    faces: dict[str, tuple[Ask, Ask]], stream: bool
) -> None:
    named = {"name": "get_weather"}
    found = {}
    for face in ("Llama", "LlamaPool", "llama_cpp"):
        answer = faces[face][0](
            ASK, functions=[FUNCTION], function_call=named, stream=stream, temperature=0,
            max_tokens=40,
        )  # fmt: skip
        if stream:
            deltas = [chunk["choices"][0]["delta"] for chunk in answer]
            parts = [d["function_call"] for d in deltas if "function_call" in d]
            assert parts[0]["name"] == "get_weather"
            found[face] = "".join(part["arguments"] for part in parts)
        else:
            ChatCompletion.model_validate(answer)
            message = answer["choices"][0]["message"]
            assert message["function_call"] == message["tool_calls"][0]["function"]
            found[face] = message["function_call"]["arguments"]
    asked = {"type": "function", "function": named}
    tools = faces["Llama"][0](ASK, tools=TOOLS, tool_choice=asked, temperature=0, max_tokens=40)
    message = tools["choices"][0]["message"]
    assert "function_call" not in message
    assert set(found.values()) == {message["tool_calls"][0]["function"]["arguments"]}
