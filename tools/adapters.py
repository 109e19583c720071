"""Run programs written for llama-cpp-python, unchanged, on the demo model.

LangChain, LlamaIndex, Outlines, LM Format Enforcer, Instructor, Haystack, AutoGen and
llama-cpp-python's own server import `llama_cpp`; here that is `llama_cffi.llama_cpp`.
`nox -s adapters` installs them, and llama_cffi's stand-in for llama-cpp-python, which they require.

Usage: python tools/adapters.py llama_cpp_python-0.3.36.tar.gz
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import llama_cpp

from llama_cffi.demo import model_path

warnings.simplefilter("ignore")  # theirs

PATH = str(model_path())
QUESTION, ANSWER = "What is 17 + 25?", "42"
WEATHER = "What is the weather in Paris?"
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def get_weather(city: str) -> str:
    """Get the weather."""
    return f"It is sunny in {city}."


def langchain_llm() -> None:
    """`LlamaCpp`: whole, streamed, with a grammar, with log-probabilities."""
    from langchain_community.llms import LlamaCpp

    llm = LlamaCpp(model_path=PATH, temperature=0, repeat_penalty=1.0)
    assert llm.invoke(PROMPT) == ANSWER
    assert "".join(llm.stream(PROMPT)) == ANSWER
    assert llm.invoke(PROMPT, stop=["2"]) == "4"
    assert llm.get_num_tokens("a b c") == 3
    llm = LlamaCpp(
        model_path=PATH, streaming=False, logprobs=2, max_tokens=8, grammar='root ::= "yes" | "no"'
    )
    assert llm.invoke("Is it?") in ("yes", "no")


def langchain_chat() -> None:
    """`ChatLlamaCpp`: whole, streamed, with tools, with structured output."""
    from langchain_community.chat_models import ChatLlamaCpp
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from pydantic import BaseModel

    class Weather(BaseModel):
        """The weather in a city."""

        city: str

    chat = ChatLlamaCpp(model_path=PATH, temperature=0, n_ctx=1024, n_batch=64, repeat_penalty=1.0)
    assert chat.invoke(QUESTION).content == ANSWER
    assert "".join(str(chunk.content) for chunk in chat.stream(QUESTION)) == ANSWER
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in (None, "get_weather", True, named):
        bound = chat.bind_tools([tool(get_weather)], tool_choice=choice)
        (call,) = bound.invoke(WEATHER).tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    bound = chat.bind_tools([tool(get_weather)])
    whole: Any = None
    for chunk in bound.stream(WEATHER):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"] == {"city": "Paris"}
    result = ToolMessage("It is sunny.", tool_call_id=whole.tool_calls[0]["id"])
    assert bound.invoke([HumanMessage(WEATHER), whole, result]).content
    structured = chat.with_structured_output(Weather)
    assert structured.invoke(WEATHER) == Weather(city="Paris")
    raw = chat.with_structured_output(Weather, include_raw=True).invoke(WEATHER)
    assert raw["parsed"] == Weather(city="Paris")
    assert raw["parsing_error"] is None


def langchain_embeddings() -> None:
    """`LlamaCppEmbeddings`: one vector per document."""
    from langchain_community.embeddings import LlamaCppEmbeddings

    embeddings = LlamaCppEmbeddings(model_path=PATH)
    one, two = embeddings.embed_documents(["a b c", "d"])
    assert len(one) == len(two) == 192
    assert embeddings.embed_query("a b c") == one


def llama_index() -> None:
    """`LlamaCPP`: complete and chat, whole and streamed."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.llama_cpp import LlamaCPP

    llm = LlamaCPP(
        model_path=PATH,
        temperature=0,
        max_new_tokens=32,
        context_window=512,
        completion_to_prompt=lambda text: PROMPT.replace(QUESTION, text),
        messages_to_prompt=lambda messages: PROMPT.replace(QUESTION, str(messages[-1].content)),
    )
    messages = [ChatMessage(role="user", content=QUESTION)]
    assert llm.metadata.context_window == 512
    assert llm.complete(QUESTION).text == ANSWER
    assert [r.text for r in llm.stream_complete(QUESTION)][-1] == ANSWER
    assert llm.chat(messages).message.content == ANSWER
    assert [r.message.content for r in llm.stream_chat(messages)][-1] == ANSWER


