"""What GBNF costs per token: llguidance compared with llama.cpp's own engine.

    python benchmarks/grammar.py [--models DIR] [--tokens N]

One thread, processor time in microseconds, a vocabulary of 151,936 tokens and random weights.
"build" is the time to compile a grammar for a model, in milliseconds. "mask" is the time to compute
the allowed tokens, at each token of a text that matches: median and mean. "sample" is the mean of
`SamplerChain.sample` for tokens sampled from the logits of one output, with top-k, top-p,
temperature and accepting the token. llama.cpp samples without a mask first, and again with one if
the grammar rejects the token; "again" is the fraction of such tokens.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mask import clock
from models import DEFAULT_FOLDER, model_path

from llama_cffi import Engine, SamplerChain
from llama_cffi.binding import Candidates, Context, Grammar, Model
from llama_cffi.grammars import Constraint, LlamaGrammar
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
        'root ::= "(" root ")" | letter+\nletter ::= [a-z ] ("(" root ")")?',  # not a single lexeme
        f"{WORDS}({WORDS}(a b))",
    ),
}


def masks(model: Model, grammar: str, text: str) -> tuple[float, list[float], list[float]]:
    """Return the milliseconds to build, and the mask times of llguidance and of llama.cpp."""
    matchers: list[Matcher] = []
    made = LlamaGrammar.from_string(grammar)
    built = clock(lambda: matchers.append(Matcher(model, made))) / 1e3
    matcher, native = matchers[0], Grammar(model, grammar)
    candidates = Candidates(model)
    logits = np.zeros(len(model.vocab), np.float32)
    mine, other = [], []
    for _ in range(2):
        matcher.reset()
        native.reset()
        for token in model.vocab.tokenize(text, add_special=False):
            mine.append(clock(matcher.allowed))
            candidates.fill(logits)
            other.append(clock(lambda: native.apply(candidates)))
            matcher.accept(token)
            native.accept(token)
    native.close()
    n = len(mine) // 2  # the first pass builds llguidance's lexer
    return built, mine[n:], other[n:]


class CountingGrammar:
    """A grammar of llama.cpp that counts how often it is applied."""

    def __init__(self, model: Model, grammar: str) -> None:
        self.n_applied = 0
        self._grammar = Grammar(model, grammar)
        self.model, self.allows = model, self._grammar.allows
        self.accept, self.reset = self._grammar.accept, self._grammar.reset

    def apply(self, candidates: Candidates) -> None:
        """Count the call and apply the grammar."""
        self.n_applied += 1
        self._grammar.apply(candidates)


def samples(context: Context, add: Callable[[SamplerChain], object], n: int) -> float:
    """Return the mean time to sample *n* tokens, starting again after the end of a text."""
    vocab = context.model.vocab
    total = 0.0
    with SamplerChain(context.model) as chain:
        add(chain.add_top_k(40).add_top_p(0.95).add_temp(0.8).add_dist(1))
        tokens: list[int] = []
        for _ in range(n):
            total += clock(lambda: tokens.append(chain.sample(context)))
            if vocab.is_eog(tokens[-1]):
                chain.reset()
    return total / n


def row(context: Context, grammar: str, text: str, n: int) -> str:
    """Return a row of the table."""
    model = context.model
    built, mine, other = masks(model, grammar, text)
    constraint = Constraint(model, LlamaGrammar.from_string(grammar))
    counted = CountingGrammar(model, grammar)
    masked = samples(context, lambda chain: chain.add_mask(constraint), n)
    native = samples(context, lambda chain: chain.add_grammar(counted), n)
    ratios = statistics.mean(other) / statistics.mean(mine), native / masked
    return (
        f"{built:6.0f} {statistics.median(mine):7.0f} {statistics.mean(mine):7.0f}"
        f" {statistics.median(other):7.0f} {statistics.mean(other):7.0f} {ratios[0]:6.1f}"
        f" {masked:7.0f} {native:7.0f} {counted.n_applied / n:6.0%} {ratios[1]:6.1f}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    parser.add_argument("--tokens", type=int, default=200, help="number of tokens to sample")
    args = parser.parse_args()
    print(
        f"{'':12} {'build':>6} {'mask':>7} {'mean':>7} {'C mask':>7} {'mean':>7} {'ratio':>6}",
        end="",
    )
    print(f" {'sample':>7} {'C':>7} {'again':>6} {'ratio':>6}")
    with Engine(model_path("small", args.models), n_ctx=64, n_threads=1) as engine:
        engine.generate("a", max_tokens=1)
        Matcher(engine.model, LlamaGrammar.from_choices(["a"]))  # once per model
        for name, (grammar, text) in CASES.items():
            print(f"{name:12} {row(engine.context, grammar, text, args.tokens)}", flush=True)


if __name__ == "__main__":
    main()
