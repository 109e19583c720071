"""How long opening a GGUF with a large vocabulary takes, here and with `gguf.GGUFReader`.

    python benchmarks/gguf_open.py [--reference]

Writes a file with 262,144 tokens and 514,000 merges (a vocabulary as large as Gemma's) and
prints the fastest of several runs. The reference reader takes about 20 s, so it is optional.
"""

from __future__ import annotations

import argparse
import itertools
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf

from llama_cffi.gguf.reader import read_gguf

N_TOKENS, N_MERGES, RUNS = 262_144, 514_000, 7


def write(path: Path) -> None:
    """Write a GGUF with metadata only: tokens of one to five characters, merges of two tokens."""
    words = itertools.chain.from_iterable(
        itertools.product(string.ascii_letters, repeat=n) for n in range(1, 6)
    )
    tokens = ["".join(w) for w in itertools.islice(words, N_TOKENS)]
    merges = [f"{tokens[i % N_TOKENS]} {tokens[i * 7919 % N_TOKENS]}" for i in range(N_MERGES)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * N_TOKENS)
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fastest(call: Callable[[], object], runs: int) -> float:
    """Return the seconds of the fastest run."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", action="store_true", help="time gguf.GGUFReader too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write(path)
        print(f"{path.stat().st_size / 1e6:.1f} MB, {N_TOKENS:,} tokens, {N_MERGES:,} merges")
        print(f"read_gguf (checked):  {fastest(lambda: read_gguf(path), RUNS):8.3f} s")
        file = read_gguf(path)
        key = "tokenizer.ggml.tokens"
        print(f"the tokens as a list: {fastest(lambda: file.metadata[key], 1):8.3f} s")
        if arguments.reference:
            print(f"gguf.GGUFReader:      {fastest(lambda: gguf.GGUFReader(path), 1):8.3f} s")


if __name__ == "__main__":
    main()
