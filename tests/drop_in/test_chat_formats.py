"""Chat formats: names, templates, registered functions; caches of states."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama_cffi.llama_cpp as llama_cpp
from llama_cffi import ValidationError
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import Llama, llama_chat_format
from llama_cffi.llama_cpp.llama_cache import BaseLlamaCache
from llama_cffi.llama_cpp.llama_chat_format import (
    ChatFormatterResponse,
    Jinja2ChatFormatter,
    LlamaChatCompletionHandlerNotFoundException,
    LlamaChatCompletionHandlerRegistry,
    get_chat_completion_handler,
    register_chat_completion_handler,
    register_chat_format,
)

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(str(model_path()), n_ctx=512, n_threads=1) as llm:
        yield llm


@pytest.fixture(autouse=True)
def forget_formats(llm: Llama) -> Iterator[None]:
    yield
    llm.chat_format = llm.chat_handler = None
    for name in list(LlamaChatCompletionHandlerRegistry._handlers):
        LlamaChatCompletionHandlerRegistry().unregister_chat_handler(name)


def content(llm: Llama, **options: Any) -> str:
    answer = llm.create_chat_completion(SUM, temperature=0, max_tokens=8, **options)
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    "name",
    [
        None, "chat_template.default", "chatml", "qwen", "chatml-function-calling",
        llama_chat_format.CHATML_CHAT_TEMPLATE,
    ],
)  # fmt: skip
def test_formats_of_this_model(llm: Llama, name: str | None) -> None:
    llm.chat_format = name
    assert content(llm) == "42"


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("llama-2", "[INST]"),
        ("llama-3", "<|start_header_id|>user"),
        ("mistral-instruct", "[INST]"),
        ("vicuna", "USER: "),
        ("zephyr", "<|user|>"),
        ("gemma", "<start_of_turn>user"),
        ("openchat", "GPT4 Correct User"),
        ("chatglm3", "<|user|>"),
    ],
)
def test_names_of_formats(llm: Llama, name: str, mark: str) -> None:
    llm.chat_format = name
    content(llm)
    assert mark in llm.detokenize(list(llm.eval_tokens), special=True).decode()


FORMATS = [
    "chatml", "chatml-function-calling", "qwen", "llama-2", "llama-3", "mistral-instruct",
    "vicuna", "zephyr", "gemma", "openchat", "chatglm3",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_handler_of_a_format_answers_as_the_format(llm: Llama, name: str) -> None:
    handler = get_chat_completion_handler(name)
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    found = handler(llama=llm, messages=SUM, **options)
    prompt = llm.input_ids.tolist()
    chunks = list(handler(llama=llm, messages=SUM, stream=True, **options))
    llm.reset()
    llm.chat_format = name
    answer = llm.create_chat_completion(SUM, **options)
    assert found["choices"] == answer["choices"]
    n = answer["usage"]["prompt_tokens"]
    assert prompt[:n] == llm.input_ids.tolist()[:n]
    streamed = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert streamed == answer["choices"][0]["message"]["content"]
    # As `chat_handler` too.
    llm.chat_format, llm.chat_handler = None, handler
    assert llm.create_chat_completion(SUM, **options)["choices"] == answer["choices"]


def test_a_handler_of_a_format_calls_tools(llm: Llama) -> None:
    handler = get_chat_completion_handler("chatml-function-calling")
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    for given in (
        {"tools": [TOOL], "tool_choice": choice},
        {"functions": [TOOL["function"]], "function_call": {"name": "get_weather"}},
    ):
        answer = handler(llama=llm, messages=messages, temperature=0, **given)
        message = answer["choices"][0]["message"]
        arguments = message["tool_calls"][0]["function"]["arguments"]
        assert json.loads(arguments) == {"city": "Paris"}
        assert ("function_call" in message) == ("functions" in given)
    with pytest.raises(TypeError, match="temprature"):
        handler(llama=llm, messages=messages, temprature=0)


def test_a_registered_handler_replaces_that_of_a_format(llm: Llama) -> None:
    @register_chat_completion_handler("chatml")
    def mine(**options: Any) -> Any:
        return "mine"

    assert get_chat_completion_handler("chatml") is mine
    llm.chat_format = "chatml"
    assert llm.create_chat_completion(SUM) == "mine"


def test_mistral_instruct_is_the_template_of_mistral() -> None:
    # mistralai/Mistral-7B-Instruct-v0.2, tokenizer_config.json, without its checks of the roles.
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    formatter = Jinja2ChatFormatter(
        llama_chat_format.MISTRAL_INSTRUCT_CHAT_TEMPLATE, eos_token="</s>", bos_token="<s>"
    )
    assert formatter(messages=messages).prompt == "<s>[INST] a [/INST]b</s>[INST] c [/INST]"
    system = [{"role": "system", "content": "s"}, *messages]
    assert formatter(messages=system).prompt.startswith("<s>[INST] s\n\na [/INST]b</s>[INST] c ")


def test_unsupported_formats(llm: Llama) -> None:
    llm.chat_format = "alpaca"
    with pytest.raises(ValidationError, match="register_chat_format"):
        content(llm)
    llm.chat_format = "chat_template.other"
    with pytest.raises(ValidationError, match=r"has no chat_template\.other"):
        content(llm)
    llm.chat_format = "nonsense"
    with pytest.raises(ValueError, match="nonsense"):
        content(llm)
    with pytest.raises(LlamaChatCompletionHandlerNotFoundException, match="nonsense"):
        get_chat_completion_handler("nonsense")


def test_templates_of_the_model_by_name() -> None:
    metadata = {"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    assert llama_chat_format.template_of("chat_template.tool_use", metadata) == "b"
    with pytest.raises(
        ValidationError, match=r"\['chat_template.default', 'chat_template.tool_use'"
    ):
        llama_chat_format.template_of("chat_template.rag", metadata)


def prompt_of(messages: list[Any]) -> str:
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return turns + "<|im_start|>assistant\n"


def test_a_registered_format(llm: Llama) -> None:
    seen: list[Any] = []

    @register_chat_format("mine")
    def mine(messages: list[Any], **kwargs: Any) -> ChatFormatterResponse:
        seen.append(kwargs)
        return ChatFormatterResponse(prompt_of(messages), stop="2")

    llm.chat_format = "mine"
    assert content(llm) == "4"
    assert content(llm, stop=["4"]) == ""
    chunks = list(llm.create_chat_completion(SUM, temperature=0, stream=True))
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == "4"
    assert set(seen[0]) >= {"functions", "function_call", "tools", "tool_choice"}
    with pytest.raises(ValidationError, match="already"):
        register_chat_format("mine")(mine)


def test_a_registered_handler_and_one_of_the_constructor(llm: Llama) -> None:
    @register_chat_completion_handler("parrot")
    def parrot(*, llama: Any, messages: list[Any], **options: Any) -> Any:
        assert (llama, options["temperature"]) == (llm, 0.5)
        return messages[-1]["content"]

    llm.chat_format = "parrot"
    assert llm.create_chat_completion(SUM, temperature=0.5) == "What is 17 + 25?"
    llm.chat_handler = lambda **options: sorted(options)
    names = llm.create_chat_completion(SUM, thinking=True)
    assert {"llama", "messages", "functions", "top_logprobs", "thinking"} <= set(names)


def test_jinja_formatters(llm: Llama) -> None:
    template = llm.metadata["tokenizer.chat_template"]
    formatter = Jinja2ChatFormatter(template, "<|im_end|>", "", stop_token_ids=[llm.token_eos()])
    assert formatter(messages=SUM).prompt == prompt_of(SUM)
    llm.chat_handler = formatter.to_chat_handler()
    assert content(llm) == "42"
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = llm.create_chat_completion(messages, tools=[TOOL], temperature=0, max_tokens=60)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    config = {"chat_template": template, "eos_token": {"content": "<|im_end|>"}, "bos_token": ""}
    of_config = llama_chat_format.hf_tokenizer_config_to_chat_completion_handler(config)
    llm.chat_handler = of_config
    assert content(llm) == "42"
    with pytest.raises(ValidationError, match="no bos_token"):
        llama_chat_format.hf_tokenizer_config_to_chat_formatter({**config, "bos_token": None})


# --- caches ----------------------------------------------------------------------------------


@pytest.fixture(params=["ram", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> BaseLlamaCache:
    if request.param == "ram":
        return llama_cpp.LlamaCache()
    return llama_cpp.LlamaDiskCache(tmp_path / "cache")


def cached(answer: Any) -> int:
    n: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return n


def test_conversations_that_take_turns(llm: Llama, cache: BaseLlamaCache) -> None:
    one, two = SUM, [{"role": "user", "content": "1" + " and 2" * 30}]
    llm.reset()
    llm.set_cache(cache)
    try:
        answers = [llm.create_chat_completion(m, temperature=0, max_tokens=4) for m in (one, two)]
        assert cache.cache_size > 0
        for messages, before in ((one, answers[0]), (two, answers[1]), (one, answers[0])):
            again = llm.create_chat_completion(messages, temperature=0, max_tokens=4)
            assert again["choices"] == before["choices"]
            assert cached(again) == again["usage"]["prompt_tokens"] - 1
        # Completions and streams too.
        list(llm("7 8 9 10 11 12", max_tokens=2, temperature=0, stream=True))
        llm.create_chat_completion(two, max_tokens=1)
        assert cached(llm("7 8 9 10 11 12", max_tokens=2, temperature=0)) > 3
    finally:
        llm.set_cache(None)


def test_caches_return_the_longest_and_evict_the_oldest(llm: Llama, cache: BaseLlamaCache) -> None:
    states = {}
    for tokens in ((5, 6), (5, 6, 7, 8), (9, 9)):
        llm.reset()
        llm.eval(tokens)
        states[tokens] = cache[tokens] = llm.save_state()
    assert cache[[5, 6, 7, 1]].n_tokens == 4
    assert cache[[9, 1]].input_ids.tolist() == [9, 9]
    assert [5, 1] in cache
    assert [1, 2] not in cache
    with pytest.raises(KeyError):
        cache[[1, 2]]
    size = max(state.llama_state_size for state in states.values())
    cache.capacity_bytes = 2 * size
    cache[(4, 4)] = states[9, 9]
    assert cache.cache_size <= 2 * size
    assert [9, 9] in cache
    assert [4, 4] in cache
    assert [5, 6] not in cache


def test_a_cache_on_disk_outlives_the_process(llm: Llama, tmp_path: Path) -> None:
    llm.reset()
    llm.eval([5, 6, 7])
    expected = llm.sample(temp=0)
    llama_cpp.LlamaDiskCache(tmp_path)[(5, 6, 7)] = llm.save_state()
    llm.reset()
    llm.load_state(llama_cpp.LlamaDiskCache(tmp_path)[(5, 6, 7, 8)])
    assert (llm.n_tokens, llm.sample(temp=0)) == (3, expected)
