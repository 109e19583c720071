"""llama-server's own routes: POST /completion and /completions, /embedding and /embeddings."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.routing import BaseRoute

from ..api.aio import stream_async, whole_async
from ..api.running import PreparedRequest, run, run_async
from ..binding import Vocab
from ..generation.prompt import tokenize_prompt
from ..generation.sampling_params import SamplingParams
from ..generation.stats import GenerationStats
from ..generation.text import CharacterOffsets
from ..grammars import LlamaGrammar
from ..scheduler import InferenceEngine, RequestHandle
from .body import BOOL, INTEGER, LIST, OBJECT, STRING, Kind, Object, either, list_of, take
from .call import Answer, Call, Endpoint, Json, Stream
from .errors import invalid
from .fields import (
    GENERATION,
    OPENAI,
    check_token,
    generation_options,
    is_id,
    texts_or_ids,
)
from .models import ServedModel
from .paths import bare_post
from .sse import event

if TYPE_CHECKING:
    from ..generation.logprobs import Logprob
    from ..generation.sequence import Step

__all__ = ["routes"]

_Run: TypeAlias = "RequestHandle | Generator[Step, None, GenerationStats]"

_FIELDS: Mapping[str, Kind] = {
    **{name: kind for name, kind in GENERATION.items() if name not in OPENAI},
    "model": STRING,
    "prompt": either(STRING, LIST, OBJECT),
    "stream": BOOL,
    "n": INTEGER,
    "n_cmpl": INTEGER,
    "json_schema": OBJECT,
    "n_probs": INTEGER,
    "logprobs": INTEGER,
    "post_sampling_probs": BOOL,
    "return_tokens": BOOL,
    "response_fields": list_of(STRING),
}
_EMBEDDING: Mapping[str, Kind] = {
    "input": either(STRING, LIST),
    "content": either(STRING, LIST),
    "embd_normalize": INTEGER,
}
_MAX_ITEMS = 2048
_STOP_TYPES = {"eog": "eos", "stop": "eos", "json": "eos", "length": "limit", "context": "limit"}
# llama-server's name of each setting that has another one here.
_RENAMED = {"penalty_last_n": "repeat_last_n", "mirostat_mode": "mirostat"}
_SETTINGS = (
    "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma",
    "xtc_probability", "xtc_threshold", "typical_p", "penalty_last_n", "repeat_penalty",
    "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "mirostat_mode", "mirostat_tau", "mirostat_eta", "adaptive_target",
    "adaptive_decay", "min_keep", "ignore_eos",
)  # fmt: skip


def routes() -> list[BaseRoute]:
    """Return the routes of this module; with /v1 these paths are OpenAI's."""
    complete, embed = Endpoint(_complete), Endpoint(_embed)
    return [
        bare_post("/completion", complete),
        bare_post("/completions", complete),
        bare_post("/embedding", embed),
        bare_post("/embeddings", embed),
    ]


@dataclass(frozen=True)
class _Wanted:
    """A checked request.

    Attributes:
        model: The model.
        n_predict: Most tokens to generate; 0: only evaluate the prompt; -1: to the end.
        sampling: The sampling parameters.
        stop: Stop strings.
        cache_prompt: Reuse what the KV cache holds of the prompt.
        n_probs: Number of alternatives of each token; 0: no probabilities.
        stream: Whether the answer is streamed.
        return_tokens: Whether the whole answer has the token ids.
        response_fields: Paths of the fields that are wanted; empty: all.
        grammar: The grammar as it was given.
        json_schema: The schema as it was given.
    """

    model: ServedModel
    n_predict: int
    sampling: SamplingParams
    stop: Sequence[str]
    cache_prompt: bool
    n_probs: int
    stream: bool
    return_tokens: bool
    response_fields: Sequence[str]
    grammar: str
    json_schema: Object | None

    def request(self, tokens: Sequence[int]) -> PreparedRequest:
        """Return the request of one prompt."""
        # Evaluating alone is generating one token that is not shown.
        most = None if self.n_predict == -1 else max(1, self.n_predict)
        options: Any = {"sampling": self.sampling, "cache_prompt": self.cache_prompt}
        if self.stop:
            options["stop"] = self.stop
        if self.n_probs:
            options["logprobs"] = self.n_probs
        return PreparedRequest(tokens, most, options)


