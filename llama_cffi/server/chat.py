"""OpenAI's chat completions: POST /v1/chat/completions."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from ..api.aio import whole_async
from ..api.chat_completions import Extensions, PreparedChat
from ..api.structured import json_format
from ..chat.tools import normalise_tools
from ..errors import ValidationError
from ..generation.prompt import prompt_text
from .body import BOOL, INTEGER, LIST, OBJECT, STRING, Kind, Object, either, take
from .call import OPENAI, Answer, Call, Endpoint, Json, Stream
from .errors import ApiError, invalid
from .fields import GENERATION, generation_options
from .lora import use_adapters
from .media import load_messages
from .models import ServedModel
from .paths import post
from .sse import event

if TYPE_CHECKING:
    from ..api.chat_completions import Message
    from ..api.types import CreateChatCompletionStreamResponse

__all__ = [
    "admit_chat",
    "chat_options",
    "chat_prompt",
    "count_tokens",
    "llama_extensions",
    "prepare_chat",
    "routes",
    "start_chat_stream",
]

_FIELDS: Mapping[str, Kind] = {
    **GENERATION,
    "messages": LIST,
    "tools": LIST,
    "tool_choice": either(STRING, OBJECT),
    "functions": LIST,
    "function_call": either(STRING, OBJECT),
    "parallel_tool_calls": BOOL,
    "response_format": OBJECT,
    "json_schema": OBJECT,
    "logprobs": BOOL,
    "top_logprobs": INTEGER,
    "reasoning_effort": STRING,
    "reasoning_control": BOOL,
    "thinking": BOOL,
    "thinking_budget": INTEGER,
    "thinking_budget_tokens": INTEGER,
    "reasoning_budget_tokens": INTEGER,
    "chat_template_kwargs": OBJECT,
    "continue_final_message": BOOL,
    "add_generation_prompt": BOOL,
    "modalities": LIST,
    "audio": OBJECT,
    "web_search_options": OBJECT,
    "context_policy": STRING,
    "verbose": BOOL,
}
_EXTENSIONS: Mapping[str, Kind] = {"timings_per_token": BOOL, "return_progress": BOOL}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_MAX_TOP_LOGPROBS = 20


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [
        *post("/chat/completions", Endpoint(_create)),
        *post("/chat/completions/input_tokens", Endpoint(_count)),
        *post("/chat/completions/control", Endpoint(_control, needs_model=False)),
    ]


async def _create(call: Call) -> Answer:
    end = threading.Event() if call.body.get("reasoning_control") else None
    prepared = await prepare_chat(call, call.body, end)
    if end is not None:
        _can_be_ended(call, prepared.id, end)
    extensions = llama_extensions(call.body)
    prepared = replace(prepared, extensions=extensions._replace(timings=True))
    verbose = {}
    if call.body.get("verbose"):
        vocab = call.model.llm.model.vocab
        verbose["__verbose"] = {"prompt": prompt_text(vocab, prepared.request.tokens)}
    if call.body.get("stream") is True:
        chunks = await start_chat_stream(call, prepared)
        return Stream(_events(chunks, verbose))
    done = await call.model.llm.create_chat_completion_async(prepared)
    shaped: Any = {**done, "system_fingerprint": call.model.fingerprint, **verbose}
    for choice in shaped["choices"]:
        choice["message"].setdefault("refusal", None)
    return Json(shaped)


def _can_be_ended(call: Call, id: str, end: threading.Event) -> None:
    """Let the reasoning of a response be ended until the request ends."""
    ends = call.state.reasoning_ends
    ends[id] = end

    def forget(_reason: str) -> None:
        ends.pop(id, None)

    call.answers.add(forget)


async def _control(call: Call) -> Answer:
    """End the reasoning of a running chat; llama-server has no other action."""
    given = take(call.body, {"id": STRING, "action": STRING}, "id", "action")
    id, action = given["id"], given["action"]
    if action != "reasoning_end":
        raise invalid("action", f"action must be reasoning_end, got {action!r:.60}")
    end = call.state.reasoning_ends.get(id)
    if end is None:
        message = (
            f"no chat completion {id!r:.60} with reasoning_control: true is running; the id is in "
            "each chunk of its stream"
        )
        raise ApiError(404, message, "not_found_error", code="not_found", param="id")
    end.set()
    return Json({"success": True, "message": "the reasoning ends after its next token"})


async def _count(call: Call) -> Answer:
    return Json({"object": "response.input_tokens", "input_tokens": await count_tokens(call)})


async def prepare_chat(
    call: Call, body: Object, reasoning_end: threading.Event | None = None
) -> PreparedChat:
    """Check a request in the form of OpenAI's chat completions; render and tokenize its messages.

    Args:
        call: The request, which owns the answers.
        body: The request as OpenAI's, possibly translated from another protocol.
        reasoning_end: See `ChatPreparer.prepare`.

    Raises:
        ApiError: A field is wrong.
        LlamaError: The request is wrong, or too long.
    """
    messages, options = chat_options(call.model, body)
    stream = body.get("stream") is True
    return await admit_chat(call, messages, options, stream=stream, reasoning_end=reasoning_end)


async def admit_chat(
    call: Call,
    messages: Sequence[Message],
    options: Mapping[str, Any],
    *,
    stream: bool,
    reasoning_end: threading.Event | None = None,
) -> PreparedChat:
    """Count the answers of a chat; load its media, render and tokenize it; types are checked.

    Raises:
        LlamaError: The request is wrong, or too long.
        QueueFullError: Too many requests are waiting already.
    """
    model = call.model
    use_adapters(call)
    call.admit(model, options.get("n", 1))
    messages = await load_messages(call, messages)
    prepared = await model.llm.chat.prepare_async(
        messages, options, stream=stream, reasoning_end=reasoning_end
    )
    model.check_length(len(prepared.request.tokens))
    return prepared


def llama_extensions(body: Object) -> Extensions:
    """Return the extensions of llama-server that a request of any protocol asks for.

    Raises:
        ApiError: A field has the wrong type.
    """
    given = take(body, _EXTENSIONS)
    per_token = given.get("timings_per_token", False)
    is_stream = body.get("stream") is True
    return Extensions(
        timings=per_token,
        timings_per_token=per_token and is_stream,
        progress=given.get("return_progress", False) and is_stream,
    )


async def start_chat_stream(
    call: Call, prepared: PreparedChat
) -> AsyncGenerator[CreateChatCompletionStreamResponse, None]:
    """Submit a request that `prepare_chat` returned; return its chunks."""
    chunks = await call.model.llm.create_chat_completion_async(prepared, stream=True)
    return _shaped(call.model, chunks)


async def _shaped(
    model: ServedModel, chunks: AsyncIterator[CreateChatCompletionStreamResponse]
) -> AsyncGenerator[CreateChatCompletionStreamResponse, None]:
    fingerprint = model.fingerprint
    async with aclosing(chunks):  # type: ignore[type-var]
        async for chunk in chunks:
            shaped: Any = {**chunk, "system_fingerprint": fingerprint}
            for choice in shaped["choices"]:
                if "role" in choice["delta"]:
                    choice["delta"]["content"] = None  # text begins with the next chunk
            yield shaped


async def _events(
    chunks: AsyncGenerator[CreateChatCompletionStreamResponse, None], first: Object
) -> AsyncGenerator[bytes, None]:
    """Yield the events of *chunks*; the fields *first* are in the first one."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield event({**chunk, **first} if first else chunk)
            first = {}
    yield OPENAI.end


