"""Run libraries written for llama-cpp-python, unchanged, on the demo model.

LangChain, LlamaIndex, Outlines and Instructor import `llama_cpp`; here that is
`llama_cffi.llama_cpp`. `nox -s adapters` installs them.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import llama_cffi.llama_cpp
from llama_cffi.demo import model_path

sys.modules["llama_cpp"] = llama_cffi.llama_cpp
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


CHECKS: list[tuple[Callable[[], None], str]] = [
    (langchain_llm, "langchain-community"),
    (langchain_chat, "langchain-community"),
    (langchain_embeddings, "langchain-community"),
    (llama_index, "llama-index-llms-llama-cpp"),
    (outlines, "outlines"),
    (instructor, "instructor"),
]


def main() -> None:
    """Run all checks."""
    for check, package in CHECKS:
        started = time.perf_counter()
        check()
        took = time.perf_counter() - started
        version = importlib.metadata.version(package)
        print(f"{check.__name__}: works ({package} {version}, {took:.1f} s)")


if __name__ == "__main__":
    main()