async def _complete(call: Call) -> Answer:
    model = call.model
    given = take(call.body, _FIELDS, "prompt")
    wanted = await asyncio.to_thread(_wanted, model, given)
    prompts = await asyncio.to_thread(_prompts, model.llm.model.vocab, given["prompt"])
    for tokens in prompts:
        model.check_length(len(tokens))
    call.admit(model, len(prompts))
    answers = []
    engine: Any = model.llm.engine
    for i, tokens in enumerate(prompts):
        request = wanted.request(tokens)
        is_shared = isinstance(engine, InferenceEngine)
        (one,) = await run_async(engine, request) if is_shared else run(engine, request)
        answers.append(_Completion(wanted, i, tokens, one))
    if wanted.stream:
        return Stream(_events(answers))
    found = [await answer.whole() for answer in answers]
    return Json(found if len(found) > 1 else found[0])


def _wanted(model: ServedModel, given: Object) -> _Wanted:
    """Check the fields of a request.

    Raises:
        ApiError: A value is out of range, or asks for something that is not there.
        LlamaError: The same.
    """
    llm = model.llm
    n_vocab = len(llm.model.vocab)
    for name in ("n", "n_cmpl"):
        if given.get(name, 1) != 1:
            message = f"{name} must be 1 here, got {given[name]}; repeat the prompt in a list"
            raise invalid(name, message)
    if given.get("post_sampling_probs"):
        message = "post_sampling_probs is not supported; n_probs gives those before sampling"
        raise invalid("post_sampling_probs", message)
    own = {name: given[name] for name in given if name not in GENERATION}
    options = generation_options(
        {name: value for name, value in given.items() if name not in own}, n_vocab
    )
    n_predict, stop = options.pop("max_tokens", -1), options.pop("stop", ())
    cache_prompt = options.pop("cache_prompt", True)
    if n_predict < -1:
        message = f"n_predict must be at least 0, or -1 for no limit, got {n_predict}"
        raise invalid("n_predict", message)
    n_probs = own.get("n_probs", own.get("logprobs", 0))
    if n_probs < 0:
        raise invalid("n_probs", f"n_probs must be at least 0, got {n_probs}")
    grammar, schema = options.get("grammar", ""), own.get("json_schema")
    if schema is not None:
        if grammar:
            raise invalid("json_schema", "give json_schema or grammar, not both")
        options["grammar"] = LlamaGrammar.from_json_schema(schema)
    elif grammar:  # checked here, not by the engine after the headers
        options["grammar"] = LlamaGrammar.from_string(
            grammar, root=options.pop("grammar_root", "root")
        )
    return _Wanted(
        model=model,
        n_predict=n_predict,
        sampling=llm.chat.sampling(options),
        stop=[s for s in ([stop] if isinstance(stop, str) else stop) if s],
        cache_prompt=cache_prompt,
        n_probs=min(n_probs, n_vocab),
        stream=given.get("stream", False),
        return_tokens=own.get("return_tokens", False),
        response_fields=own.get("response_fields", ()),
        grammar=grammar,
        json_schema=schema,
    )


def _prompts(vocab: Vocab, given: str | list[Any] | Object) -> list[list[int]]:
    """Return the tokens of one or several prompts.

    Raises:
        ApiError: A prompt is something else than text, ids, a list of both, or an object with a
            `prompt_string`; or it is empty.
    """
    if not isinstance(given, list) or any(is_id(item) for item in given):
        return [_tokens(vocab, "prompt", given)]
    if not given:
        raise invalid("prompt", "prompt must not be empty")
    if len(given) > _MAX_ITEMS:
        raise invalid("prompt", f"prompt has {len(given)} items; at most {_MAX_ITEMS} are allowed")
    return [_tokens(vocab, f"prompt[{i}]", item) for i, item in enumerate(given)]


