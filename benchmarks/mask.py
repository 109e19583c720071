"""What structured output costs per token: computing the mask, applying it, and the other samplers.

    python benchmarks/mask.py [--models DIR] [--rounds N]

One thread, processor time. Documents that match the grammar are accepted token by token, and the
whole vocabulary is masked before each token. "first" is the first pass over a document, in which
llguidance builds its lexer; "mask" and "apply" are median and maximum of the later passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from models import DEFAULT_FOLDER, model_path

from llama_cffi import Model, SamplerChain, demo
from llama_cffi.binding import Candidates
from llama_cffi.grammars import LlamaGrammar
from llama_cffi.grammars.matcher import Matcher

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "other"]}},
        "note": {"type": "string"},
    },
    "required": ["name", "age", "tags", "note"],
    "additionalProperties": False,
}
TEXT = "the quick brown fox jumps over the lazy dog and runs into the green wood"
CASES = {
    "schema": (
        LlamaGrammar.from_json_schema(PERSON),
        f'{{"name": "ab cd", "age": 42, "tags": ["new", "other"], "note": "{TEXT}"}}',
    ),
    "any object": (
        LlamaGrammar.json_object(),
        f'{{"a": {{"b": [1, 2.5, null, true, "{TEXT}"]}}, "c": "d"}}',
    ),
    "regex": (LlamaGrammar.from_regex(r"[a-z ]{0,200}"), TEXT),
    "choices": (LlamaGrammar.from_choices([f"item {i}" for i in range(1000)]), "item 777"),
}


def clock(function: Callable[[], object]) -> float:
    """Return the processor time of a call, in microseconds."""
    start = time.process_time_ns()
    function()
    return (time.process_time_ns() - start) / 1e3


def measure(model: Model, grammar: LlamaGrammar, text: str, rounds: int) -> str:
    """Accept *text* token by token and return a row of the table."""
    began = time.process_time()
    matcher = Matcher(model, grammar)
    compiled = (time.process_time() - began) * 1e3
    tokens = model.vocab.tokenize(text, add_special=False)
    candidates = Candidates(model)
    logits = np.random.default_rng(0).normal(size=len(model.vocab)).astype(np.float32)
    chain = SamplerChain(model).add_top_k(40).add_top_p(0.95).add_temp(0.8).add_dist(1)
    masks: list[list[float]] = []
    fills, applies, accepts, chains, bare = [], [], [], [], []
    for _ in range(rounds + 1):
        matcher.reset()
        masks.append([])
        for token in tokens:
            candidates.fill(logits)
            bare.append(clock(lambda: chain.apply(candidates)))
            fills.append(clock(lambda: candidates.fill(logits)))
            allowed: list[np.ndarray] = []
            masks[-1].append(clock(lambda: allowed.append(matcher.allowed())))  # noqa: B023
            applies.append(clock(lambda: candidates.keep(allowed[0])))  # noqa: B023
            chains.append(clock(lambda: chain.apply(candidates)))
            accepts.append(clock(lambda: matcher.accept(token)))  # noqa: B023
    later = [time for walk in masks[1:] for time in walk]
    both = [m + a for m, a in zip(later, applies[len(tokens) :], strict=True)]
    return (
        f"{compiled:8.1f} {len(tokens):6} {statistics.mean(masks[0]):7.0f}"
        f" {statistics.median(later):6.0f} {max(later):6.0f}"
        f" {statistics.median(applies):6.0f} {max(applies):6.0f}"
        f" {statistics.median(both):7.0f} {statistics.mean(both):6.0f}"
        f" {statistics.median(accepts):6.1f}"
        f" {statistics.median(bare):6.0f} {statistics.median(chains):6.0f}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    paths = {"demo": demo.model_path(), "small": model_path("small", args.models)}
    for name, path in paths.items():
        with Model(path, vocab_only=True) as model:
            began = time.process_time()
            Matcher(model, LlamaGrammar.from_choices(["a"]))
            built = (time.process_time() - began) * 1e3
            print(f"{name}: {len(model.vocab):,} tokens; once per model {built:.0f} ms")
            print(
                f"  {'us per token':12} {'build ms':>8} {'tokens':>6} {'first':>7} {'mask':>6}"
                f" {'max':>6} {'apply':>6} {'max':>6} {'both':>7} {'mean':>6} {'accept':>6}"
                f" {'chain':>6} {'after':>6}"
            )
            for case, (grammar, text) in CASES.items():
                print(f"  {case:12} {measure(model, grammar, text, args.rounds)}", flush=True)


if __name__ == "__main__":
    main()
