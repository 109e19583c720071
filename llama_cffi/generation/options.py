"""What callers say about a generation, checked and completed from the environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import ValidationError
from ..validation import as_callables, check_float, check_int
from . import environment
from .context_policy import POLICIES, SAFETY
from .sampling_params import BasicOptions, MoreOptions, SamplingParams
from .sequence import AnswerParams, StoppingCriterion, ThoughtLimit
from .text import Flusher, several

__all__ = ["Call", "GenerationOptions", "StreamOptions", "make_call", "sampling_params"]

_JSON_KEYS = ("done", "next_step")
# The sampling defaults of Polaris Core, where llama-cli's are others.
_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "repeat_penalty": None}
_REPEAT_PENALTY = 1.1


class GenerationOptions(MoreOptions, total=False):
    """What every generation takes besides the prompt and the usual sampling arguments.

    `sampling` is a whole `SamplingParams` in place of single ones. `stop` are texts that end the
    answer. `json_stop` are keys: an answer that is a JSON object ends with it when one of them is
    in it (default: `done`, `next_step`; `()` = off). `timeout_s` counts from the call.
    `context_policy` overrides the engine's. `reset_kv=False` does not evaluate again what the
    cache holds of the prompt. `special` writes control tokens out; `suppress_think` leaves
    <think>...</think> out. `skip_forced=False` gives each token its logits, also those of
    structured output that nobody has to choose. `thought_limit` makes what ends a thought.
    `logprobs` gives the log-probability of each token and of so many in its place, the model's own,
    before penalties and temperature. `stopping_criteria` are functions of the tokens so far and the
    logits of the next; the answer ends where one returns True.
    """

    sampling: SamplingParams
    stop: str | Sequence[str]
    json_stop: Sequence[str]
    timeout_s: float | None
    context_policy: str
    reset_kv: bool | None
    special: bool | None
    suppress_think: bool | None
    skip_forced: bool
    thought_limit: Callable[[], ThoughtLimit] | None
    logprobs: int | None
    stopping_criteria: Sequence[StoppingCriterion] | StoppingCriterion | None


class StreamOptions(BasicOptions, GenerationOptions, total=False):
    """`GenerationOptions` and the usual sampling arguments."""


@dataclass(frozen=True)
class Call:
    """One call of the engine: the request, and what belongs to this caller only."""

    request: AnswerParams
    timeout_s: float | None
    flusher: Flusher | None


def make_call(
    n_predict: int,
    options: Mapping[str, Any],
    callback: Callable[[bytes], object] | None,
    flush: tuple[int | None, int | None, int | None],
) -> Call:
    """Check the options of one call.

    Args:
        n_predict: Most tokens to generate.
        options: `StreamOptions`, and the engine's `safety`.
        callback: Receives the bytes of the answer.
        flush: Bytes, tokens and milliseconds of the flush rules; None = environment, default.

    Raises:
        ValidationError: An option is unknown or out of range.
    """
    rest = dict(options)
    timeout_s = rest.pop("timeout_s", None)
    if timeout_s is not None:
        timeout_s = check_float("timeout_s", timeout_s, 0, 1e9)
    stop = rest.pop("stop", ())
    given = {name: rest.pop(name, None) for name in ("reset_kv", "special", "suppress_think")}
    policy, safety = rest.pop("context_policy"), rest.pop("safety")
    if policy not in POLICIES:
        raise ValidationError(f"context_policy={policy!r} is none of {', '.join(POLICIES)}")
    json_stop = rest.pop("json_stop", _JSON_KEYS)
    skip_forced, limit = rest.pop("skip_forced", True), rest.pop("thought_limit", None)
    logprobs = rest.pop("logprobs", None)
    if logprobs is not None:
        logprobs = check_int("logprobs", logprobs, 0)
    criteria = as_callables("stopping_criteria", rest.pop("stopping_criteria", None))
    request = AnswerParams(
        n_predict=check_int("n_predict", n_predict, 1),
        params=sampling_params(rest),
        policy=policy,
        safety=check_int("safety", environment.number("SAFETY", safety, SAFETY), 0),
        reset_kv=environment.flag("RESET_KV", given["reset_kv"], True),
        stop=(stop,) if isinstance(stop, (str, bytes)) else tuple(several("stop strings", stop)),
        json_stop=tuple(several("JSON keys", json_stop)),
        special=environment.flag("SPECIAL", given["special"], False),
        suppress_think=environment.flag("SUPPRESS_THINK", given["suppress_think"], False),
        skip_forced=skip_forced,
        thought_limit=limit,
        logprobs=logprobs,
        criteria=criteria,
    )
    return Call(request, timeout_s, None if callback is None else _flusher(callback, flush))


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """Make `SamplingParams` from the sampling arguments of an engine, with its defaults.

    Raises:
        ValidationError: One is unknown or out of range.
    """
    options = dict(options)
    whole = options.pop("sampling", None)
    unknown = options.keys() - SamplingParams.__dataclass_fields__.keys()
    if unknown:
        raise ValidationError(f"unknown arguments: {', '.join(sorted(unknown))}")
    if whole is not None:
        if not isinstance(whole, SamplingParams):
            raise ValidationError(f"sampling={whole!r} is no SamplingParams")
        return whole
    options = {**_SAMPLING, **options}
    if options["repeat_penalty"] is None:
        options["repeat_penalty"] = 1.0 if options["temperature"] == 0 else _REPEAT_PENALTY
    plain = _PLAIN.issuperset(map(type, options.values()))
    return _made(**options) if plain else SamplingParams(**options)


# The same options come again and again, and checking all of them takes 20 us.
_PLAIN = frozenset((int, float, bool, str))
_made = lru_cache(64, typed=True)(SamplingParams)


def _flusher(
    callback: Callable[[bytes], object], flush: tuple[int | None, int | None, int | None]
) -> Flusher:
    if not callable(callback):
        raise ValidationError(f"callback={callback!r} cannot be called")
    rules = (
        ("flush_bytes", "FLUSH", 64),
        ("flush_tokens", "TOKFLUSH", 1),
        ("flush_ms", "MS_FLUSH", 100),
    )
    max_bytes, max_tokens, max_ms = (
        check_int(name, environment.number(variable, value, default), 0)
        for (name, variable, default), value in zip(rules, flush, strict=True)
    )
    return Flusher(callback, max_bytes=max_bytes, max_tokens=max_tokens, max_ms=max_ms)