def outlines() -> None:
    """`outlines.from_llamacpp`: free text, an integer, a choice, an object."""
    import outlines
    from llama_cpp import Llama
    from pydantic import BaseModel

    class Number(BaseModel):
        n: Literal[41, 42]

    model: Any = outlines.from_llamacpp(Llama(PATH, verbose=False))
    assert model(QUESTION, temperature=0, max_tokens=8) == ANSWER
    assert model(QUESTION, int, temperature=0, max_tokens=8) == ANSWER
    assert model(QUESTION, Literal["yes", "no"], temperature=0) in ("yes", "no")
    assert json.loads(model(QUESTION, Number, temperature=0))["n"] in (41, 42)
    assert "".join(model.stream(QUESTION, int, temperature=0, max_tokens=8)) == ANSWER


def outlines_backends() -> None:
    """A context-free grammar, and each backend: a pattern, an object, streamed."""
    import outlines
    from llama_cpp import Llama
    from outlines.types import CFG, JsonSchema, Regex

    schema = JsonSchema({
        "type": "object", "properties": {"n": {"enum": [41, 42]}}, "required": ["n"],
        "additionalProperties": False,
    })  # fmt: skip
    grammar = CFG('start: "yes" | "no" | NUMBER\nNUMBER: /[0-9]+/')
    with Llama(PATH, verbose=False) as llm:
        model: Any = outlines.from_llamacpp(llm)
        options = {"temperature": 0, "max_tokens": 40}
        assert model(QUESTION, grammar, **options) == ANSWER
        assert "".join(model.stream(QUESTION, grammar, **options)) == ANSWER
        assert model("Is it?", CFG('start: "yes" | "no"'), **options) in ("yes", "no")
        for backend in ("llguidance", "outlines_core"):
            of_pattern = outlines.Generator(model, Regex("[0-9]{3}"), backend=backend)
            assert of_pattern(QUESTION, **options).startswith(ANSWER)
            of_schema = outlines.Generator(model, schema, backend=backend)
            # White space has no limit in a grammar of theirs; a penalty ends it.
            text = of_schema(QUESTION, frequency_penalty=1.0, **options)
            assert json.loads(text)["n"] in (41, 42), text


def lm_format_enforcer() -> None:
    """`build_llamacpp_logits_processor`: a pattern."""
    from llama_cpp import Llama, LogitsProcessorList
    from lmformatenforcer import RegexParser
    from lmformatenforcer.integrations.llamacpp import build_llamacpp_logits_processor

    with Llama(PATH, verbose=False) as llm:
        processor = build_llamacpp_logits_processor(llm, RegexParser("[0-9]{3}"))
        processors: Any = LogitsProcessorList([processor])
        answer = llm(PROMPT, logits_processor=processors, temperature=0, max_tokens=8)
        text = answer["choices"][0]["text"]
        assert text.startswith(ANSWER)
        assert len(text) == 3


def instructor() -> None:
    """`instructor.patch` over `create_chat_completion_openai_v1`: a schema, a tool."""
    import instructor
    from llama_cpp import Llama
    from pydantic import BaseModel

    class Number(BaseModel):
        n: Literal[41, 42]

    llm = Llama(PATH, n_ctx=1024, verbose=False)
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        create: Any = instructor.patch(create=llm.create_chat_completion_openai_v1, mode=mode)
        messages = [{"role": "user", "content": QUESTION}]
        found = create(messages=messages, response_model=Number, temperature=0, max_tokens=64)
        assert found.n in (41, 42)


