"""Fifty questions about one long input, compared with one prompt of as many tokens.

    python benchmarks/decisions.py [--model GGUF] [--rounds 5] [--threads 2] [--questions 50]

The input has about 1,000 tokens, and all questions share it. `shared cells` is `InferenceEngine`
with `n_kv_tokens`, `own cells` without it, `one by one` is `Llama`. The ratio is the time of
`decide` over that of decoding one prompt with the tokens of the input and of what follows it in
each question; both alternate in one run. Target: 1.3 with shared cells.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from models import DEFAULT_FOLDER, model_path
from tqdm import tqdm

from llama_cffi import InferenceEngine, Llama, PredicateQuestion
from llama_cffi.decisions import Question

N_STATE, N_CTX = 1000, 2048
Decide = Callable[[str, list[Question]], object]


def text_of(engine: InferenceEngine, n_tokens: int) -> str:
    """Return a text of about *n_tokens* tokens."""
    words, text = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs"], ""
    for i in range(4 * n_tokens):
        text += f"{words[i * 7 % 10]} {i % 13} "
        if i % 50 == 0 and len(engine.tokenize(text)) >= n_tokens:
            break
    return text


def prefill_s(engine: InferenceEngine, n_tokens: int) -> float:
    """Return the seconds of decoding a prompt of *n_tokens* tokens."""
    engine.cache_clear()
    prompt = [300 + i % 500 for i in range(n_tokens)]
    start = time.perf_counter()
    engine.submit(prompt, 1, temperature=0).result()
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=50)
    args = parser.parse_args()
    path = args.model or model_path("small", DEFAULT_FOLDER)
    warnings.filterwarnings("ignore", "n_ctx=")  # longer than trained for: nothing reads the text
    options = {"n_threads": args.threads, "chat_format": "chatml"}
    questions: list[Question] = [
        PredicateQuestion(f"The number {i} is mentioned in the text.")
        for i in range(args.questions)
    ]
    with (
        InferenceEngine(path, 1, 8192, n_threads=args.threads) as whole,
        InferenceEngine(path, 16, N_CTX, n_kv_tokens=8192, **options) as shared,
        InferenceEngine(path, 16, N_CTX, **options) as own,
        Llama(path, n_ctx=N_CTX, **options) as one,
    ):
        text = text_of(whole, N_STATE)
        sides: dict[str, InferenceEngine | Llama] = {
            "shared cells": shared, "own cells": own, "one by one": one,
        }  # fmt: skip
        shared.decide(text, questions[:2])  # warm up
        before = shared.stats.n_decoded
        shared.cache_clear()
        shared.decide(text, questions)
        n_tokens = shared.stats.n_decoded - before
        times: dict[str, list[float]] = {name: [] for name in sides}
        prefills: list[float] = []
        for _ in tqdm(range(args.rounds), leave=False):
            prefills.append(prefill_s(whole, n_tokens))
            for name, side in sides.items():
                (side.reset if isinstance(side, Llama) else side.cache_clear)()
                start = time.perf_counter()
                side.decide(text, questions)
                times[name].append(time.perf_counter() - start)
            prefills.append(prefill_s(whole, n_tokens))
    print(f"{len(questions)} questions, {n_tokens} tokens with the input of {N_STATE}")
    print(f"one prompt    {statistics.median(prefills) * 1e3:8.0f} ms")
    for name, found in times.items():
        ratios = [
            2 * t / (a + b) for t, a, b in zip(found, prefills[::2], prefills[1::2], strict=True)
        ]
        print(
            f"{name:12}  {statistics.median(found) * 1e3:8.0f} ms  "
            f"{statistics.median(ratios):5.2f} ({min(ratios):4.2f}-{max(ratios):4.2f})"
        )


if __name__ == "__main__":
    main()
