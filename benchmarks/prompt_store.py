"""The first token after a restart, with the prompt in `cache_dir`, against the first one ever.

    python benchmarks/prompt_store.py [--model FILE] [--tokens 1000] [--runs 3]

Each run opens an engine on an empty folder, answers one token to a prompt of new tokens, closes the
engine, which writes the prompt, and does the same with a new engine on the same folder. Prints the
medians of the times to the first token, and their ratio (target: at most 0.2).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

from llama_cffi import InferenceEngine
from llama_cffi.demo import model_path


def first_token_s(path: str, folder: str, prompt: list[int]) -> tuple[float, int]:
    """Return the time to the first token in a new engine, and how many tokens it reused."""
    with InferenceEngine(path, 1, len(prompt) + 24, cache_dir=folder) as engine:
        engine.submit([*range(100, 110)], 1, temperature=0).result()  # loads the weights
        handle = engine.submit(prompt, 1, temperature=0)
        handle.result()
        return handle.stats.time_to_first_token_s, handle.stats.n_reused


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(model_path()))
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    before, after = [], []
    for run in range(args.runs):
        prompt = [100 + (i * 7 + run * 13) % 1000 for i in range(args.tokens)]
        with tempfile.TemporaryDirectory() as folder:
            before.append(first_token_s(args.model, folder, prompt)[0])
            seconds, n_reused = first_token_s(args.model, folder, prompt)
            after.append(seconds)
    first, second = statistics.median(before), statistics.median(after)
    print(f"first token, nothing stored   {first * 1000:8.1f} ms (median of {args.runs})")
    print(f"first token after a restart   {second * 1000:8.1f} ms, {n_reused} tokens restored")
    print(f"ratio                         {second / first:8.3f} (target: at most 0.2)")


if __name__ == "__main__":
    main()
