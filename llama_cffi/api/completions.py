"""Text completions in OpenAI's shapes, over one engine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ValidationError
from ..generation.sampling_params import SamplingParams
from ..grammars import LlamaGrammar
from ..validation import INT32_MAX, as_callables, as_list, check_int

if TYPE_CHECKING:
    from ..generation.logprobs import Logprob
    from ..generation.sequence import Step, StoppingCriterion
    from ..generation.stats import GenerationStats
    from .session import AnyEngine
    from .types import CompletionLogprobs, CompletionUsage, CreateCompletionResponse, FinishReason

__all__ = ["complete", "events", "finish_reason", "sampling", "usage"]


def sampling(
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    min_p: float = 0.05,
    typical_p: float = 1.0,
    top_k: int = 40,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    repeat_penalty: float = 1.0,
    penalty_last_n: int = 64,
    mirostat_mode: int = 0,
    mirostat_tau: float = 5.0,
    mirostat_eta: float = 0.1,
    seed: int | None = None,
    logit_bias: Mapping[Any, float] | None = None,
    logits_processor: Sequence[Any] | Callable[..., Any] | None = None,
    grammar: LlamaGrammar | str | None = None,
    structured_after: str = "",
) -> SamplingParams:
    """Make `SamplingParams` from the arguments that llama-cpp-python has.

    Raises:
        ValidationError: A value is out of range.
        GrammarError: The grammar, GBNF where it is a text, is not valid.
    """
    if isinstance(grammar, str):
        grammar = LlamaGrammar.from_string(grammar)
    if grammar is not None and not isinstance(grammar, LlamaGrammar):
        raise ValidationError(f"grammar={grammar!r} is no LlamaGrammar and no text")
    try:
        bias = {int(token): value for token, value in dict(logit_bias or {}).items()}
    except (TypeError, ValueError):
        raise ValidationError(f"logit_bias={logit_bias!r} has keys that are no token ids") from None
    return SamplingParams(
        temperature=temperature,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        top_k=max(0, check_int("top_k", top_k, -INT32_MAX)),
        penalty_freq=frequency_penalty,
        penalty_present=presence_penalty,
        repeat_penalty=repeat_penalty,
        penalty_last_n=penalty_last_n,
        mirostat=mirostat_mode,
        mirostat_tau=mirostat_tau,
        mirostat_eta=mirostat_eta,
        seed=-1 if seed is None else seed,
        logit_bias=bias,
        logits_processors=as_callables("logits_processor", logits_processor),
        structured=grammar,
        structured_after=structured_after if grammar is not None else "",
    )


def events(
    engine: AnyEngine,
    tokens: Sequence[int],
    max_tokens: int | None,
    params: SamplingParams,
    *,
    stop: str | Sequence[str] | None = None,
    top: int | None = None,
    stopping_criteria: Sequence[StoppingCriterion] | StoppingCriterion | None = None,
    **options: Any,
) -> Generator[Step, None, GenerationStats]:
    """Continue *tokens*, with log-probabilities where *top* is a number; return the statistics."""
    n_predict = engine.n_ctx
    if max_tokens is not None and max_tokens != -1:
        n_predict = check_int("max_tokens", max_tokens, 1)
    given = {"sampling": params, "stop": stop or (), "json_stop": (), "reset_kv": False}
    return engine.steps(
        tokens,
        n_predict,
        **{**given, "logprobs": top, "stopping_criteria": stopping_criteria, **options},
    )


def finish_reason(stats: GenerationStats) -> FinishReason:
    """Return OpenAI's word for why an answer ended."""
    return "length" if stats.finish_reason in ("length", "context") else "stop"


def usage(every: Sequence[GenerationStats]) -> CompletionUsage:
    """Return the tokens of answers to one prompt."""
    prompt, generated = every[0].n_prompt, sum(stats.n_generated for stats in every)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": every[0].n_reused},
    }


def prompt_tokens(
    engine: AnyEngine, prompt: str | Sequence[int], suffix: str | None, *, spm: bool = False
) -> list[int]:
    """Return the tokens of a prompt, and of what follows the gap that is to be filled.

    With *spm* the suffix stands first, as some models were trained.

    Raises:
        ValidationError: There is a suffix, and the model was not trained to fill gaps.
    """
    vocab = engine.model.vocab
    if suffix is None:
        if isinstance(prompt, str):
            tokens = engine.tokenize(prompt, parse_special=True)
            # A prompt that a template made begins with BOS already; models suffer from two.
            return tokens[1:] if tokens[:2] == [vocab.bos] * 2 else tokens
        return as_list("prompt", prompt)
    before, after, middle = vocab.fim_pre, vocab.fim_suf, vocab.fim_mid
    if before is None or after is None or middle is None:
        raise ValidationError(
            f"{engine.model.path.name} has no fill-in-the-middle tokens, so it takes no suffix"
        )
    first = engine.tokenize(prompt, False) if isinstance(prompt, str) else as_list("prompt", prompt)
    bos = [vocab.bos] if vocab.add_bos and vocab.bos is not None else []
    head, tail = [before, *first], [after, *engine.tokenize(suffix, False)]
    return [*bos, *(tail + head if spm else head + tail), middle]


