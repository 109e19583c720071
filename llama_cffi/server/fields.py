"""The fields of requests that generate, and how they become options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from ..grammars import LlamaGrammar
from .body import BOOL, INTEGER, LIST, NUMBER, OBJECT, STRING, Kind, Object, either, list_of
from .errors import invalid

__all__ = [
    "GENERATION",
    "OPENAI",
    "SEEDS",
    "are_ids",
    "check_tokens",
    "generation_options",
    "is_id",
    "texts_or_ids",
]

_SAMPLING: Mapping[str, Kind] = {
    "temperature": NUMBER,
    "top_k": INTEGER,
    "top_p": NUMBER,
    "min_p": NUMBER,
    "typical_p": NUMBER,
    "top_n_sigma": NUMBER,
    "xtc_probability": NUMBER,
    "xtc_threshold": NUMBER,
    "dynatemp_range": NUMBER,
    "dynatemp_exponent": NUMBER,
    "mirostat_mode": INTEGER,
    "mirostat_tau": NUMBER,
    "mirostat_eta": NUMBER,
    "adaptive_target": NUMBER,
    "adaptive_decay": NUMBER,
    "repeat_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "penalty_last_n": INTEGER,
    "dry_multiplier": NUMBER,
    "dry_base": NUMBER,
    "dry_allowed_length": INTEGER,
    "dry_penalty_last_n": INTEGER,
    "dry_sequence_breakers": list_of(STRING),
    "min_keep": INTEGER,
    "ignore_eos": BOOL,
    "logit_bias": either(OBJECT, LIST),
    "grammar": STRING,
    "grammar_root": STRING,
    "samplers": either(STRING, list_of(STRING)),
    "seed": INTEGER,
}
# llama-server's and vLLM's names.
_ALIASES = {
    "typ_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "repeat_last_n": "penalty_last_n",
    "mirostat": "mirostat_mode",
    "n_predict": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "thinking_budget_tokens": "thinking_budget",
    "reasoning_budget_tokens": "thinking_budget",
}
OPENAI: Mapping[str, Kind] = {
    "stream": BOOL,
    "stream_options": OBJECT,
    "n": INTEGER,
    "model": STRING,
    "user": STRING,
    "metadata": OBJECT,
    "store": BOOL,
    "service_tier": STRING,
}
GENERATION: Mapping[str, Kind] = {
    **_SAMPLING,
    **OPENAI,
    "max_tokens": INTEGER,
    "stop": either(STRING, list_of(STRING)),
    "cache_prompt": BOOL,
    **{name: _SAMPLING[other] for name, other in _ALIASES.items() if other in _SAMPLING},
    "n_predict": INTEGER,
    "max_completion_tokens": INTEGER,
}
# llama-server's letters of the samplers.
_LETTERS = {
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typ_p", "p": "top_p",
    "m": "min_p", "x": "xtc", "t": "temperature", "i": "infill", "a": "adaptive_p",
}  # fmt: skip
_MAX_N = 128
_MAX_ITEMS = 2048
SEEDS = 2**32 - 1


def generation_options(given: Object, n_vocab: int) -> Object:
    """Return the fields of a request, of which the types are checked, as options.

    Args:
        given: The fields.
        n_vocab: Number of tokens of the model.

    Raises:
        ApiError: A value is out of range.
    """
    options = {name: value for name, value in given.items() if name not in OPENAI}
    for name, other in _ALIASES.items():
        if name in options:
            options[other] = options.pop(name)
    if options.get("thinking_budget") == -1:  # llama-server's word for no limit
        del options["thinking_budget"]
    if "seed" in options:  # any integer is one for OpenAI
        options["seed"] = options["seed"] % SEEDS if options["seed"] >= 0 else -1
    samplers = options.get("samplers")
    if isinstance(samplers, str) and samplers != "temp" and _LETTERS.keys() >= {*samplers}:
        options["samplers"] = [_LETTERS[letter] for letter in samplers]
    if "logit_bias" in options:
        options["logit_bias"] = _bias(options["logit_bias"], n_vocab)
    n = given.get("n", 1)
    if not 1 <= n <= _MAX_N:
        raise invalid("n", f"n must be from 1 to {_MAX_N}, got {n}")
    stream_options = given.get("stream_options")
    if stream_options is not None:
        if not given.get("stream"):
            raise invalid("stream_options", "stream_options is for requests with stream: true")
        if not isinstance(stream_options.get("include_usage", False), (bool, type(None))):
            raise invalid("stream_options", "include_usage must be true or false")
        options["stream_options"] = {"include_usage": stream_options.get("include_usage")}
    return options


def parse_grammar(options: Object) -> None:
    """Replace a grammar's text: what is wrong with it is told before the headers, not after them.

    Raises:
        GrammarError: It is not a grammar.
    """
    if text := options.get("grammar"):
        root = options.pop("grammar_root", "root")
        options["grammar"] = LlamaGrammar.from_string(text, root=root)


def texts_or_ids(name: str, given: str | list[Any], n_vocab: int) -> list[str | list[int]]:
    """Return the items of OpenAI's `prompt` or `input`: one or several texts or lists of token ids.

    Raises:
        ApiError: They are something else, too many, or a token does not exist.
    """
    items = [given] if isinstance(given, str) or (given and are_ids(given)) else given
    if not items:
        raise invalid(name, f"{name} must not be empty")
    if len(items) > _MAX_ITEMS:
        raise invalid(name, f"{name} has {len(items)} items; at most {_MAX_ITEMS} are allowed")
    for i, item in enumerate(items):
        where = name if len(items) == 1 else f"{name}[{i}]"
        if isinstance(item, str):
            continue
        if not (isinstance(item, list) and item and are_ids(item)):
            raise invalid(name, f"{where} must be a string or a list of token ids")
        check_tokens(name, where, item, n_vocab)
    return [*items]


def is_id(value: object) -> bool:
    """Return whether a value of JSON can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool)


def are_ids(values: list[Any]) -> TypeGuard[list[int]]:
    """Return whether all values of JSON can be token ids."""
    return {*map(type, values)} <= {int}


def check_tokens(name: str, where: str, tokens: Sequence[int], n_vocab: int) -> None:
    """Refuse a token id that the model does not have.

    Args:
        name: The field.
        where: The place in it.
        tokens: At least one id.
        n_vocab: Number of tokens of the model.

    Raises:
        ApiError: About the first one.
    """
    if min(tokens) < 0 or max(tokens) >= n_vocab:
        token = next(token for token in tokens if not 0 <= token < n_vocab)
        raise invalid(
            name,
            f"{where}: the token {token} does not exist; this model has 0 to {n_vocab - 1}."
            " Send text, or ids of this model's /tokenize",
        )


def _bias(given: Any, n_vocab: int) -> dict[int, float]:
    """Return a bias by token id; `false` forbids a token, as in llama-server."""
    pairs = [*given.items()] if isinstance(given, dict) else given
    found = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise invalid("logit_bias", "logit_bias must be an object or a list of [id, bias]")
        named, bias = pair
        is_text = isinstance(named, str) and named.isascii() and named.isdigit()
        token = int(named[:20]) if is_text else int(named) if is_id(named) else -1
        if not 0 <= token < n_vocab:
            message = f"logit_bias: {named!r:.60} is not a token id, 0 to {n_vocab - 1}"
            raise invalid("logit_bias", message)
        found[token] = -math.inf if bias is False else bias
    return found
