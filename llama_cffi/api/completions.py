"""Text completions in OpenAI's format: preparing requests and shaping responses."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ValidationError
from ..generation.options import GenerationOptions
from ..generation.prompt import check_prompt, tokenize_prompt
from ..generation.stats import GenerationStats
from ..generation.text import CharacterOffsets
from ..validation import as_list, check_bool, check_int, check_str
from .aio import stream_async as background
from .channel import Channel, between
from .running import PreparedRequest, finish_reason, is_shared, openai_limit, usage
from .running import run as start
from .running import run_async as submit_async

if TYPE_CHECKING:
    from ..binding import Model
    from ..generation.logprobs import Logprob
    from ..generation.sequence import Step
    from ..scheduler import RequestHandle
    from .running import AnyEngine
    from .types import (
        CompletionChoice,
        CompletionLogprobs,
        CreateCompletionResponse,
        CreateCompletionStreamResponse,
        FinishReason,
    )

__all__ = [
    "PreparedCompletion",
    "prepare",
    "prompt_tokens",
    "start_stream",
    "stream",
    "whole",
    "whole_async",
]


@dataclass(frozen=True)
class PreparedCompletion:
    """A prepared completion.

    Attributes:
        request: The request to the engine.
        model: The model.
        name: The model's name in the response.
        head: Text before each answer: the prompt if it is echoed.
        tail: Text after each answer: the suffix if the prompt is echoed.
        echoed: The prompt, if it is echoed with its log-probabilities; see `echo`.
        n: Number of answers to return: of all generated, those with the best mean log-probability.
        logprobs: Whether to return log-probabilities.
        offset: Number of characters of the prompt, from which `text_offset` counts.
        includes_usage: Whether a stream ends with a chunk that has the usage.
        includes_stop_reason: Whether the last choice of a stream has `stop_reason`.
        id: The response's id.
        created: The response's time, Unix seconds.
    """

    request: PreparedRequest
    model: Model
    name: str
    head: str = ""
    tail: str = ""
    echoed: str | None = None
    n: int = 1
    logprobs: bool = False
    offset: int = 0
    includes_usage: bool = False
    includes_stop_reason: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


def prepare(
    model: Model,
    name: str,
    prompt: str | Sequence[int],
    options: GenerationOptions,
    *,
    suffix: str | None = None,
    max_tokens: int | None = 16,
    echo: bool = False,
    n: int = 1,
    best_of: int | None = None,
    stream: bool = False,
    includes_usage: bool = False,
    includes_stop_reason: bool = False,
) -> PreparedCompletion:
    """Check the arguments of a completion and tokenize its prompt; see `Llama.create_completion`.

    Raises:
        ValidationError: An argument is out of range, or two exclude each other.
    """
    n = check_int("n", n, 1)
    best_of = n if best_of is None else check_int("best_of", best_of, n)
    check_bool("echo", echo)
    logprobs = options.get("logprobs")
    if stream and best_of > n:
        raise ValidationError("best_of > n cannot be streamed: answers are compared at the end")
    if logprobs is not None:
        check_int("logprobs", logprobs, 0)
        if echo and suffix is not None:
            raise ValidationError("echo=True with logprobs excludes suffix; leave out one of them")
    scores_prompt = echo and logprobs is not None
    is_empty = max_tokens == 0 and echo  # only the prompt is wanted
    tokens = prompt_tokens(model, prompt, suffix)
    text = ""
    if echo or logprobs is not None:
        text = prompt if isinstance(prompt, str) else model.vocab.detokenize(tokens)
    if best_of > n and logprobs is None:
        options = {**options, "logprobs": 0}  # to compare answers
    return PreparedCompletion(
        PreparedRequest(
            tokens,
            openai_limit(1 if is_empty else max_tokens),
            options,
            0 if is_empty else best_of,
        ),
        model,
        name,
        text if echo and not scores_prompt else "",
        (suffix or "") if echo else "",
        text if scores_prompt else None,
        n,
        logprobs is not None,
        len(text),
        includes_usage=includes_usage,
        includes_stop_reason=includes_stop_reason,
    )


def prompt_tokens(
    model: Model, prompt: str | Sequence[int], suffix: str | None, *, spm: bool = False
) -> list[int]:
    """Return the tokens of a prompt, or with a suffix those of a fill-in-the-middle prompt.

    *spm* puts the suffix first, as some models expect.

    Raises:
        ValidationError: A suffix is given, but the model has no fill-in-the-middle tokens.
    """
    vocab = model.vocab
    check_prompt(prompt)
    if suffix is not None:
        check_str("suffix", suffix)
    if suffix is None:
        return (
            tokenize_prompt(vocab, prompt) if isinstance(prompt, str) else as_list("prompt", prompt)
        )
    before, after, middle = vocab.fim_pre, vocab.fim_suf, vocab.fim_mid
    if before is None or after is None or middle is None:
        raise ValidationError(
            f"{model.path.name} has no fill-in-the-middle tokens, so suffix is not supported"
        )
    first = vocab.tokenize(prompt, False) if isinstance(prompt, str) else as_list("prompt", prompt)
    bos = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    head, tail = [before, *first], [after, *vocab.tokenize(suffix, False)]
    return [*bos, *(tail + head if spm else head + tail), middle]


def whole(
    prepared: PreparedCompletion, runs: Sequence[Generator[Step, None, GenerationStats]]
) -> CreateCompletionResponse:
    """Collect all *runs* and return OpenAI's response."""
    return _response(prepared, [_collect(run) for run in runs])


