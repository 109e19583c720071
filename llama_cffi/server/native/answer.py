"""One answer of llama-server's completions, whole or as events."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ...api.aio import stream_async
from ...api.timings import prompt_progress, timings
from ...generation.prompt import prompt_text
from ...generation.sampling_params import SamplingParams
from ...generation.stats import GenerationStats
from ...generation.text import CharacterOffsets
from ...scheduler import RequestHandle
from ..body import Object
from ..models import ServedModel
from ..sse import event
from .generation_settings import generation_settings

if TYPE_CHECKING:
    from ...generation.logprobs import Logprob
    from ...generation.prompt_progress import PromptProgress
    from ...generation.sequence import Step

__all__ = ["CompletionAnswer", "Run", "Wanted", "progress_event"]

Run: TypeAlias = "RequestHandle | Generator[Step, None, GenerationStats]"

_STOP_TYPES = {"eog": "eos", "stop": "eos", "json": "eos", "length": "limit", "context": "limit"}


@dataclass(frozen=True)
class Wanted:
    """A checked request.

    Attributes:
        model: The model.
        n: Number of answers to each prompt.
        n_predict: Most tokens to generate; 0: only evaluate the prompt; -1: to the end.
        t_max_predict_s: Seconds after the first token at which the answer ends, once it has a
            line; 0: no limit.
        sampling: The sampling parameters.
        stop: Stop strings.
        n_probs: Number of alternatives of each token; 0: no probabilities.
        post_sampling_probs: Tell the probabilities after all samplers.
        options: The options of the engine.
        stream: Whether the answer is streamed.
        return_tokens: Whether the whole answer has the token ids.
        return_progress: Whether the stream tells how far the prompt is.
        timings_per_token: Whether each event has timings.
        response_fields: Paths of the fields that are wanted; empty: all.
        grammar: The grammar as it was given.
        json_schema: The schema as it was given.
        n_dropped: Tokens of the prompt's further context that did not fit.
    """

    model: ServedModel
    n: int
    n_predict: int
    t_max_predict_s: float
    sampling: SamplingParams
    stop: Sequence[str]
    n_probs: int
    post_sampling_probs: bool
    options: Any
    stream: bool
    return_tokens: bool
    return_progress: bool
    timings_per_token: bool
    response_fields: Sequence[str]
    grammar: str
    json_schema: Object | None
    n_dropped: int = 0


class CompletionAnswer:
    """One answer, while it is generated.

    Args:
        wanted: The request.
        index: The number of the answer.
        prompt: The tokens of its prompt.
        run: The answer on either engine.
    """

    def __init__(self, wanted: Wanted, index: int, prompt: Sequence[int], run: Run) -> None:
        self._wanted, self._index, self._prompt, self._run = wanted, index, prompt, run
        self._vocab = wanted.model.llm.model.vocab
        self._text, self._tokens = "", list[int]()
        self._stats = GenerationStats()
        self._first_s = 0.0  # when the first token came
        # The probabilities of tokens whose text is held back: it may become a stop string.
        self._held: list[tuple[int, dict[str, object]]] = []
        self._offsets = CharacterOffsets()

    async def whole(self) -> dict[str, object]:
        """Return the response."""
        probabilities: list[object] = []
        async with aclosing(self._parts()) as parts:
            async for _, _, scores in parts:
                probabilities += scores
        tokens = self._tokens if self._wanted.return_tokens else []
        return self._final(self._text, tokens, probabilities)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream, without `[DONE]`; the last has all fields but the text."""
        async with aclosing(self._parts()) as parts:
            async for text, tokens, scores in parts:
                part: dict[str, object] = {
                    "index": self._index,
                    "content": text,
                    "tokens": tokens,
                    "stop": False,
                    "id_slot": self._slot(),
                    "tokens_predicted": len(self._tokens),
                    "tokens_evaluated": len(self._prompt),
                }
                if scores:
                    part["completion_probabilities"] = scores
                if self._wanted.timings_per_token:
                    part["timings"] = timings(self._current(), len(self._tokens))
                yield event(part)
        yield event(self._final("", [], []))

    async def _parts(self) -> AsyncGenerator[tuple[str, list[int], list[object]], None]:
        """Yield new text, with its tokens and probabilities."""
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                self._first_s = self._first_s or time.monotonic()
                if self._wanted.n_predict == 0:
                    continue
                tokens = [] if step.token is None else [step.token]
                self._tokens += tokens
                self._text += step.text
                if step.logprob is not None:
                    piece = self._vocab.token_to_piece(step.logprob.token)
                    self._held.append((self._offsets.push(piece), self._scores(step.logprob)))
                yield step.text, tokens, self._released(len(self._text))
                if self._is_late():
                    self._stats = replace(self._current(), finish_reason="length")
                    break
        if self._held and not self._stats.stop:
            yield "", [], self._released(None)

    async def _steps(self) -> AsyncGenerator[Step, None]:
        if isinstance(self._run, RequestHandle):
            self._stats = self._run.stats
            async with aclosing(self._run.steps_async()) as steps:
                async for step in steps:
                    yield step
        else:
            generated = self._run
            async with aclosing(stream_async(lambda: self._recorded(generated))) as steps:
                async for step in steps:
                    yield step

    def _recorded(self, run: Generator[Step, None, GenerationStats]) -> Generator[Step, None, None]:
        engine: Any = self._wanted.model.llm.engine
        with closing(run):
            while True:
                try:
                    step = next(run)
                except StopIteration as end:
                    self._stats = end.value
                    return
                self._stats = engine.stats  # those of this call, while it runs
                yield step

    def _is_late(self) -> bool:
        limit = self._wanted.t_max_predict_s
        return bool(limit) and "\n" in self._text and time.monotonic() - self._first_s > limit

    def _current(self) -> GenerationStats:
        """Return the statistics so far; the engines know the times only at the end."""
        stats = self._stats
        prefill_s = stats.prefill_s or stats.time_to_first_token_s - stats.queue_s
        return replace(stats, prefill_s=prefill_s, decode_s=time.monotonic() - self._first_s)

    def _released(self, n: int | None) -> list[object]:
        """Take the probabilities of tokens that begin in the first *n* characters; None: all."""
        found: list[object] = []
        while self._held and (n is None or self._held[0][0] < n):
            found.append(self._held.pop(0)[1])
        return found

    def _scores(self, scores: Logprob) -> dict[str, object]:
        top = [self._score(token, value) for token, value in scores.top]
        name = "top_probs" if self._wanted.post_sampling_probs else "top_logprobs"
        return {**self._score(scores.token, scores.logprob), name: top}

    def _score(self, token: int, value: float) -> dict[str, object]:
        piece = self._vocab.token_to_piece(token, True)
        text = piece.decode("utf-8", "replace")
        found = {"id": token, "token": text, "bytes": [*piece]}
        if self._wanted.post_sampling_probs:
            return {**found, "prob": math.exp(value)}
        return {**found, "logprob": value}

    def _final(self, text: str, tokens: list[int], scores: list[object]) -> dict[str, object]:
        stats, n = self._stats, len(self._tokens)
        stopped = bool(stats.stop)
        is_cut = stats.n_truncated or stats.n_shifted or self._wanted.n_dropped
        found: dict[str, object] = {
            "index": self._index,
            "content": text,
            "tokens": tokens,
            "id_slot": self._slot(),
            "stop": True,
            "model": self._wanted.model.name,
            "tokens_predicted": n,
            "tokens_evaluated": stats.n_prompt,
            "tokens_cached": self._n_cached(),
            "generation_settings": self._settings(),
            "prompt": prompt_text(self._vocab, self._prompt),
            "has_new_line": "\n" in self._text,
            "truncated": bool(is_cut) or stats.finish_reason == "context",
            "stop_type": self._stop_type(),
            "stopping_word": stats.stop if stopped and n else "",
            "timings": timings(stats, n),
        }
        if scores:
            found["completion_probabilities"] = scores
        return _picked(found, self._wanted.response_fields)

    def _stop_type(self) -> str:
        if self._wanted.n_predict == 0:
            return "limit"
        if self._stats.stop:
            return "word"
        return _STOP_TYPES.get(self._stats.finish_reason, "none")

    def _slot(self) -> int:
        """Return the sequence of the KV cache."""
        slot = self._run.request.last_seq_id if isinstance(self._run, RequestHandle) else 0
        return -1 if slot is None else slot

    def _n_cached(self) -> int:
        """Return the number of tokens of prompt and answer that are in the KV cache."""
        if isinstance(self._run, RequestHandle):
            return self._run.request.num_computed_tokens
        # The last token is not decoded, unless another one was to follow.
        stats = self._stats
        n_undecoded = int(bool(stats.n_generated) and stats.finish_reason != "eog")
        return stats.n_prompt + stats.n_generated - stats.n_shifted - n_undecoded

    def _settings(self) -> Mapping[str, object]:
        """Return what was used, under llama-server's names."""
        wanted, seed = self._wanted, self._stats.seed
        schema = {} if wanted.json_schema is None else {"json_schema": wanted.json_schema}
        return generation_settings(
            wanted.sampling,
            wanted.sampling.seed if seed is None else seed,
            self._vocab.eog_tokens,
            stop=[*wanted.stop],
            n_predict=wanted.n_predict,
            max_tokens=wanted.n_predict,
            n_probs=wanted.n_probs,
            post_sampling_probs=wanted.post_sampling_probs,
            timings_per_token=wanted.timings_per_token,
            stream=wanted.stream,
            grammar=wanted.grammar,
            **schema,
        )


def progress_event(index: int, progress: PromptProgress) -> bytes:
    """Return the event of a prompt's progress.

    Args:
        index: The number of the answer.
        progress: How far its prompt is.
    """
    told = prompt_progress(progress)
    return event(
        {"index": index, "content": "", "tokens": [], "stop": False, "prompt_progress": told}
    )


def _picked(found: dict[str, object], paths: Sequence[str]) -> dict[str, object]:
    """Return the values at *paths*, such as `timings/cache_n`; without paths, all.

    Those that do not exist are left out.
    """
    if not paths:
        return found
    picked = {}
    for path in paths:
        value: Any = found
        for key in path.split("/"):
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            picked[path] = value
    return picked
