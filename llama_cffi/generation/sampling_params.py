"""Sampling parameters: how the next token is chosen."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from ..binding.sampling.samplers import MAX_BIAS, MAX_LAST_N, MIN_REPEAT, MIN_TEMPERATURE
from ..binding.sampling.triggers import TriggerLike, check_triggers
from ..errors import ValidationError
from ..validation import as_callables, as_list, reject_unknown, shown
from .aliases import ALIASES, canonical

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..grammars import LlamaGrammar

    LogitsProcessor: TypeAlias = Callable[
        [NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32] | None
    ]

__all__ = [
    "DEFAULT_SAMPLERS",
    "LogitsProcessor",
    "MoreSamplingOptions",
    "SamplingOptions",
    "SamplingParams",
]

# llama-cli's order, and the names it accepts for each sampler.
DEFAULT_SAMPLERS = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature"
_NAMES = {
    "penalties": "penalties",
    "dry": "dry",
    "top_n_sigma": "top_n_sigma",
    "top_k": "top_k",
    "typ_p": "typ_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc": "xtc",
    "temperature": "temperature",
    "temp": "temperature",
    "infill": "infill",
    "adaptive_p": "adaptive_p",
}


_GRAMMAR_ADVICE = "GBNF or a LlamaGrammar, such as LlamaGrammar.from_json_schema(schema)"


class MoreSamplingOptions(TypedDict, total=False):
    """`SamplingOptions` except the positional parameters of `Engine.generate`."""

    typical_p: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    mirostat_mode: int | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    adaptive_target: float | None
    adaptive_decay: float | None
    penalty_last_n: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: Sequence[str] | None
    min_keep: int | None
    ignore_eos: bool | None
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    grammar_root: str | None
    grammar_triggers: Sequence[TriggerLike] | None
    structured: LlamaGrammar | None
    structured_after: str | None
    samplers: str | Sequence[str] | None


class SamplingOptions(MoreSamplingOptions, total=False):
    """The fields of `SamplingParams` as options of a call; None means the default."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    grammar: str | LlamaGrammar | None
    seed: int | None


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one generation; the defaults are llama-cli's.

    Attributes:
        temperature: Randomness; 0: greedy, the most probable token after penalties, biases and
            grammar.
        top_k: Keep the k most probable tokens; 0: all.
        top_p: Keep the most probable tokens up to this total probability; 1.0: all.
        min_p: Keep tokens with at least this fraction of the highest probability; 0.0: all.
        typical_p: Locally typical sampling: keep the tokens whose information is nearest to the
            entropy, up to this total probability; 1.0: all (https://arxiv.org/abs/2202.00666).
        top_n_sigma: Keep tokens within n standard deviations of the largest logit; 0 or less: all
            (https://arxiv.org/abs/2411.07641).
        xtc_probability: Probability of removing all tokens above *xtc_threshold* except the least
            probable one; 0.0: off.
        xtc_threshold: Probability threshold of XTC; above 0.5 XTC has no effect.
        dynatemp_range: Dynamic temperature: temperature ± this, by entropy; 0.0: off.
        dynatemp_exponent: Exponent that maps entropy to temperature.
        mirostat_mode: Mirostat 1 or 2, which replaces all samplers but the temperature; 0: off
            (https://arxiv.org/abs/2007.14966).
        mirostat_tau: Target surprise of Mirostat, bits.
        mirostat_eta: Learning rate of Mirostat.
        adaptive_target: Target probability of the sampler `adaptive_p`; below 0: off.
        adaptive_decay: Decay of its moving average, 0.0 to 0.99.
        repeat_penalty: Above 1.0, makes tokens that occurred less probable; 1.0: off.
        frequency_penalty: Subtracted from a token's logit for each occurrence; 0.0: off.
        presence_penalty: Subtracted once from the logits of tokens that occurred; 0.0: off.
        penalty_last_n: Number of recent tokens that the penalties consider; 0: off.
        dry_multiplier: Strength of the DRY penalty on repeated sequences; 0.0: off.
        dry_base: Growth factor of the DRY penalty per repeated token, from 1.
        dry_allowed_length: Longest repetition without a penalty.
        dry_penalty_last_n: Number of recent tokens that DRY considers; -1: the model's context
            size, 0: off.
        dry_sequence_breakers: Strings at which a repeated sequence ends.
        min_keep: Fewest tokens that a sampler keeps.
        ignore_eos: Forbid the tokens that end an answer, as llama-cli's --ignore-eos: it goes on to
            max_tokens or a stop string. Not with a grammar, which decides where the answer ends.
        logit_bias: Added to the logits of these token ids; -inf forbids a token.
        logits_processor: Functions `(input_ids, scores)`, called before all samplers, that modify
            *scores*, (n_vocab,) float32, in place or return new ones. *input_ids*, (n,) int32, are
            the tokens of prompt and answer so far.
        grammar: The answer must match it: GBNF, or a `LlamaGrammar`, which is moved to
            *structured*; empty: unconstrained.
        grammar_root: Start rule of the grammar.
        grammar_triggers: Strings, token ids and compiled patterns that start the grammar; before
            the first of them the answer is unconstrained. A pattern is searched in the answer so
            far, and the grammar starts at its first group, or at its match.
        structured: The answer must match it: JSON Schema, regex, Lark, choices or GBNF.
            *grammar_triggers* apply to it too.
        structured_after: The answer is unconstrained up to this string, such as `</think>`.
        samplers: The samplers in order, as in llama-cli: names separated by `;`.
        seed: The same seed gives the same text; -1: a random one.

    Raises:
        ValidationError: A value is out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    min_keep: int = 0
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] = ()
    grammar: str | LlamaGrammar = ""
    grammar_root: str = "root"
    grammar_triggers: Sequence[TriggerLike] = ()
    structured: LlamaGrammar | None = None
    structured_after: str = ""
    samplers: str | Sequence[str] = DEFAULT_SAMPLERS
    seed: int = -1

    def __post_init__(self) -> None:
        self._number("temperature", 0, 1000)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValidationError(
                f"temperature={self.temperature!r} must be 0 (greedy) or at least {MIN_TEMPERATURE}"
            )
        self._number("top_k", 0, 2**31 - 1, whole=True)
        self._number("top_p", 0, 1, open_low=True)
        self._number("min_p", 0, 1)
        self._number("typical_p", 0, 1, open_low=True)
        self._number("top_n_sigma", -1000, 1000)
        self._number("xtc_probability", 0, 1)
        self._number("xtc_threshold", 0, 1)
        self._number("dynatemp_range", 0, 1000)
        self._number("dynatemp_exponent", 0, 1000)
        self._number("mirostat_mode", 0, 2, whole=True)
        self._number("mirostat_tau", 0, 1000)
        self._number("mirostat_eta", 0, 1000)
        self._number("adaptive_target", -1, 1)
        self._number("adaptive_decay", 0, 0.99)
        self._number("repeat_penalty", MIN_REPEAT, 1000)
        self._number("frequency_penalty", -1000, 1000)
        self._number("presence_penalty", -1000, 1000)
        self._number("penalty_last_n", 0, MAX_LAST_N, whole=True)
        self._number("dry_multiplier", 0, 1000)
        self._number("dry_base", 1, 1000)
        self._number("dry_allowed_length", 0, MAX_LAST_N, whole=True)
        self._number("dry_penalty_last_n", -1, MAX_LAST_N, whole=True)
        self._number("min_keep", 0, 2**31 - 1, whole=True)
        self._number("seed", -1, 2**32 - 2, whole=True)
        if hasattr(self.grammar, "kind") and self.structured is None:
            self._set("structured", self.grammar)
            self._set("grammar", "")
        for name in ("grammar", "grammar_root", "structured_after"):
            if not isinstance(getattr(self, name), str):
                advice = _GRAMMAR_ADVICE if name == "grammar" else "a str"
                raise ValidationError(f"{name} must be {advice}, got {shown(getattr(self, name))}")
        if self.structured is None:
            if self.structured_after:
                raise ValidationError("structured_after needs structured")
        elif not (hasattr(self.structured, "kind") and hasattr(self.structured, "text")):
            raise ValidationError(
                f"structured={self.structured!r} must be a LlamaGrammar, such as that of "
                "LlamaGrammar.from_json_schema"
            )
        elif self.grammar:
            raise ValidationError("grammar and structured exclude each other; give only one")
        if self.ignore_eos not in (False, True):
            raise ValidationError(f"ignore_eos={self.ignore_eos!r} must be True or False")
        if self.ignore_eos and (self.grammar or self.structured is not None):
            raise ValidationError(
                "ignore_eos forbids the end that a grammar needs; leave out one of the two"
            )
        # Hashable from here on: chains are cached by their parameters.
        self._set("dry_sequence_breakers", _strings("dry_sequence_breakers", self))
        self._set("grammar_triggers", check_triggers("grammar_triggers", self.grammar_triggers))
        self._set("logit_bias", _bias(self.logit_bias))
        processors = as_callables("logits_processor", self.logits_processor)
        self._set("logits_processor", processors)
        self._set("samplers", _order(self.samplers))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in ALIASES:
                return getattr(self, ALIASES[name])
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether a repeat, frequency or presence penalty applies."""
        neutral = self.repeat_penalty == 1.0 and not (
            self.frequency_penalty or self.presence_penalty
        )
        return "penalties" in self.samplers and self.penalty_last_n > 0 and not neutral

    @property
    def dry(self) -> bool:
        """Whether the DRY penalty on repeated sequences applies."""
        return "dry" in self.samplers and self.dry_multiplier > 0 and self.dry_penalty_last_n != 0

    @property
    def n_history(self) -> int | None:
        """Number of last prompt tokens that the chain must accept; None: all."""
        if self.logits_processor or (self.dry and self.dry_penalty_last_n == -1):
            return None
        penalties = self.penalty_last_n if self.penalises else 0
        return max(penalties, self.dry_penalty_last_n if self.dry else 0)

    def _number(
        self, name: str, low: float, high: float, *, open_low: bool = False, whole: bool = False
    ) -> None:
        value = getattr(self, name)
        # numpy's numbers are registered with these; a Decimal or a str is not. The types first:
        # looking them up in an ABC is ten times slower, and a request has 25 numbers.
        is_number = type(value) is int or (type(value) is float and not whole)
        is_number = is_number or isinstance(value, Integral if whole else Real)
        number = float(value) if is_number else math.nan
        # Comparisons with NaN are false.
        if not low <= number <= high or (open_low and number == low):
            if math.isnan(number) and not isinstance(value, float):
                kind = "a whole number" if whole else "a number"
                raise ValidationError(f"{name}={shown(value)} must be {kind}, {low} to {high}")
            raise ValidationError(
                f"{name}={value!r} is outside {'(' if open_low else '['}{low:g}, "
                + (f"{high}]" if whole else f"{high:g}]")
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


_checked_init = SamplingParams.__init__


@functools.wraps(_checked_init)
def _init(self: SamplingParams, *values: Any, **options: Any) -> None:
    options = canonical(options)
    reject_unknown(options, SamplingOptions.__annotations__, "SamplingParams", ALIASES)
    _checked_init(self, *values, **options)


if not TYPE_CHECKING:  # aliases work at run time; type checkers know the canonical names
    SamplingParams.__init__ = _init


def _strings(name: str, params: SamplingParams) -> tuple[str, ...]:
    value = as_list(name, getattr(params, name))
    if not all(isinstance(item, str) for item in value):
        raise ValidationError(f"{name}={value!r} must be a list of str")
    return tuple(value)


_TOKEN_ID = r"[0-9]{1,10}"  # as JSON writes it: no sign, space or underscore


def _bias(value: Mapping[int, float] | Sequence[tuple[int, float]]) -> tuple[Any, ...]:
    try:
        items = dict(value).items()
    except (TypeError, ValueError):
        raise ValidationError(f"logit_bias={value!r} must map token ids to numbers") from None
    # Keys are strings in JSON, and so in OpenAI's requests.
    pairs = tuple(
        (int(token) if isinstance(token, str) and re.fullmatch(_TOKEN_ID, token) else token, bias)
        for token, bias in items
    )
    for token, bias in pairs:
        is_id = isinstance(token, Integral) and not isinstance(token, bool)
        known = is_id and isinstance(bias, Real)
        if not (known and (float(bias) == -math.inf or -MAX_BIAS <= bias <= MAX_BIAS)):
            raise ValidationError(
                f"logit_bias must map token ids to -inf or numbers from {-MAX_BIAS:g} to "
                f"{MAX_BIAS:g}, got {token!r}: {bias!r}"
            )
    return pairs


def _order(samplers: str | Sequence[str]) -> tuple[str, ...]:
    given = samplers.split(";") if isinstance(samplers, str) else as_list("samplers", samplers)
    order = []
    for name in given:
        known = _NAMES.get(name.strip().replace("-", "_")) if isinstance(name, str) else None
        if known is None:
            raise ValidationError(
                f"samplers: {name!r} must be one of {', '.join(dict.fromkeys(_NAMES.values()))}"
            )
        order.append(known)
    return tuple(order)