async def whole_async(
    prepared: PreparedCompletion, runs: Sequence[RequestHandle]
) -> CreateCompletionResponse:
    """Call `whole` in an event loop."""
    answers: list[_Answer] = []
    for run in runs:
        text: list[str] = []
        scores: list[Logprob] = []
        async with aclosing(run.steps_async()) as steps:
            async for step in steps:
                text.append(step.text)
                if step.logprob is not None:
                    scores.append(step.logprob)
        answers.append(("".join(text), scores, run.stats))
    return _response(prepared, answers)


def stream(
    prepared: PreparedCompletion,
    runs: Sequence[Generator[Step, None, GenerationStats]],
    echo: CompletionLogprobs | None = None,
) -> Iterator[CreateCompletionStreamResponse]:
    """Yield OpenAI's chunks, one answer after the other.

    Args:
        prepared: The completion.
        runs: Its answers.
        echo: The log-probabilities of the prompt, if it is echoed with them.
    """
    chunks = [_Chunks(prepared, i, echo) for i in range(prepared.n)]
    for each in chunks:
        yield from each.first()
    yield from _of_runs(chunks, runs)
    yield from _end(prepared, chunks)


async def start_stream(
    prepared: PreparedCompletion, engine: AnyEngine, echo: CompletionLogprobs | None = None
) -> AsyncGenerator[CreateCompletionStreamResponse, None]:
    """Submit the request; return OpenAI's chunks, those of several answers as they come.

    An `Engine` generates one answer after the other. See `stream` for *echo*.

    Raises:
        ContextOverflowError: The prompt leaves no room for an answer.
        ValidationError: An option is out of range.
    """
    chunks = [_Chunks(prepared, i, echo) for i in range(prepared.n)]
    if is_shared(engine):
        handles = await submit_async(engine, prepared.request)
        sources = [each.of_handle(one) for each, one in zip(chunks, handles, strict=False)]
    else:
        runs = start(engine, prepared.request)
        sources = [background(lambda: _of_runs(chunks, runs))]
    middle = sources[0] if len(sources) == 1 else Channel[_Chunk]().read(sources)
    first = (chunk for each in chunks for chunk in each.first())
    return between(first, middle, lambda: _end(prepared, chunks))


def _of_runs(
    chunks: Sequence[_Chunks], runs: Sequence[Generator[Step, None, GenerationStats]]
) -> Iterator[_Chunk]:
    for each, run in zip(chunks, runs, strict=False):
        with closing(run):
            while True:
                try:
                    step = next(run)
                except StopIteration as e:
                    yield each.last(e.value)
                    break
                yield from each.push(step)


def _end(prepared: PreparedCompletion, chunks: Sequence[_Chunks]) -> Iterator[_Chunk]:
    """Yield what follows the answers."""
    if not prepared.request.n:  # max_tokens=0
        for each in chunks:
            yield each.last(_nothing(prepared))
    if prepared.includes_usage:
        yield {**_base_chunk(prepared), "usage": usage([each.stats for each in chunks])}


_Answer = tuple[str, "list[Logprob]", "GenerationStats"]
_Chunk: TypeAlias = "CreateCompletionStreamResponse"


def _collect(run: Generator[Step, None, GenerationStats]) -> _Answer:
    text: list[str] = []
    scores: list[Logprob] = []
    while True:
        try:
            step = next(run)
        except StopIteration as e:
            return "".join(text), scores, e.value
        text.append(step.text)
        if step.logprob is not None:
            scores.append(step.logprob)