def chat_options(model: ServedModel, body: Object) -> tuple[list[Any], dict[str, Any]]:
    """Return the messages and the options of a request.

    Raises:
        ApiError: A field has the wrong type, or is out of range.
    """
    given = take(body, _FIELDS, "messages")
    messages = given.pop("messages")
    for name in ("verbose", "reasoning_control"):
        given.pop(name, None)
    is_continued = _is_continued(messages, given)
    options = generation_options(given, len(model.llm.model.vocab))
    if given.get("n", 1) != 1:
        options["n"] = given["n"]
    top = options.get("top_logprobs")
    if top is not None:
        if not options.get("logprobs"):
            raise invalid("top_logprobs", "top_logprobs needs logprobs: true")
        if not 0 <= top <= _MAX_TOP_LOGPROBS:
            message = f"top_logprobs must be from 0 to {_MAX_TOP_LOGPROBS}, got {top}"
            raise invalid("top_logprobs", message)
    if "json_schema" in options:  # llama-server's
        schema = options.pop("json_schema")
        if "response_format" in options:
            raise invalid("json_schema", "give json_schema or response_format, not both")
        options["response_format"] = json_format(schema)
    if "tools" in options:
        _drop_foreign_tools(options)
    if "reasoning_effort" in options:
        _fit_effort(model, options)
    if is_continued:
        options["continue_final_message"] = True
        options.pop("reasoning_effort", None)
    return messages, {**options, "model": model.name}