def _tokens(vocab: Vocab, where: str, item: Any) -> list[int]:
    if isinstance(item, dict):
        if item.get("multimodal_data"):
            message = f"{where} has multimodal_data; this server takes no pictures and audio yet"
            raise invalid("prompt", message)
        item = item.get("prompt_string")
        where = f"{where}.prompt_string"
        if not isinstance(item, str):
            raise invalid("prompt", f"{where} must be a string")
    parts = [item] if isinstance(item, str) else item
    if not isinstance(parts, list):
        raise invalid("prompt", f"{where} must be text, token ids, a list of both, or an object")
    tokens: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            tokens += vocab.tokenize(part, False, True) if i else tokenize_prompt(vocab, part)
        elif not is_id(part):
            raise invalid("prompt", f"{where}[{i}] must be text or a token id")
        else:
            check_token("prompt", where, part, len(vocab))
            tokens.append(part)
    if not tokens:
        raise invalid("prompt", f"{where} is empty: there is nothing to continue")
    return tokens


class _Completion:
    """One answer, while it is generated.

    Args:
        wanted: The request.
        index: The number of the prompt.
        prompt: Its tokens.
        run: The answer on either engine.
    """

    def __init__(self, wanted: _Wanted, index: int, prompt: Sequence[int], run: _Run) -> None:
        self._wanted, self._index, self._prompt, self._run = wanted, index, prompt, run
        self._vocab = wanted.model.llm.model.vocab
        self._text, self._tokens = "", list[int]()
        self._stats = GenerationStats()
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
        """Yield the events of a stream; the last one has all fields but the text."""
        async with aclosing(self._parts()) as parts:
            async for text, tokens, scores in parts:
                part = {
                    "index": self._index,
                    "content": text,
                    "tokens": tokens,
                    "stop": False,
                    "tokens_predicted": len(self._tokens),
                    "tokens_evaluated": len(self._prompt),
                }
                yield event({**part, **({"completion_probabilities": scores} if scores else {})})
        yield event(self._final("", [], []))

    async def _parts(self) -> AsyncGenerator[tuple[str, list[int], list[object]], None]:
        """Yield new text, with its tokens and probabilities."""
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                if self._wanted.n_predict == 0:
                    continue
                tokens = [] if step.token is None else [step.token]
                self._tokens += tokens
                self._text += step.text
                if step.logprob is not None:
                    piece = self._vocab.token_to_piece(step.logprob.token)
                    self._held.append((self._offsets.push(piece), self._scores(step.logprob)))
                yield step.text, tokens, self._released(len(self._text))
        if self._held and not self._stats.stop:
            yield "", [], self._released(None)

    async def _steps(self) -> AsyncGenerator[Step, None]:
        if isinstance(self._run, RequestHandle):
            async with aclosing(self._run.steps_async()) as steps:
                async for step in steps:
                    yield step
            self._stats = self._run.stats
        else:
            generated = self._run
            async with aclosing(stream_async(lambda: self._recorded(generated))) as steps:
                async for step in steps:
                    yield step

    def _recorded(self, run: Generator[Step, None, GenerationStats]) -> Generator[Step, None, None]:
        self._stats = yield from run

    def _released(self, n: int | None) -> list[object]:
        """Take the probabilities of tokens that begin in the first *n* characters; None: all."""
        found: list[object] = []
        while self._held and (n is None or self._held[0][0] < n):
            found.append(self._held.pop(0)[1])
        return found

    def _scores(self, scores: Logprob) -> dict[str, object]:
        top = [self._score(token, value) for token, value in scores.top]
        return {**self._score(scores.token, scores.logprob), "top_logprobs": top}

    def _score(self, token: int, value: float) -> dict[str, object]:
        piece = self._vocab.token_to_piece(token, True)
        text = piece.decode("utf-8", "replace")
        return {"id": token, "token": text, "bytes": [*piece], "logprob": value}

    def _final(self, text: str, tokens: list[int], scores: list[object]) -> dict[str, object]:
        stats, n = self._stats, len(self._tokens)
        stopped = bool(stats.stop)
        found: dict[str, object] = {
            "index": self._index,
            "content": text,
            "tokens": tokens,
            "stop": True,
            "model": self._wanted.model.name,
            "tokens_predicted": n,
            "tokens_evaluated": stats.n_prompt,
            "tokens_cached": self._n_cached(),
            "generation_settings": self._settings(),
            "prompt": self._vocab.detokenize(self._prompt, True),
            "has_new_line": "\n" in self._text,
            "truncated": bool(stats.n_truncated or stats.n_shifted)
            or stats.finish_reason == "context",
            "stop_type": self._stop_type(),
            "stopping_word": stats.stop if stopped and n else "",
            "timings": _timings(stats, n),
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

    def _n_cached(self) -> int:
        """Return the number of tokens of prompt and answer that are in the KV cache."""
        if isinstance(self._run, RequestHandle):
            return self._run.request.num_computed_tokens
        # The last token is not decoded, unless another one was to follow.
        stats = self._stats
        n_undecoded = int(bool(stats.n_generated) and stats.finish_reason != "eog")
        return stats.n_prompt + stats.n_generated - stats.n_shifted - n_undecoded

    def _settings(self) -> dict[str, object]:
        """Return what was used, under llama-server's names."""
        wanted, stats = self._wanted, self._stats
        params = wanted.sampling
        bias = dict(params.logit_bias)
        samplers = params.samplers
        return {
            "seed": params.seed if stats.seed is None else stats.seed,
            **{_RENAMED.get(name, name): getattr(params, name) for name in _SETTINGS},
            "dry_sequence_breakers": [*params.dry_sequence_breakers],
            "logit_bias": [
                {"token": token, "bias": None if value == -math.inf else value}
                for token, value in bias.items()
            ],
            "samplers": samplers.split(";") if isinstance(samplers, str) else [*samplers],
            "stop": [*wanted.stop],
            "n_predict": wanted.n_predict,
            "max_tokens": wanted.n_predict,
            "n_probs": wanted.n_probs,
            "stream": wanted.stream,
            "grammar": wanted.grammar,
            **({} if wanted.json_schema is None else {"json_schema": wanted.json_schema}),
        }


async def _events(answers: Sequence[_Completion]) -> AsyncGenerator[bytes, None]:
    """Yield the events of all prompts, one after the other; there is no `[DONE]`."""
    for answer in answers:
        async with aclosing(answer.events()) as events:
            async for data in events:
                yield data


def _timings(stats: GenerationStats, n: int) -> dict[str, int | float]:
    """Return llama-server's timings of an answer with *n* tokens.

    The first token comes with the prompt, so the times per token are those of the others.
    """
    prompt_ms, n_prompt = stats.prefill_s * 1e3, stats.n_prefilled
    predicted_ms, n_steps = stats.decode_s * 1e3 if n else 0.0, max(0, n - 1)
    found: dict[str, int | float] = {
        "cache_n": stats.n_reused,
        "prompt_n": n_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / n_prompt if n_prompt else 0.0,
        "prompt_per_second": stats.prefill_tokens_per_s,
        "predicted_n": n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / n_steps if n_steps else 0.0,
        "predicted_per_second": n_steps / predicted_ms * 1e3 if predicted_ms else 0.0,
    }
    if stats.n_drafted:
        found |= {"draft_n": stats.n_drafted, "draft_n_accepted": stats.n_accepted}
    return found


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


async def _embed(call: Call) -> Answer:
    model = call.model
    given = take(call.body, _EMBEDDING)
    name = "input" if "input" in given else "content"
    if name not in given:
        raise invalid("input", "input is missing; it must be a string or a list")
    norm = given.get("embd_normalize")
    if norm not in (None, -1, 2):
        raise invalid("embd_normalize", f"embd_normalize must be 2 or -1 for none, got {norm}")
    inputs = texts_or_ids(name, given[name], len(model.llm.model.vocab))
    call.admit(model)

    def embed() -> list[list[float] | list[list[float]]]:
        embedder = model.llm.embedder
        # As in llama-server, the vectors of tokens keep their length unless asked otherwise.
        scaled = embedder.pooling != "none" if norm is None else norm == 2
        return [row.tolist() for row in embedder.embed(inputs, normalize=scaled)]

    rows = await whole_async(embed)
    return Json(
        [
            {"index": i, "embedding": row if row and isinstance(row[0], list) else [row]}
            for i, row in enumerate(rows)
        ]
    )