def complete(
    engine: AnyEngine,
    name: str,
    prompt: str | Sequence[int],
    suffix: str | None,
    *,
    max_tokens: int | None,
    params: SamplingParams,
    stream: bool,
    logprobs: int | None,
    echo: bool,
    n: int,
    best_of: int | None,
    **options: Any,
) -> CreateCompletionResponse | Iterator[CreateCompletionResponse]:
    """Do `Llama.create_completion`; *name* is the model's in the response."""
    n = check_int("n", n, 1)
    best_of = n if best_of is None else check_int("best_of", best_of, n)
    if stream and best_of > n:
        raise ValidationError("best_of answers cannot be streamed: they are compared at the end")
    if logprobs is not None:
        logprobs = check_int("logprobs", logprobs, 0)
    if echo and logprobs is not None:
        raise ValidationError("logprobs of an echoed prompt: use Scorer, which gives them")
    tokens = prompt_tokens(engine, prompt, suffix)
    head = ""
    if echo:
        head = prompt if isinstance(prompt, str) else engine.detokenize(tokens)
    base: dict[str, Any] = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
    }
    ranks = best_of > n
    top = 0 if ranks and logprobs is None else logprobs

    def start(i: int) -> Generator[Step, None, GenerationStats]:
        return events(engine, tokens, max_tokens, seeded(params, i), top=top, **options)

    runs = [start(i) for i in range(best_of)]  # what is wrong is said now
    if stream:
        return _stream(engine, base, head, runs, logprobs)
    found = [_whole(run) for run in runs]
    order = found
    if ranks:
        order = sorted(found, key=lambda answer: -_mean(answer[1]))[:n]
    choices = [
        {
            "text": head + text + (suffix or "" if echo else ""),
            "index": i,
            "logprobs": None if logprobs is None else _logprobs(engine, scores, 0, len(text)),
            "finish_reason": finish_reason(stats),
        }
        for i, (text, scores, stats) in enumerate(order)
    ]
    return {**base, "choices": choices, "usage": usage([f[2] for f in found])}  # type: ignore


def seeded(params: SamplingParams, i: int) -> SamplingParams:
    """Return *params* for the answer number *i*: another seed for each."""
    if i == 0 or params.seed == -1:
        return params
    from dataclasses import replace

    return replace(params, seed=(params.seed + i) % (2**32 - 1))  # 0 to the largest seed


def _whole(run: Generator[Step, None, GenerationStats]) -> Any:
    text: list[str] = []
    scores: list[Logprob] = []
    while True:
        try:
            event = next(run)
        except StopIteration as e:
            return "".join(text), scores, e.value
        text.append(event.text)
        if event.logprob is not None:
            scores.append(event.logprob)


def _stream(
    engine: AnyEngine, base: dict[str, Any], head: str, runs: Any, logprobs: int | None
) -> Iterator[CreateCompletionResponse]:
    for index, run in enumerate(runs):
        offset, text = 0, head
        while True:
            scores: CompletionLogprobs | None = None
            try:
                event = next(run)
            except StopIteration as e:
                yield _chunk(base, index, text, None, finish_reason(e.value))
                break
            text += event.text
            if logprobs is not None and event.logprob is not None:
                scores = _logprobs(engine, [event.logprob], offset)
                offset += len(scores["tokens"][0])
            if text or scores:
                yield _chunk(base, index, text, scores, None)
                text = ""


def _chunk(base: Any, index: int, text: str, logprobs: Any, reason: Any) -> Any:
    choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
    return {**base, "choices": [choice]}


def _mean(scores: Sequence[Logprob]) -> float:
    return sum(s.logprob for s in scores) / max(1, len(scores))


def _logprobs(
    engine: AnyEngine, scores: Sequence[Logprob], offset: int, end: int | None = None
) -> CompletionLogprobs:
    """Return OpenAI's shape; tokens from *end* on belong to a stop text and are left out."""
    found: CompletionLogprobs = {
        "text_offset": [],
        "token_logprobs": [],
        "tokens": [],
        "top_logprobs": [],
    }
    vocab = engine.model.vocab
    for token, logprob, top in scores:
        if end is not None and offset >= end:
            break
        text = vocab.detokenize([token], True)
        best = {vocab.detokenize([t], True): value for t, value in top}
        best.setdefault(text, logprob)
        found["text_offset"].append(offset)
        found["token_logprobs"].append(logprob)
        found["tokens"].append(text)
        found["top_logprobs"].append(best)
        offset += len(text)
    return found
