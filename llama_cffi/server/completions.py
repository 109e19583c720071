"""OpenAI's text completions: POST /v1/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from starlette.routing import BaseRoute

from ..api.channel import Channel
from .body import BOOL, INTEGER, LIST, STRING, Kind, either, take
from .call import OPENAI, Answer, Call, Endpoint, Json, Stream
from .errors import invalid
from .fields import GENERATION, generation_options, parse_grammar, texts_or_ids
from .lora import use_adapters
from .models import ServedModel
from .paths import post
from .sse import event

if TYPE_CHECKING:
    from ..api.types import (
        CompletionUsage,
        CreateCompletionResponse,
        CreateCompletionStreamResponse,
    )

__all__ = ["routes"]

T = TypeVar("T")
_Numbered: TypeAlias = "tuple[int, CreateCompletionStreamResponse]"

_FIELDS: Mapping[str, Kind] = {
    **GENERATION,
    "prompt": either(STRING, LIST),
    "suffix": STRING,
    "echo": BOOL,
    "logprobs": INTEGER,
    "best_of": INTEGER,
}
_MAX_LOGPROBS = 20


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    # llama-server's /completions, without /v1, has other fields.
    return post("/completions", Endpoint(_create), bare=False)


async def _create(call: Call) -> Answer:
    model = call.model
    given = take(call.body, _FIELDS, "prompt")
    n_vocab = len(model.llm.model.vocab)
    prompts = texts_or_ids("prompt", given.pop("prompt"), n_vocab)
    options = {**generation_options(given, n_vocab), "model": model.name}
    n: int = given.get("n", 1)
    if n != 1:
        options["n"] = n
    logprobs = options.get("logprobs", 0)
    if not 0 <= logprobs <= _MAX_LOGPROBS:
        message = f"logprobs must be from 0 to {_MAX_LOGPROBS}, got {logprobs}"
        raise invalid("logprobs", message)
    best_of: int = options.get("best_of", n)
    if best_of < n:
        raise invalid("best_of", f"best_of must be at least n, which is {n}, got {best_of}")
    parse_grammar(options)
    use_adapters(call)
    call.admit(model, len(prompts) * best_of)
    start = model.llm.create_completion_async
    if given.get("stream"):
        streams = [await start(prompt, stream=True, **options) for prompt in prompts]
        return Stream(_events(model, streams, n))
    whole = await _all([start(prompt, **options) for prompt in prompts])
    return Json(_joined(model, whole))


async def _all(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Return the results in order; the first error ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _joined(
    model: ServedModel, answers: Sequence[CreateCompletionResponse]
) -> Mapping[str, object]:
    """Return one response to all prompts, whose choices follow each other."""
    choices = [choice for answer in answers for choice in answer["choices"]]
    return {
        **answers[0],
        "system_fingerprint": model.fingerprint,
        "choices": [{**choice, "index": i} for i, choice in enumerate(choices)],
        "usage": _total([answer["usage"] for answer in answers if "usage" in answer]),
    }


async def _events(
    model: ServedModel, streams: Sequence[AsyncIterator[CreateCompletionStreamResponse]], n: int
) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of all prompts, as they come, as those of one response."""
    usages: list[CompletionUsage] = []
    first: dict[str, object] = {}
    sources = [_numbered(i, stream) for i, stream in enumerate(streams)]
    joined = sources[0] if len(sources) == 1 else Channel[_Numbered]().read(sources)
    async with aclosing(joined):
        async for i, chunk in joined:
            first = first or {"id": chunk["id"], "created": chunk["created"]}
            shaped = {**chunk, **first, "system_fingerprint": model.fingerprint}
            if usage := chunk.get("usage"):
                usages.append(usage)
                if len(usages) < len(streams):
                    continue
                shaped["usage"] = _total(usages)
            shaped["choices"] = [{**c, "index": c["index"] + i * n} for c in chunk["choices"]]
            yield event(shaped)
    yield OPENAI.end


async def _numbered(
    i: int, stream: AsyncIterator[CreateCompletionStreamResponse]
) -> AsyncGenerator[_Numbered, None]:
    async with aclosing(stream):  # type: ignore[type-var]
        async for chunk in stream:
            yield i, chunk


def _total(usages: Sequence[CompletionUsage]) -> CompletionUsage:
    """Return the sum of the token counts of several prompts."""
    total: Any = {}
    for usage in usages:
        for name, value in usage.items():
            if isinstance(value, dict):
                before = total.setdefault(name, {})
                total[name] = {key: before.get(key, 0) + n for key, n in value.items()}
            else:
                total[name] = total.get(name, 0) + value
    return total  # type: ignore[no-any-return]
