"""Prepared requests, and running them on either engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import TypeIs

from ..errors import QueueFullError
from ..generation.options import CALL_DEFAULTS, GenerationOptions
from ..generation.sampling_params import SamplingParams
from ..validation import check_int

if TYPE_CHECKING:
    from ..engine import Engine
    from ..generation.prompt_progress import PromptProgress
    from ..generation.sequence import ReasoningLimit, Step
    from ..generation.stats import GenerationStats
    from ..scheduler import InferenceEngine, RequestHandle
    from .types import CompletionUsage, FinishReason

    AnyEngine: TypeAlias = Engine | InferenceEngine

__all__ = [
    "PreparedRequest",
    "finish_reason",
    "is_shared",
    "openai_limit",
    "run",
    "run_async",
    "usage",
]

_SEEDS = 2**32 - 1


@dataclass(frozen=True)
class PreparedRequest:
    """A prompt and its options, independent of the engine.

    Attributes:
        tokens: The tokens of the prompt.
        max_tokens: Most tokens to generate; None: until the model ends the answer or the
            context is full.
        options: `GenerationOptions`, with a `SamplingParams` as `sampling`.
        n: Number of answers, each with its own seed.
        reasoning_limit: Creates the reasoning limit of one answer.
        on_progress: Called with the index of an answer and the progress of its prompt, in the
            engine's thread.
    """

    tokens: Sequence[int]
    max_tokens: int | None
    options: GenerationOptions
    n: int = 1
    reasoning_limit: Callable[[], ReasoningLimit] | None = None
    on_progress: Callable[[int, PromptProgress], object] | None = None

    def options_of(self, i: int) -> GenerationOptions:
        """Return the options of answer *i*: complete, and with its own seed."""
        found: Any = {
            **CALL_DEFAULTS,
            **{name: value for name, value in self.options.items() if value is not None},
        }
        if self.on_progress is not None:
            found["prompt_progress"] = partial(self.on_progress, i)
        params = found.get("sampling")
        if i and isinstance(params, SamplingParams) and params.seed != -1:
            found["sampling"] = dataclasses.replace(params, seed=(params.seed + i) % _SEEDS)
        return found  # type: ignore[no-any-return]


def is_shared(engine: AnyEngine) -> TypeIs[InferenceEngine]:
    """Return whether requests to an engine can be awaited."""
    return hasattr(engine, "submit")


def run(
    engine: AnyEngine, request: PreparedRequest
) -> list[Generator[Step, None, GenerationStats]]:
    """Start the answers to a request; each generator yields its steps.

    Raises:
        ContextOverflowError: The prompt leaves no room for an answer.
        ValidationError: An option is out of range.
    """
    return [
        engine.steps(
            request.tokens,
            request.max_tokens,
            reasoning_limit=request.reasoning_limit,
            **request.options_of(i),
        )
        for i in range(request.n)
    ]


async def run_async(engine: InferenceEngine, request: PreparedRequest) -> list[RequestHandle]:
    """Call `run` in an event loop, waiting while the queue is full.

    Raises:
        ContextOverflowError: The prompt leaves no room for an answer.
        ValidationError: An option is out of range.
    """
    handles = []
    try:
        for i in range(request.n):
            submit = partial(
                engine.submit,
                request.tokens,
                request.max_tokens,
                listens=True,
                reasoning_limit=request.reasoning_limit,
                **request.options_of(i),
            )
            try:
                handles.append(submit())
            except QueueFullError:
                handles.append(await asyncio.to_thread(submit, wait=True))
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise
    return [*handles]


def openai_limit(max_tokens: int | None) -> int | None:
    """Return `max_tokens` of a request in OpenAI's format, where -1, as in llama.cpp, means None.

    Raises:
        ValidationError: *max_tokens* is neither -1 nor at least 1.
    """
    return None if max_tokens in (None, -1) else check_int("max_tokens", max_tokens, 1)


def finish_reason(stats: GenerationStats) -> FinishReason:
    """Return OpenAI's finish reason of an answer."""
    return "length" if stats.finish_reason in ("length", "context") else "stop"


def usage(
    answers: Sequence[GenerationStats], n_reasoning_tokens: int | None = None
) -> CompletionUsage:
    """Return OpenAI's usage of the answers to one prompt.

    Args:
        answers: Their statistics.
        n_reasoning_tokens: Number of generated tokens that are reasoning; None: not a chat.
    """
    prompt, generated = answers[0].n_prompt, sum(stats.n_generated for stats in answers)
    found: CompletionUsage = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": answers[0].n_reused},
    }
    if n_reasoning_tokens is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": n_reasoning_tokens}
    return found