def haystack() -> None:
    """`LlamaCppChatGenerator`: streamed, asynchronous, in a pipeline, with a tool, a schema."""
    from haystack import Pipeline
    from haystack.dataclasses import ChatMessage, StreamingChunk
    from haystack.tools import create_tool_from_function
    from haystack_integrations.components.generators.llama_cpp import LlamaCppChatGenerator

    options = {"temperature": 0, "max_tokens": 64}
    generator = LlamaCppChatGenerator(PATH, n_ctx=1024, generation_kwargs=options)
    question, weather = [ChatMessage.from_user(QUESTION)], [ChatMessage.from_user(WEATHER)]
    (reply,) = generator.run(question)["replies"]
    assert (reply.text, reply.meta["finish_reason"]) == (ANSWER, "stop")
    assert reply.meta["usage"]["completion_tokens"] == 2
    chunks: list[StreamingChunk] = []
    (reply,) = generator.run(question, streaming_callback=chunks.append)["replies"]
    assert reply.text == "".join(chunk.content for chunk in chunks) == ANSWER
    (reply,) = asyncio.run(generator.run_async(question))["replies"]
    assert reply.text == ANSWER
    tool = create_tool_from_function(get_weather)
    for callback in (None, chunks.append):
        (reply,) = generator.run(weather, tools=[tool], streaming_callback=callback)["replies"]
        (call,) = reply.tool_calls
        assert (call.tool_name, call.arguments) == ("get_weather", {"city": "Paris"})
        result = ChatMessage.from_tool(tool.invoke(**call.arguments), origin=call)
        (after,) = generator.run([*weather, reply, result], tools=[tool])["replies"]
        assert after.text
    schema = {"type": "object", "properties": {"n": {"enum": [41, 42]}}, "required": ["n"]}
    wanted = {"response_format": {"type": "json_object", "schema": schema}, "max_tokens": 100}
    (reply,) = generator.run(question, generation_kwargs=wanted)["replies"]
    assert json.loads(reply.text or "")["n"] in (41, 42)
    generator.close()
    pipeline = Pipeline()
    again = LlamaCppChatGenerator.from_dict(generator.to_dict())
    pipeline.add_component("llm", again)
    (reply,) = pipeline.run({"llm": {"messages": question}})["llm"]["replies"]
    assert reply.text == ANSWER
    again.close()
    name = "Llava15ChatHandler"
    eyes = LlamaCppChatGenerator(PATH, chat_handler_name=name, model_clip_path="clip.gguf")
    message = ""
    try:
        eyes.warm_up()
    except ValueError as e:
        message = str(e)
    assert "images are not supported" in message


def autogen() -> None:
    """`LlamaCppChatCompletionClient`: alone, with a schema, in an agent.

    Its client looks for tool calls beside the message, where no version of llama-cpp-python has
    them, so that it returns none.
    """
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.messages import TextMessage
    from autogen_core.models import UserMessage
    from autogen_ext.models.llama_cpp import LlamaCppChatCompletionClient
    from pydantic import BaseModel

    class Number(BaseModel):
        n: Literal[41, 42]

    async def use() -> None:
        client = LlamaCppChatCompletionClient(
            model_path=PATH, n_ctx=1024, verbose=False, rpc_servers=None, chat_format="chatml"
        )
        question = [UserMessage(content=QUESTION, source="user")]
        options = {"temperature": 0, "max_tokens": 100}
        result = await client.create(question, extra_create_args=options)
        assert (result.content, result.finish_reason) == (ANSWER, "stop")
        assert result.usage.completion_tokens == 2
        result = await client.create(question, json_output=Number, extra_create_args=options)
        assert isinstance(result.content, str)
        assert Number.model_validate_json(result.content).n in (41, 42)
        words = [UserMessage(content="a b c", source="user")]
        assert (client.count_tokens(words), client.remaining_tokens(words)) == (3, 1021)
        agent = AssistantAgent("agent", model_client=client, system_message=None)
        answer = (await agent.run(task=QUESTION)).messages[-1]
        assert isinstance(answer, TextMessage)
        assert answer.content == ANSWER
        await client.close()

    asyncio.run(use())


