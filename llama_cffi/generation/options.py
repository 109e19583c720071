"""The options of a generation: declared, renamed, checked and completed in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypedDict

from ..errors import ValidationError
from ..validation import as_callables, check_float, check_int, reject_unknown
from .aliases import canonical
from .context_policy import POLICIES, SAFETY
from .sampling_params import SamplingOptions, SamplingParams
from .sequence import GenerationParams, ReasoningLimit, StoppingCriterion
from .text import several

__all__ = [
    "CallOptions",
    "GenerationCall",
    "GenerationOptions",
    "MainOptions",
    "MoreGenerationOptions",
    "parse_options",
    "resolve_sampling",
]


class CallOptions(TypedDict, total=False):
    """The options of a generation that are not about choosing tokens; None is the default of each.

    `timeout_s` counts from the call. `context_policy` overrides the engine's.
    `cache_prompt=False` evaluates the whole prompt, also what the cache holds of it. `special`
    writes control tokens out; `suppress_think` leaves <think>...</think> out. `json_stop` are
    keys: an answer that is a JSON object ends with the object when it has one of them.
    `skip_forced=False` gives each token its logits, also where a grammar leaves only one.
    `stopping_criteria` are functions of the tokens so far and the logits of the next; the answer
    ends where one returns True.
    """

    timeout_s: float | None
    context_policy: str | None
    cache_prompt: bool | None
    special: bool | None
    suppress_think: bool | None
    json_stop: Sequence[str] | None
    skip_forced: bool | None
    stopping_criteria: Sequence[StoppingCriterion] | StoppingCriterion | None


class MainOptions(TypedDict, total=False):
    """The options that most calls set; None is the default of each.

    `sampling` is a whole `SamplingParams`, or `"model"` for what the model's makers recommend;
    single sampling options win over it. `stop` are strings that end the answer. `logprobs` returns
    the log-probability of each token and of this many alternatives, the model's own, before
    penalties and temperature.
    """

    sampling: SamplingParams | Literal["model"] | None
    stop: str | bytes | Sequence[str | bytes] | None
    logprobs: int | None


class MoreGenerationOptions(SamplingOptions, CallOptions, total=False):
    """`GenerationOptions` without `MainOptions`."""


class GenerationOptions(MoreGenerationOptions, MainOptions, total=False):
    """The options of every generation: `MainOptions`, `SamplingOptions` and `CallOptions`."""


@dataclasses.dataclass(frozen=True)
class GenerationCall:
    """One call: the parameters of its generation, and its deadline.

    Attributes:
        params: The parameters.
        timeout_s: Seconds from the call to its deadline; None: no deadline.
    """

    params: GenerationParams
    timeout_s: float | None


def parse_options(
    max_tokens: int | None,
    options: Mapping[str, Any],
    n_ctx: int,
    *,
    defaults: Mapping[str, Any] | None = None,
    recommended: Callable[[], Mapping[str, float]] | None = None,
    reasoning_limit: Callable[[], ReasoningLimit] | None = None,
) -> GenerationCall:
    """Check the options of one call.

    Args:
        max_tokens: Most tokens to generate; None or -1: until the model ends or the context is
            full.
        options: `GenerationOptions`, under any of their names.
        n_ctx: Tokens that the context holds.
        defaults: Values for options that are not given.
        recommended: Returns the sampling that the model's makers recommend.
        reasoning_limit: Makes the limit of the reasoning of one answer.

    Raises:
        UnknownOptionError: There is no such option.
        ValidationError: An option is out of range, or given under two names.
    """
    rest = canonical(options)
    if "max_tokens" in rest:
        max_tokens = rest.pop("max_tokens")
    if max_tokens is None or max_tokens == -1:
        max_tokens = n_ctx
    reject_unknown(rest, _NAMES, "a generation")
    rest = {**(defaults or {}), **rest}
    sampling = resolve_sampling(
        {name: rest.pop(name) for name in [*rest] if name in _SAMPLING_NAMES}, recommended
    )
    policy = rest.pop("context_policy", "error")
    if policy not in POLICIES:
        raise ValidationError(f"context_policy={policy!r} must be one of {', '.join(POLICIES)}")
    timeout_s, logprobs = rest.pop("timeout_s", None), rest.pop("logprobs", None)
    stop = rest.pop("stop", ())
    params = GenerationParams(
        max_tokens=check_int("max_tokens", max_tokens, 1),
        sampling=sampling,
        context_policy=policy,
        safety=check_int("safety", rest.pop("safety", SAFETY), 0),
        cache_prompt=_flag("cache_prompt", rest.pop("cache_prompt", True)),
        stop=(stop,) if isinstance(stop, (str, bytes)) else tuple(several("stop strings", stop)),
        json_stop=tuple(several("JSON keys", rest.pop("json_stop", ()))),
        special=_flag("special", rest.pop("special", False)),
        suppress_think=_flag("suppress_think", rest.pop("suppress_think", False)),
        skip_forced=_flag("skip_forced", rest.pop("skip_forced", True)),
        reasoning_limit=reasoning_limit,
        logprobs=None if logprobs is None else check_int("logprobs", logprobs, 0),
        stopping_criteria=as_callables("stopping_criteria", rest.pop("stopping_criteria", None)),
    )
    return GenerationCall(
        params, None if timeout_s is None else check_float("timeout_s", timeout_s, 0, 1e9)
    )


def resolve_sampling(
    options: Mapping[str, Any], recommended: Callable[[], Mapping[str, float]] | None = None
) -> SamplingParams:
    """Return the `SamplingParams` of `sampling` and the single options, which win.

    Args:
        options: `SamplingOptions` and `sampling`, by their proper names.
        recommended: Returns what `sampling="model"` stands for.

    Raises:
        ValidationError: A value is out of range, or the model recommends nothing.
    """
    single = {name: value for name, value in options.items() if name != "sampling"}
    whole = options.get("sampling")
    if whole == "model":
        if recommended is None:
            raise ValidationError("sampling='model' is not known here; give a SamplingParams")
        return SamplingParams(**{**recommended(), **single})
    if whole is not None:
        if not isinstance(whole, SamplingParams):
            raise ValidationError(f"sampling must be a SamplingParams or 'model', got {whole!r}")
        return dataclasses.replace(whole, **single) if single else whole
    return (
        _made(**single)
        if _PLAIN.issuperset(map(type, single.values()))
        else SamplingParams(**single)
    )


_SAMPLING_NAMES = frozenset(SamplingOptions.__annotations__) | {"sampling"}
_NAMES = (*SamplingOptions.__annotations__, *GenerationOptions.__annotations__)
# The same options come again and again, and checking all of them takes 20 us.
_PLAIN = frozenset((int, float, bool, str))
_made = lru_cache(64, typed=True)(SamplingParams)


def _flag(name: str, value: object) -> bool:
    if value not in (True, False):
        raise ValidationError(f"{name} must be True or False, got {value!r}")
    return bool(value)
