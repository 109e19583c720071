"""The drop-in's types: llama-cpp-python's names and shapes, readable by pydantic."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

import llama_cffi
import llama_cffi.llama_cpp as llama_cpp
from llama_cffi.demo import model_path
from llama_cffi.llama_cpp import Llama, llama_types

# llama-cpp-python 0.3.36: the keys of each type; `?`: not required.
KEYS = {
    "EmbeddingUsage": "prompt_tokens total_tokens",
    "Embedding": "index object embedding",
    "CreateEmbeddingResponse": "object model data usage",
    "CompletionLogprobs": "text_offset token_logprobs tokens top_logprobs",
    "CompletionChoice": "text index logprobs finish_reason",
    "CompletionUsage": "prompt_tokens completion_tokens total_tokens",
    "CreateCompletionResponse": "id object created model choices usage?",
    "ChatCompletionResponseFunctionCall": "name arguments",
    "ChatCompletionResponseMessage": "content tool_calls? role function_call?",
    "ChatCompletionFunction": "name description? parameters",
    "ChatCompletionTopLogprobToken": "token logprob bytes",
    "ChatCompletionLogprobToken": "token logprob bytes top_logprobs",
    "ChatCompletionLogprobs": "content refusal",
    "ChatCompletionResponseChoice": "index message logprobs finish_reason",
    "CreateChatCompletionResponse": "id object created model choices usage",
    "ChatCompletionMessageToolCallChunkFunction": "name arguments",
    "ChatCompletionMessageToolCallChunk": "index id? type function",
    "ChatCompletionStreamResponseDeltaEmpty": "",
    "ChatCompletionStreamResponseDeltaFunctionCall": "name arguments",
    "ChatCompletionStreamResponseDelta": "content? function_call? tool_calls? role?",
    "ChatCompletionStreamResponseChoice": "index delta finish_reason logprobs?",
    "CreateChatCompletionStreamResponse": "id model object created choices",
    "ChatCompletionFunctions": "name description? parameters",
    "ChatCompletionFunctionCallOption": "name",
    "ChatCompletionRequestResponseFormat": "type schema?",
    "ChatCompletionRequestMessageContentPartText": "type text",
    "ChatCompletionRequestMessageContentPartImageImageUrl": "url detail?",
    "ChatCompletionRequestMessageContentPartImage": "type image_url",
    "ChatCompletionRequestSystemMessage": "role content",
    "ChatCompletionRequestUserMessage": "role content",
    "ChatCompletionMessageToolCallFunction": "name arguments",
    "ChatCompletionMessageToolCall": "id type function",
    "ChatCompletionRequestAssistantMessageFunctionCall": "name arguments",
    "ChatCompletionRequestAssistantMessage": "role content? tool_calls? function_call?",
    "ChatCompletionRequestToolMessage": "role content tool_call_id",
    "ChatCompletionRequestFunctionMessage": "role content name",
    "ChatCompletionRequestFunctionCallOption": "name",
    "ChatCompletionToolFunction": "name description? parameters",
    "ChatCompletionTool": "type function",
    "ChatCompletionNamedToolChoiceFunction": "name",
    "ChatCompletionNamedToolChoice": "type function",
}
OTHERS = {
    "JsonType", "ChatCompletionRequestMessageContentPart", "ChatCompletionMessageToolCalls",
    "ChatCompletionRequestMessage", "ChatCompletionRequestFunctionCall",
    "ChatCompletionFunctionParameters", "ChatCompletionToolChoiceOption", "EmbeddingData",
    "CompletionChunk", "Completion", "CreateCompletionStreamResponse", "ChatCompletionMessage",
    "ChatCompletionChoice", "ChatCompletion", "ChatCompletionChunkDeltaEmpty",
    "ChatCompletionChunkChoice", "ChatCompletionChunkDelta", "ChatCompletionChunk",
    "ChatCompletionStreamResponse", "ChatCompletionResponseFunction", "ChatCompletionFunctionCall",
}  # fmt: skip
CLASSES = {
    "BaseLlamaCache", "BaseLlamaTokenizer", "Llama", "LlamaCache", "LlamaDiskCache",
    "LlamaDraftModel", "LlamaGrammar", "LlamaRAMCache", "LlamaState", "LlamaTokenizer",
    "LogitsProcessor", "LogitsProcessorList", "MinTokensLogitsProcessor", "StoppingCriteria",
    "StoppingCriteriaList",
}  # fmt: skip
# Keys that ours may omit, since streams of OpenAI omit them after the first chunk of a call.
OMITTED = {
    "ChatCompletionMessageToolCallChunk": {"type"},
    "ChatCompletionMessageToolCallChunkFunction": {"name", "arguments"},
    "ChatCompletionStreamResponseDeltaFunctionCall": {"name", "arguments"},
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "parameters": CITY}
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(str(model_path()), n_ctx=512, n_threads=1, embedding=True) as llm:
        yield llm


def test_every_public_name_of_llama_cpp_python_is_here_and_at_the_top() -> None:
    assert {*KEYS, *OTHERS} <= set(llama_types.__all__) <= set(llama_cpp.__all__)
    assert set(llama_cpp.__all__) >= CLASSES
    for name in llama_types.__all__:
        assert getattr(llama_cpp, name) is getattr(llama_types, name), name


@pytest.mark.parametrize("name", KEYS)
def test_types_have_the_keys_of_llama_cpp_python(name: str) -> None:
    kind = getattr(llama_cpp, name)
    assert is_typeddict(kind)
    every = {key.rstrip("?") for key in KEYS[name].split()}
    required = {key for key in KEYS[name].split() if not key.endswith("?")}
    assert every <= set(typing.get_type_hints(kind))
    # A value of theirs is one of ours.
    assert kind.__required_keys__ <= required
    assert required - kind.__required_keys__ == OMITTED.get(name, set()) & required or (
        name.startswith("ChatCompletionRequest")
    )


@pytest.mark.parametrize("name", llama_types.__all__)
def test_pydantic_reads_every_type(name: str) -> None:
    assert TypeAdapter(getattr(llama_types, name)).json_schema()


def keeps(kind: Any, value: object) -> bool:
    """Pydantic drops keys that a type does not declare."""
    return bool(TypeAdapter(kind).validate_python(value) == value)


def test_responses_are_of_their_types(llm: Llama) -> None:
    assert keeps(llama_cpp.Completion, llm("a b", max_tokens=3, logprobs=2))
    chunks = llm("a b", max_tokens=3, logprobs=1, stream=True)
    assert all(keeps(llama_cpp.CompletionChunk, chunk) for chunk in chunks)
    embeddings = llm.create_embedding(["a", "b"])
    assert keeps(llama_cpp.CreateEmbeddingResponse, embeddings)


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 3},
        {"tools": [{"type": "function", "function": FUNCTION}]},
        {"functions": [FUNCTION]},
    ],
)
def test_chat_responses_are_of_their_types(llm: Llama, options: dict[str, Any]) -> None:
    whole = llm.create_chat_completion(WEATHER, temperature=0, **options)
    assert keeps(llama_cpp.ChatCompletion, whole)
    chunks = list(llm.create_chat_completion(WEATHER, temperature=0, stream=True, **options))
    assert all(keeps(llama_cpp.ChatCompletionChunk, chunk) for chunk in chunks)
    message, deltas = whole["choices"][0]["message"], [c["choices"][0]["delta"] for c in chunks]
    for key in ("tool_calls", "function_call"):
        assert (key in message) == any(key in delta for delta in deltas)
    assert ("function_call" in message) == ("functions" in options)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "tool", "content": "a", "tool_call_id": "1"},
        {"role": "function", "content": "a", "name": "f"},
    ],
)
def test_messages_are_of_their_type(message: dict[str, Any]) -> None:
    assert keeps(llama_cpp.ChatCompletionRequestMessage, message)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("ChatCompletionRequestMessage", {"role": "nobody", "content": "a"}),
        ("ChatCompletionRequestMessage", {"role": "tool", "content": "a"}),
        ("ChatCompletionTool", {"type": "tool", "function": FUNCTION}),
        ("ChatCompletionToolChoiceOption", "all"),
        ("ChatCompletionRequestResponseFormat", {"type": "yaml"}),
    ],
)
def test_wrong_values_are_not(kind: str, value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(getattr(llama_cpp, kind)).validate_python(value)


@pytest.mark.parametrize("choice", ["auto", {"type": "function", "function": {"name": "f"}}])
def test_choices_of_a_tool_are_of_their_type(choice: object) -> None:
    assert keeps(llama_cpp.ChatCompletionToolChoiceOption, choice)


def test_native_responses_are_readable_too() -> None:
    for name in ("CreateChatCompletionResponse", "CreateEmbeddingResponse", "CompletionUsage"):
        assert TypeAdapter(getattr(llama_cffi, name)).json_schema()