def server() -> None:
    """llama-cpp-python's own server: completions, chats, tools, embeddings, tokens."""
    from llama_cpp.server.app import create_app  # type: ignore[import-not-found]
    from llama_cpp.server.settings import (  # type: ignore[import-not-found]
        ModelSettings,
        ServerSettings,
    )
    from starlette.testclient import TestClient

    settings = ModelSettings(model=PATH, n_ctx=1024, embedding=True, verbose=False)
    app = create_app(server_settings=ServerSettings(), model_settings=[settings])
    client = TestClient(app)

    def post(path: str, **body: Any) -> Any:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def stream(path: str, **body: Any) -> list[Any]:
        lines = client.post(path, json={**body, "stream": True}).text.split("\n")
        *data, end = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert end == "[DONE]"
        return [json.loads(line)["choices"][0] for line in data]

    chat, text = "/v1/chat/completions", "/v1/completions"
    question = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    weather = {"messages": [{"role": "user", "content": WEATHER}], "temperature": 0}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [PATH]
    assert post(chat, **question)["choices"][0]["message"]["content"] == ANSWER
    deltas = [choice["delta"] for choice in stream(chat, **question)]
    assert "".join(delta.get("content") or "" for delta in deltas) == ANSWER
    completion = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    assert post(text, **completion)["choices"][0]["text"] == ANSWER
    assert "".join(choice["text"] for choice in stream(text, **completion)) == ANSWER
    limited = {"grammar": 'root ::= "yes" | "no"', "min_tokens": 1, "logit_bias": {"5": -1.0}}
    answer = post(chat, **question, **limited, seed=3, stop=["x"])
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "parameters": city}
    named = {"type": "function", "function": {"name": "get_weather"}}
    for more in (
        {"tools": [{"type": "function", "function": function}]},
        {"tools": [{"type": "function", "function": function}], "tool_choice": named},
        {"functions": [function]},
        {"functions": [function], "function_call": {"name": "get_weather"}},
    ):
        choice = post(chat, **weather, **more)["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        assert choice["finish_reason"] == "tool_calls"
        assert ("function_call" in choice["message"]) == ("functions" in more)
    scored = post(chat, **question, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    assert [len(token["top_logprobs"]) for token in scored["content"]] == [2, 2]
    long = "a " * 3000
    bodies: dict[str, Any] = {
        text: {"prompt": long},
        chat: {"messages": [{"role": "user", "content": long}]},
    }
    for path, body in bodies.items():
        refused = client.post(path, json=body)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["code"] == "context_length_exceeded"
    found = post("/v1/embeddings", input=["a b c", "d"])
    assert [len(item["embedding"]) for item in found["data"]] == [192, 192]
    tokens = post("/extras/tokenize", input="a b c")["tokens"]
    assert post("/extras/tokenize/count", input="a b c")["count"] == len(tokens) == 3
    assert post("/extras/detokenize", tokens=tokens)["text"] == "a b c"


CHECKS: list[tuple[Callable[[], None], str]] = [
    (langchain_llm, "langchain-community"),
    (langchain_chat, "langchain-community"),
    (langchain_embeddings, "langchain-community"),
    (llama_index, "llama-index-llms-llama-cpp"),
    (outlines, "outlines"),
    (outlines_backends, "outlines"),
    (lm_format_enforcer, "lm-format-enforcer"),
    (instructor, "instructor"),
    (haystack, "llama-cpp-haystack"),
    (autogen, "autogen-ext"),
    (server, "llama-cpp-python"),
]


def main(sdist: str) -> None:
    """Run all checks.

    Args:
        sdist: llama-cpp-python's, for its server, which is Python alone.
    """
    with tempfile.TemporaryDirectory() as folder, tarfile.open(sdist) as archive:
        members = [m for m in archive if "/llama_cpp/server/" in m.name]
        archive.extractall(folder, members, filter="data")
        (package,) = Path(folder).glob("*/llama_cpp")
        llama_cpp.__path__.append(str(package))
        for check, name in CHECKS:
            started = time.perf_counter()
            check()
            took = time.perf_counter() - started
            version = importlib.metadata.version(name)
            print(f"{check.__name__}: works ({name} {version}, {took:.1f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
