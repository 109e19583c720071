"""The options of a generation: their declaration, checks and defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypedDict

from ..errors import ValidationError
from ..validation import (
    as_callables,
    as_list,
    check_bool,
    check_callable,
    check_choice,
    check_float,
    check_int,
    reject_unknown,
)
from .aliases import ALIASES, canonical
from .context_policy import POLICIES
from .prompt_progress import PromptProgress
from .request_scope import current_scope
from .sampling_params import SamplingOptions, SamplingParams
from .sequence import GenerationParams, ReasoningLimit, StoppingCriterion
from .text import Stop, split_stops

__all__ = [
    "CALL_DEFAULTS",
    "OPTION_NAMES",
    "CallOptions",
    "GenerationCall",
    "GenerationOptions",
    "MainOptions",
    "MoreGenerationOptions",
    "TextOptions",
    "parse_options",
    "resolve_sampling",
]


class CallOptions(TypedDict, total=False):
    """Options of a generation other than sampling options; None means the default.

    `timeout_s`: deadline, in seconds from the call. `context_policy`: overrides the engine's.
    `cache_prompt`: False decodes the whole prompt, even if the KV cache holds a prefix of it, and
    keeps no copy of it in RAM or on disk when it leaves the KV cache.
    `reset_kv_cache`: False continues the session: the prompt, without BOS, follows the last prompt
    and answer, which the KV cache holds.
    `special`: write control tokens as text. `suppress_think`: remove <think>...</think>.
    `turn_stops`: strings that end the answer, but not inside a grammar; in a chat, those of the
    model's family are added. `json_stop`: keys; an answer that is a JSON object with one of them
    ends with the object.
    `skip_forced`: False computes logits for every token, even where a grammar allows only one.
    `post_sampling_probs`: `logprobs` are those with which the token was drawn, after all samplers;
    tokens that could not be drawn are left out.
    `prompt_progress`: called with a `PromptProgress` before the prompt is evaluated and after each
    batch of it, in the engine's thread; an exception fails the request.
    `stopping_criteria`: functions of the tokens so far and the logits of the next token; one that
    returns True ends the answer.
    """

    timeout_s: float | None
    context_policy: str | None
    cache_prompt: bool | None
    reset_kv_cache: bool | None
    special: bool | None
    suppress_think: bool | None
    turn_stops: Sequence[str | bytes] | None
    json_stop: Sequence[str] | None
    skip_forced: bool | None
    post_sampling_probs: bool | None
    prompt_progress: Callable[[PromptProgress], object] | None
    stopping_criteria: Sequence[StoppingCriterion] | StoppingCriterion | None


class MoreMainOptions(TypedDict, total=False):
    """`MainOptions` except `logprobs`.

    `sampling`: a `SamplingParams`, or `"model"` for the sampling that the model's authors
    recommend; single sampling options override it. `stop`: strings and token ids that end the
    answer; they are not part of it.
    """

    sampling: SamplingParams | Literal["model"] | None
    stop: Stop | Sequence[Stop] | None


class MainOptions(MoreMainOptions, total=False):
    """The options that most calls set; None means the default.

    `logprobs`: return the model's log-probabilities, before penalties and temperature, of each
    token and of this many alternatives.
    """

    logprobs: int | None


class MoreGenerationOptions(SamplingOptions, CallOptions, total=False):
    """`GenerationOptions` except `MainOptions`."""


class TextOptions(MoreGenerationOptions, MoreMainOptions, total=False):
    """`GenerationOptions` except `logprobs`, for calls that return only text."""


class GenerationOptions(MoreGenerationOptions, MainOptions, total=False):
    """The options of every generation: `MainOptions`, `SamplingOptions` and `CallOptions`."""


@dataclasses.dataclass(frozen=True)
class GenerationCall:
    """The parsed options of one call.

    Attributes:
        params: Parameters of the generation.
        timeout_s: Deadline, in seconds from the call; None: no deadline.
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
    """Parse the options of one call.

    Args:
        max_tokens: Most tokens to generate; None: until the model ends the answer or the
            context is full.
        options: `GenerationOptions`, under any of their names.
        n_ctx: Context size, tokens.
        defaults: Values of options that are not given.
        recommended: Returns the sampling options that the model's authors recommend.
        reasoning_limit: Creates the reasoning limit of one answer.

    Raises:
        UnknownOptionError: An option does not exist.
        ValidationError: An option is out of range, or given under two names.
    """
    rest = canonical(options)
    if "max_tokens" in rest:
        max_tokens = rest.pop("max_tokens")
    if max_tokens is None:
        max_tokens = n_ctx
    reject_unknown(rest, OPTION_NAMES, "a generation", ALIASES)
    rest = {**CALL_DEFAULTS, **(defaults or {}), **rest}
    sampling = resolve_sampling(
        {name: rest.pop(name) for name in [*rest] if name in _SAMPLING_NAMES}, recommended
    )
    policy = rest.pop("context_policy", "error")
    check_choice("context_policy", policy, POLICIES)
    timeout_s, logprobs = rest.pop("timeout_s", None), rest.pop("logprobs", None)
    stops, stop_tokens = split_stops(rest.pop("stop", ()))
    params = GenerationParams(
        max_tokens=check_int("max_tokens", max_tokens, 1),
        sampling=sampling,
        context_policy=policy,
        safety=check_int("safety", rest.pop("safety", 0), 0),
        cache_prompt=check_bool("cache_prompt", rest.pop("cache_prompt")),
        reset_kv_cache=check_bool("reset_kv_cache", rest.pop("reset_kv_cache")),
        stop=stops,
        stop_tokens=stop_tokens,
        turn_stops=tuple(as_list("turn_stops", rest.pop("turn_stops"))),
        json_stop=tuple(as_list("json_stop", rest.pop("json_stop"))),
        special=check_bool("special", rest.pop("special")),
        suppress_think=check_bool("suppress_think", rest.pop("suppress_think")),
        skip_forced=check_bool("skip_forced", rest.pop("skip_forced")),
        reasoning_limit=reasoning_limit,
        logprobs=None if logprobs is None else check_int("logprobs", logprobs, 0),
        post_sampling_probs=check_bool("post_sampling_probs", rest.pop("post_sampling_probs")),
        prompt_progress=check_callable("prompt_progress", rest.pop("prompt_progress", None)),
        stopping_criteria=as_callables("stopping_criteria", rest.pop("stopping_criteria", None)),
    )
    if timeout_s is not None:
        timeout_s = check_float("timeout_s", timeout_s, 0, 1e9)
    if (scope := current_scope()) is not None:
        timeout_s = scope.timeout_s(timeout_s)
    return GenerationCall(params, timeout_s)


