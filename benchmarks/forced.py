"""How much decoding forced tokens together saves with structured output.

    python benchmarks/forced.py [--models DIR] [--threads N] [--rounds N]

Generates documents of a schema with long keys, alternately with and without skipping, on one
context and from the same seeds. "calls" are calls of llama_decode after the prompt. Times are
processor time after the prompt per token: the median, and the median and range of the ratios of
each pair. "same" counts the pairs of equal documents: decoding several tokens together rounds
differently, which sometimes changes a draw.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from models import DEFAULT_FOLDER, model_path

from llama_cffi import Engine, LlamaGrammar, demo

KEYS = ["customer_reference_number", "is_delivery_address_verified", "preferred_contact_channel"]
ORDER = LlamaGrammar.from_json_schema(
    {
        "type": "object",
        "properties": {
            KEYS[0]: {"type": "integer", "minimum": 0, "maximum": 99999},
            KEYS[1]: {"type": "boolean"},
            KEYS[2]: {"enum": ["telephone", "electronic mail", "letter"]},
            "note": {"type": "string", "maxLength": 20},
        },
        "required": [*KEYS, "note"],
        "additionalProperties": False,
    }
)


class Document(NamedTuple):
    """One run."""

    tokens: list[int]
    n_forced: int
    n_calls: int
    us: float  # per token


class Writer:
    """Generates documents and counts the calls of llama_decode."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._decode = engine, engine.context.decode
        self._prompt = engine.tokenize("An order:")
        self._n_calls, self._started = 0, 0.0
        engine.context.decode = self._counted  # type: ignore[method-assign]

    def _counted(self, batch: Any) -> None:
        self._n_calls += 1
        self._decode(batch)
        if self._n_calls == 1:  # the prompt
            self._engine.context.synchronize()
            self._started = time.process_time()

    def __call__(self, seed: int, skip: bool) -> Document:
        """Generate one document."""
        self._n_calls = 0
        tokens = self._engine.generate_tokens(
            self._prompt, 200, structured=ORDER, seed=seed, skip_forced=skip, json_stop=()
        )
        us = (time.process_time() - self._started) * 1e6 / len(tokens)
        return Document(tokens, self._engine.stats.n_forced, self._n_calls - 1, us)


def measure(engine: Engine, rounds: int) -> str:
    """Return a row of the table."""
    write = Writer(engine)
    pairs = [(write(seed, False), write(seed, True)) for seed in range(rounds + 1)][1:]
    ratios = [fast.us / slow.us for slow, fast in pairs]

    def median(i: int, field: str) -> float:
        return statistics.median(float(getattr(pair[i], field)) for pair in pairs)

    n_tokens = statistics.median(len(fast.tokens) for _, fast in pairs)
    same = sum(slow.tokens == fast.tokens for slow, fast in pairs)
    return (
        f"{n_tokens:7.0f} {median(1, 'n_forced'):7.0f} {median(0, 'n_calls'):7.0f}"
        f" {median(1, 'n_calls'):9.0f} {median(0, 'us'):10.0f} {median(1, 'us'):9.0f}"
        f" {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        f" {same:3} of {len(pairs)}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    paths = {"demo": demo.model_path()}
    paths |= {name: model_path(name, args.models) for name in ("small", "0.6B")}
    print(
        f"{'medians':7} {'tokens':>7} {'forced':>7} {'calls':>7} {'skipping':>9} {'us/token':>10}"
        f" {'skipping':>9} {'ratio':>6}{'':15} same"
    )
    for name, path in paths.items():
        with Engine(path, n_ctx=512, n_threads=args.threads) as engine:
            print(f"{name:7} {measure(engine, args.rounds)}", flush=True)


if __name__ == "__main__":
    main()