async def count_tokens(call: Call, body: Object | None = None) -> int:
    """Return the number of tokens of a request's prompt; see `prepare_chat` for arguments.

    Raises:
        ApiError: A field is wrong.
        TemplateError: The chat template refuses the messages.
    """
    chat = call.model.llm.chat
    given, options = chat_options(call.model, call.body if body is None else body)
    options.pop("stream_options", None)
    messages = await load_messages(call, given)
    return len((await chat.prepare_async(messages, options)).request.tokens)


async def chat_prompt(call: Call) -> str:
    """Return the rendered prompt of a request.

    Raises:
        ApiError: A field has the wrong type.
        TemplateError: The chat template refuses the messages.
    """
    model, body = call.model, call.body
    given, options = chat_options(model, body)
    messages = await load_messages(call, given)
    names = ("thinking", "reasoning_effort", "chat_template_kwargs", "continue_final_message")
    rendering: Any = {name: options[name] for name in names if name in options}
    if body.get("add_generation_prompt") is False and "continue_final_message" not in options:
        variables = rendering.get("chat_template_kwargs") or {}
        rendering["chat_template_kwargs"] = {**variables, "add_generation_prompt": False}
    if options.get("tool_choice") != "none":
        rendering["tools"] = options.get("tools")
    render = model.llm.renderer.render
    return await whole_async(lambda: render(messages, **rendering).text)


def _is_continued(messages: list[Any], given: Object) -> bool:
    """Return whether the answer continues the last message; by default one of the assistant.

    Raises:
        ApiError: It is said to be continued and followed by a new one; or two messages of the
            assistant are at the end, of which only one could be continued.
    """
    last = [message for message in messages[-2:] if isinstance(message, dict)]
    roles = [message.get("role") for message in last]
    if roles == ["assistant", "assistant"]:
        raise invalid("messages", "messages ends with two messages of the assistant; join them")
    asked = given.pop("continue_final_message", None)
    is_new: bool = given.pop("add_generation_prompt", False)
    if asked and is_new:
        raise invalid(
            "continue_final_message",
            "continue_final_message and add_generation_prompt exclude each other; give one",
        )
    if asked is not None:
        return bool(asked)
    return roles[-1:] == ["assistant"] and not is_new and not last[-1].get("tool_calls")


def _drop_foreign_tools(options: Object) -> None:
    """Drop the tools that are not functions: clients offer those of OpenAI's service to all."""
    kept = []
    for i, tool in enumerate(options["tools"]):
        if not isinstance(tool, dict):
            raise invalid(
                "tools", f"tools[{i}] must be an object with a function, got {tool!r:.60}"
            )
        if not isinstance(tool.get("type", "function"), str):
            raise invalid("tools", f"tools[{i}]: type must be a string")
        if tool.get("type", "function") == "function":
            kept.append(tool)
    options["tools"] = kept
    try:
        normalise_tools(kept)
    except ValidationError as e:
        raise invalid("tools", f"tools: {e}") from None
    if not kept:
        del options["tools"]
        options.pop("tool_choice", None)
        options.pop("parallel_tool_calls", None)


def _fit_effort(model: ServedModel, options: Object) -> None:
    """Drop an effort that the model has no setting for: clients send it to every model."""
    effort = options["reasoning_effort"]
    if effort not in _EFFORTS:
        message = f"reasoning_effort must be one of {', '.join(_EFFORTS)}, got {effort!r:.60}"
        raise invalid("reasoning_effort", message)
    options["reasoning_effort"] = "high" if effort == "xhigh" else effort
    try:
        model.llm.renderer.resolve_thinking(options.get("thinking"), options["reasoning_effort"])
    except ValidationError:
        del options["reasoning_effort"]
