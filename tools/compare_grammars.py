"""Compare the verdicts of llama.cpp's engine and llguidance on strings of many grammars.

The grammars come from llama.cpp's own sources, which the npm package `node-llama-cpp` contains,
and from the tests. Half of the strings are sentences of the grammar, a quarter are sentences with
errors, and the rest are random characters of the grammar.

    python tools/compare_grammars.py                        # fetch the newest known sources
    python tools/compare_grammars.py --grammars FOLDER      # use local *.gbnf files
    python tools/compare_grammars.py --texts 100 --only json

Columns: llama.cpp's verdicts ("given up" where a string has too many parses); the number of
verdicts that differ; the share of tokens in matching strings that need not be sampled. The exit
status is 1 if a verdict differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from collect_headers import NPM, from_bundle, npm_pack
from template_sources import TAG
from tqdm import tqdm

from llama_cffi.binding import Model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.gbnf_texts import GRAMMARS, Judges, texts, write_vocabulary

KINDS = ("yes", "no", "unfinished", "given up", "differ")
_SHOWN = 3


def fetch(folder: Path) -> list[Path]:
    """Write the grammars of llama.cpp's sources at TAG to *folder*."""
    tarball = npm_pack(NPM[TAG], folder)
    for path, content in from_bundle(tarball, TAG, is_grammar):
        (folder / Path(path).name).write_bytes(content)
    return sorted(folder.glob("*.gbnf"))


def is_grammar(path: str) -> bool:
    """Whether *path* in a llama.cpp tree is one of its grammars."""
    return path.startswith("grammars/") and path.endswith(".gbnf")


def compare(model: Model, name: str, grammar: str, known: list[str]) -> int:
    """Print a row of the table; return the number of verdicts that differ."""
    judges = Judges(model, grammar)
    counts: Counter[str] = Counter()
    for text in tqdm(known, desc=name, leave=False):
        native, mine = judges.verdicts(text)
        counts[native.partition(",")[0]] += 1
        if native != mine and native != "given up":
            counts["differ"] += 1
            if counts["differ"] <= _SHOWN:
                print(f"{name}: {text!r}: llama.cpp says {native}, llguidance {mine}")
        elif native == mine == "yes":
            forced, n_tokens = judges.forced(text)
            counts.update(forced=forced, tokens=n_tokens)
    row = "".join(f"{counts[kind]:11}" for kind in KINDS)
    print(f"{name:20}{row}{counts['forced'] / max(counts['tokens'], 1):9.0%}", flush=True)
    return counts["differ"]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--grammars", type=Path, help="use the *.gbnf in this folder instead of fetching"
    )
    parser.add_argument(
        "--only", metavar="NAME", default="", help="only grammars whose name contains NAME"
    )
    parser.add_argument(
        "--texts",
        type=int,
        default=2_000,
        help="number of strings per grammar (default: %(default)s)",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = sorted(args.grammars.glob("*.gbnf")) if args.grammars else fetch(folder)
        every = {path.name: path.read_text(encoding="utf-8") for path in paths}
        every |= GRAMMARS
        every = {name: grammar for name, grammar in every.items() if args.only in name}
        known = {name: [*texts(g, args.texts, random.Random(name))] for name, g in every.items()}
        lines = [text for some in known.values() for text in some]
        path = write_vocabulary(folder / "words.gguf", lines, random.Random(0))
        print(f"{len(every)} grammars, {len(lines):,} strings")
        print(" " * 20 + "".join(f"{kind:>11}" for kind in KINDS) + f"{'forced':>9}")
        with Model(path, vocab_only=True) as model:
            n = sum(compare(model, name, every[name], known[name]) for name in every)
    print(f"{n} verdicts differ")
    return 1 if n else 0


if __name__ == "__main__":
    sys.exit(main())
