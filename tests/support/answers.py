"""What many requests at once have to give: the answers that each gets alone.

    python tests/support/answers.py N model.gguf…      on the build of LLAMA_CFFI_BUILD

Compared without flash attention, with weights and a cache of 32 bits: others round depending on
who shares the batch and the cells, and now and then that chooses another token.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_cffi import Engine, InferenceEngine, LlamaGrammar, Model, get_library
from llama_cffi.binding import compat
from llama_cffi.generation.sequence import Step

__all__ = ["Case", "alone", "exact", "together"]

PERSON = LlamaGrammar.from_json_schema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
            "colour": {"enum": ["red", "green", "blue"]},
        },
        "required": ["name", "age", "colour"],
        "additionalProperties": False,
    }
)
DIGITS = LlamaGrammar.from_regex(r"([0-9]{2}, ){3}end")


def no_e(ids: Any, scores: Any) -> None:
    """Forbid a token that depends on how many there are: it shows whether the history is right."""
    scores[len(ids) % 64 + 40] = -float("inf")


def long_enough(ids: Any, logits: Any) -> bool:
    """End an answer by a criterion."""
    return len(ids) % 29 == 0


class Case(NamedTuple):
    """A request."""

    prompt: Sequence[int]
    n_predict: int
    options: dict[str, Any]


# What a request may want; the prompt is another one each time.
WANTED: list[dict[str, Any]] = [
    {},
    {"repeat_penalty": 1.3},
    {"temperature": 1.2, "seed": 5},
    {"grammar": 'root ::= ("yes" | "no" | "well, ") root | "."'},
    {"sampling_structured": PERSON},
    {"temperature": 1.5, "seed": 7, "sampling_structured": PERSON},
    {"sampling_structured": DIGITS},
    {"sampling_structured": DIGITS, "skip_forced": False},
    {"stop": ["e", "12"]},
    {"temperature": 1.0, "seed": 3, "top_k": 5, "stop": ["\n", "a b"]},
    {"logits_processor": [no_e]},
    {"logprobs": 2},
    {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    {"temperature": 1.2, "seed": 8, "mirostat_mode": 2},
    {"temperature": 1.2, "seed": 9, "xtc_probability": 0.5},
    {"stopping_criteria": long_enough},
    {"logit_bias": {66: 5.0, 67: -100.0}},
    {"temperature": 1.3, "seed": 11, "min_p": 0.2, "frequency_penalty": 0.3},
]


# The defaults of Engine differ from those of InferenceEngine.
SAMPLING: dict[str, Any] = {"temperature": 0, "top_p": 0.9, "repeat_penalty": 1.1}


def cases(model: Model, n: int, *, sampled: bool) -> Iterator[Case]:
    """Give *n* requests with prompts of 1 to 90 tokens, some of which begin alike.

    Only a trained model can have *sampled* ones: the logits of a random one are so close to each
    other that rounding changes their order, and so the token that a random number selects.
    """
    common = model.vocab.tokenize("You are a friendly assistant who answers in few words. " * 3)
    lacks = {name for name in ("dry", "xtc") if not model.library.has(f"llama_sampler_init_{name}")}
    known = [
        w
        for w in WANTED
        if not any(k.split("_")[0] in lacks for k in w) and (sampled or "seed" not in w)
    ]
    for i in range(n):
        wanted = {**SAMPLING, **known[i % len(known)]}
        if structured := wanted.pop("sampling_structured", None):
            wanted["structured"] = structured
        text = f"What is {3 * i % 50} + {7 * i % 41}? " * (1 + i % 4)
        prompt = model.vocab.tokenize(text, add_special=True, parse_special=True)
        if i % 3 == 0:
            prompt = [*common[: 20 + i % 30], *prompt]
        yield Case(prompt[:90] if i % 7 else [65 + i % 20], 6 + 5 * i % 24, wanted)


def exact() -> dict[str, Any]:
    """Return the options of a context that computes as exactly as the build can."""
    exact = compat.flash_attn_supports_f32(get_library())
    return {"type_k": "f32", "type_v": "f32", "flash_attn": False} if exact else {}


def alone(model: Model, cases: Sequence[Case], **options: Any) -> list[list[Step]]:
    """Answer one after the other, each in an empty context."""
    with Engine(model, n_ctx=256, n_threads=1, safety=0, **exact(), **options) as engine:
        return [
            list(engine.steps(case.prompt, case.n_predict, json_stop=(), **case.options))
            for case in cases
        ]


def together(
    model: Model, cases: Sequence[Case], n_parallel: int = 16, **options: Any
) -> tuple[list[list[Step]], Any]:
    """Answer all at once; return the answers and the engine's statistics."""
    settings: dict[str, Any] = {"n_threads": 1, **exact(), **options}
    n_ctx = settings.pop("n_ctx", 256)
    with InferenceEngine(model, n_parallel, n_ctx, start=False, **settings) as engine:
        handles = [
            engine.submit(c.prompt, c.n_predict, listens=True, json_stop=(), **c.options)
            for c in cases
        ]
        engine.start()
        answers = [list(handle.steps()) for handle in handles]
        return answers, engine.stats


def same(found: Sequence[Step], expected: Sequence[Step]) -> bool:
    """Whether two answers have the same tokens and text, and the same log-probabilities."""
    if [s.token for s in found] != [s.token for s in expected]:
        return False
    if [s.text for s in found] != [s.text for s in expected]:
        return False
    pairs = [(a.logprob, b.logprob) for a, b in zip(found, expected, strict=True)]
    return all(
        a is b is None or (a is not None and b is not None and abs(a.logprob - b.logprob) < 0.01)
        for a, b in pairs
    )


LAYOUTS: dict[str, dict[str, Any]] = {
    "streams": {},
    "small batches": {"n_batch": 32, "n_prefill_chunk": 16},
    "shared cells": {"n_kv_tokens": 512, "block_size": 8},
}


def main(n: str, *paths: str) -> None:
    """Print a line for each model and layout."""
    for path in paths:
        with Model(path) as model:
            trained = Path(path).stem == "demo"
            if trained and not exact():
                continue
            wanted = list(cases(model, int(n), sampled=trained))
            expected = alone(model, wanted)
            for name, options in LAYOUTS.items():
                found, stats = together(model, wanted, **options)
                wrong = [i for i in range(len(wanted)) if not same(found[i], expected[i])]
                assert stats.n_finished == len(wanted)
                assert stats.n_waiting == stats.n_running == 0
                print(Path(path).stem, "in", name, "differ:", wrong, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