def resolve_sampling(
    options: Mapping[str, Any], recommended: Callable[[], Mapping[str, float]] | None = None
) -> SamplingParams:
    """Return the `SamplingParams` of `sampling` and single options, which override it.

    Args:
        options: `SamplingOptions` and `sampling`, under their canonical names.
        recommended: Returns the sampling options of `sampling="model"`.

    Raises:
        ValidationError: A value is out of range, or there is no recommended sampling.
    """
    single = {name: value for name, value in options.items() if name != "sampling"}
    sampling = options.get("sampling")
    if sampling == "model":
        if recommended is None:
            raise ValidationError("sampling='model' is not supported here; give a SamplingParams")
        return SamplingParams(**{**recommended(), **single})
    if sampling is not None:
        if not isinstance(sampling, SamplingParams):
            number = isinstance(sampling, (int, float))
            hint = f"; did you mean temperature={sampling!r}?" if number else ""
            raise ValidationError(
                f"sampling must be a SamplingParams or 'model', got {sampling!r}{hint}"
            )
        return dataclasses.replace(sampling, **single) if single else sampling
    return (
        _cached_params(**single)
        if _HASHABLE.issuperset(map(type, single.values()))
        else SamplingParams(**single)
    )


# `Engine` has other defaults, some of them from the environment.
CALL_DEFAULTS: CallOptions = {
    "cache_prompt": True,
    "reset_kv_cache": True,
    "special": False,
    "suppress_think": False,
    "turn_stops": (),
    "json_stop": (),
    "skip_forced": True,
    "post_sampling_probs": False,
}
_SAMPLING_NAMES = frozenset(SamplingOptions.__annotations__) | {"sampling"}
OPTION_NAMES = ("max_tokens", *GenerationOptions.__annotations__)
# Calls repeat the same options, and validating them takes 20 us.
_HASHABLE = frozenset((int, float, bool, str))
_cached_params = lru_cache(64, typed=True)(SamplingParams)