def _response(prepared: PreparedCompletion, answers: Sequence[_Answer]) -> CreateCompletionResponse:
    if not answers:  # max_tokens=0
        answers = [("", [], _nothing(prepared))] * prepared.n
    order = answers
    if len(answers) > prepared.n:
        order = sorted(answers, key=lambda answer: -_mean(answer[1]))[: prepared.n]
    choices: list[CompletionChoice] = [
        {
            "text": prepared.head + text + prepared.tail,
            "index": i,
            "logprobs": _Logprobs(prepared).add(scores, len(text)) if prepared.logprobs else None,
            "finish_reason": finish_reason(stats),
        }
        for i, (text, scores, stats) in enumerate(order)
    ]
    return {
        **_base(prepared),
        "choices": choices,
        "usage": usage([answer[2] for answer in answers]),
    }


def _nothing(prepared: PreparedCompletion) -> GenerationStats:
    """Return the statistics of an answer that was not wanted."""
    return GenerationStats(n_prompt=len(prepared.request.tokens), finish_reason="length")


class _Chunks:
    """The chunks of one answer.

    Args:
        prepared: The completion.
        index: The answer's index.
        echo: The log-probabilities of the prompt, if it is echoed with them.

    Attributes:
        stats: The statistics, once it has ended.
    """

    def __init__(
        self, prepared: PreparedCompletion, index: int, echo: CompletionLogprobs | None = None
    ) -> None:
        self._prepared, self._index, self._echo = prepared, index, echo
        self._logprobs, self._text = _Logprobs(prepared), prepared.head
        self.stats = GenerationStats()

    def first(self) -> Iterator[_Chunk]:
        """Yield a chunk with the prompt, if it is echoed with log-probabilities."""
        if self._echo is not None:
            yield self._chunk(self._prepared.echoed or "", self._echo, None)

    async def of_handle(self, handle: RequestHandle) -> AsyncGenerator[_Chunk, None]:
        """Yield the chunks of the steps of the answer."""
        async with aclosing(handle.steps_async()) as steps:
            async for step in steps:
                for chunk in self.push(step):
                    yield chunk
        yield self.last(handle.stats)

    def push(self, step: Step) -> Iterator[CreateCompletionStreamResponse]:
        """Yield the chunk of a step, if it has text or log-probabilities."""
        scores: CompletionLogprobs | None = None
        self._text += step.text
        if self._prepared.logprobs and step.logprob is not None:
            scores = self._logprobs.add([step.logprob])
        if self._text or scores:
            yield self._chunk(self._text, scores, None)
            self._text = ""

    def last(self, stats: GenerationStats) -> CreateCompletionStreamResponse:
        """Return the last chunk, with the finish reason."""
        self.stats = stats
        last = self._chunk(self._text + self._prepared.tail, None, finish_reason(stats))
        if self._prepared.includes_stop_reason:
            last["choices"][0]["stop_reason"] = stats.stop or None
        return last

    def _chunk(
        self, text: str, logprobs: CompletionLogprobs | None, reason: FinishReason | None
    ) -> CreateCompletionStreamResponse:
        choice: CompletionChoice = {
            "text": text,
            "index": self._index,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        return {**_base_chunk(self._prepared), "choices": [choice]}


def _base_chunk(prepared: PreparedCompletion) -> CreateCompletionStreamResponse:
    chunk: CreateCompletionStreamResponse = {**_base(prepared)}
    if prepared.includes_usage:
        chunk["usage"] = None
    return chunk


def _base(prepared: PreparedCompletion) -> CreateCompletionResponse:
    return {
        "id": prepared.id,
        "object": "text_completion",
        "created": prepared.created,
        "model": prepared.name,
        "choices": [],
    }


def _mean(scores: Sequence[Logprob]) -> float:
    return sum(s.logprob for s in scores) / max(1, len(scores))


class _Logprobs:
    """Writes the log-probabilities of one answer in OpenAI's format."""

    def __init__(self, prepared: PreparedCompletion) -> None:
        self._vocab, self._start = prepared.model.vocab, prepared.offset
        self._special = bool(prepared.request.options.get("special"))
        self._offsets = CharacterOffsets(self._start)

    def add(self, scores: Sequence[Logprob], n: int | None = None) -> CompletionLogprobs:
        """Return the log-probabilities of tokens that begin in the first *n* characters.

        Later ones belong to a stop string; None: there is none.
        """
        found: CompletionLogprobs = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
        for token, logprob, top in scores:
            offset = self._offsets.push(self._vocab.token_to_piece(token, self._special))
            if n is not None and offset >= self._start + n:
                break
            text = self._text(token)
            best = {self._text(t): value for t, value in top}
            best.setdefault(text, logprob)
            found["text_offset"].append(offset)
            found["token_logprobs"].append(logprob)
            found["tokens"].append(text)
            found["top_logprobs"].append(best)
        return found

    def _text(self, token: int) -> str:
        return self._vocab.token_to_piece(token, True).decode("utf-8", "replace")
