"""What GBNF costs per token: llguidance beside llama.cpp's own engine.

    python benchmarks/grammar.py [--models DIR] [--rounds N]

One thread, processor time in microseconds, a vocabulary of 151,936 tokens. The texts match the
grammar and are fed token by token. "mask" leaves the candidates that may come, and is the median
and the mean. A step is a mask and top-k, top-p, temperature and a draw, then going on by the token.
llama.cpp's programs draw without a mask first ("free"), and again with one if the grammar does not
allow that token ("again"); with llguidance there is a mask at each step. Steps are medians, and the
ratios those to llguidance's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mask import clock
from models import DEFAULT_FOLDER, model_path

from llama_cffi import Model, SamplerChain
from llama_cffi.binding import Candidates, Grammar
from llama_cffi.grammars import LlamaGrammar
from llama_cffi.grammars.matcher import Matcher
from llama_cffi.llama_cpp.llama_grammar import JSON_GBNF

WORDS = "the quick brown fox jumps over the lazy dog and runs into the green wood"
CASES = {
    "json": (JSON_GBNF, f'{{"a": {{"b": [1, 2.5, null, true, "{WORDS}"]}}, "c": "d"}}'),
    "list": (r'root ::= ("- " [^\r\n]+ "\n")+', f"- {WORDS}\n- {WORDS}\n"),
    "arithmetic": (
        r"""root  ::= (expr "=" ws term "\n")+
            expr  ::= term ([-+*/] term)*
            term  ::= ident | num | "(" ws expr ")" ws
            ident ::= [a-z] [a-z0-9_]* ws
            num   ::= [0-9]+ ws
            ws    ::= [ \t\n]*""".replace("\n            ", "\n"),
        "(a +12) *foo_bar /3 -((x)) = 42\na = b\n" * 2,
    ),
    "choices": ("root ::= " + " | ".join(f'"item {i}"' for i in range(1000)), "item 777"),
    "letters": (
        'root ::= "(" root ")" | letter+\nletter ::= [a-z ] ("(" root ")")?',  # not in one lexeme
        f"{WORDS}({WORDS}(a b))",
    ),
}


class Walker:
    """Walks through a text with both engines.

    Args:
        model: Whose tokens they are.
        grammar: GBNF.
        text: One that it takes.
    """

    def __init__(self, model: Model, grammar: str, text: str) -> None:
        self._matchers: list[Matcher] = []
        make = LlamaGrammar.from_string(grammar)
        self.built = clock(lambda: self._matchers.append(Matcher(model, make))) / 1e3
        self._native = Grammar(model, grammar)
        self._tokens = model.vocab.tokenize(text, add_special=False)
        self._candidates = Candidates(model)
        self._logits = np.random.default_rng(0).normal(size=len(model.vocab)).astype(np.float32)
        self._chain = SamplerChain(model).add_top_k(40).add_top_p(0.95).add_temp(0.8).add_dist(1)

    def walk(self, rounds: int) -> dict[str, list[float]]:
        """Return the times of all tokens but those of a first round."""
        times: dict[str, list[float]] = {}
        (matcher,) = self._matchers
        native, candidates, chain = self._native, self._candidates, self._chain
        for i in range(rounds + 1):
            matcher.reset()
            native.reset()
            for token in self._tokens:
                parts = {
                    "mask": self._timed(lambda: matcher.apply(candidates)),
                    "draw": clock(lambda: chain.apply(candidates)),
                    "accept": clock(lambda: matcher.accept(token)),  # noqa: B023
                    "native draw": self._timed(lambda: chain.apply(candidates)),
                    "native ask": clock(lambda: native.allows(token)),  # noqa: B023
                    "native mask": self._timed(lambda: native.apply(candidates)),
                    "native again": clock(lambda: chain.apply(candidates)),
                    "native accept": clock(lambda: native.accept(token)),  # noqa: B023
                }
                for name, value in parts.items() if i else ():
                    times.setdefault(name, []).append(value)
        return times

    def _timed(self, function: Callable[[], object]) -> float:
        self._candidates.fill(self._logits)
        return clock(function)


def row(walker: Walker, rounds: int) -> str:
    """Return a line of numbers."""
    times = walker.walk(rounds)
    native, mine = times["native mask"], times["mask"]

    def step(*names: str) -> float:
        return statistics.median(map(sum, zip(*(times[name] for name in names), strict=True)))

    masked = step("mask", "draw", "accept")
    free = step("native draw", "native ask", "native accept")
    again = step("native draw", "native ask", "native mask", "native again", "native accept")
    return (
        f"{walker.built:6.0f}"
        f" {statistics.median(mine):8.0f} {statistics.mean(mine):8.0f}"
        f" {statistics.median(native):8.0f} {statistics.mean(native):8.0f}"
        f" {masked:8.0f} {free:8.0f} {again:8.0f}"
        f" {free / masked:7.1f} {again / masked:7.1f}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="where they are kept")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{'':14} {'build':>6} {'mask':>8} {'mean':>8} {'C mask':>8} {'mean':>8}", end="")
    print(f" {'step':>8} {'C free':>8} {'C again':>8} {'ratios':>15}")
    print(f"{'':14} {'ms':>6}")
    with Model(model_path("small", args.models), vocab_only=True) as model:
        Matcher(model, LlamaGrammar.from_choices(["a"]))  # once per model
        for name, (grammar, text) in CASES.items():
            print(f"{name:14} {row(Walker(model, grammar, text), args.rounds)}", flush=True)


if __name__ == "__main__":
    main()
