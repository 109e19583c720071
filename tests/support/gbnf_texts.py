"""Strings in, near and outside a grammar's language, judged by C's engine and llguidance."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import gguf

from llama_cffi.binding import Grammar, Model
from llama_cffi.errors import GenerationError, ValidationError
from llama_cffi.gbnf.parser import Chars, Item, Rule, parse
from llama_cffi.grammars import LlamaGrammar
from llama_cffi.grammars.matcher import Matcher
from llama_cffi.grammars.tokens import Tokens
from llama_cffi.llama_cpp.llama_grammar import JSON_ARR_GBNF, JSON_GBNF

from .tiny_gguf import byte_alphabet, write_tiny

LONGEST = 300  # characters of a string
DEEPEST = 12  # nested rules, after which a sentence takes the shortest derivation

JSON = r"""
root    ::= object
object  ::= "{" space pair ("," space pair){0,2} "}"
pair    ::= string ":" space value
value   ::= string | number | array | ("true" | "false" | "null")
array   ::= "[" (value ("," space value){0,3})? "]"
string  ::= "\"" ([^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})){0,12} "\""
number  ::= "-"? ("0" | [1-9] [0-9]{0,3}) ("." [0-9]{1,3})?  # no exponent
space   ::= " "?
"""

#: Grammars that each have a feature that is easy to get wrong.
GRAMMARS = {
    "list": 'root ::= "[" item ("," item)* "]"\nitem ::= [a-c]+ | "(" item ")"',
    "one more": 'root ::= "(" root ")" | [a-z]* "z" [a-z]',
    "longer": 'root ::= "a" root "b" | "ab" | "abc"* "d"',
    "begins alike": 'root ::= "<" x\nx ::= "a" x "b" | [a-c] x "c" | "d"',
    "same first byte": 'root ::= "(" root ")" | [é]* "è" | "é" "ê"',
    "same first bytes": 'root ::= "(" root ")" | "😀"* "😁" | [一-丏]* "万"',
    "ends with itself": 'root ::= item ("," root)?\nitem ::= [0-9]+ | "(" root ")"',
    "end with each other": 'root ::= "a" x | "b"\nx ::= "c" y | ""\ny ::= "d" root | "e" x | "f"',
    "blank after blank": 'root ::= v*\nv ::= ws "(" root ")" ws | ws [a-z]+ ws\nws ::= [ \\n]*',
    "blank by itself": 'root ::= v\nv ::= "[" ws v ws "]" | [0-9]+ ws\nws ::= ([ \\n] ws)?',
    "counted": 'root ::= "(" root ")"{1,2} | [ab]{2,4} [b-d]{0,3} "."{3}',
    "counts of recursion": 'root ::= ("(" root ")"){0,3} [a-c]{1,2}',
    "empty in many ways": 'root ::= ("(" root ")" | ("a"? "b"*)* | "")* [^a]?',
    "in many ways": 'root ::= ("a"+)+ | "(" root ")" root',
    "both ends": 'root ::= [ab] | "a" root "a" | "b" root "b"',
    "comments": 'root ::= ("{" root "}" | "/*" ([^*] | "*" [^/])* "*/" | "//" [^\\n]* "\\n")*',
    "keywords": 'root ::= ("if" | "int" | [a-z]+) (" " root | "(" root ")")?',
    "any": 'root ::= "(" root ")" | . .? [^a-y] | "\\x7f\\x80"',
    "json": JSON,
    "json object": JSON_GBNF,
    "json array": JSON_ARR_GBNF,
    "one of each plane": "root ::= [\\x7F-\\x80]+ root? | [\\u07FF-\\u0800\\uFFFF-\\U00010000]*",
}


class Sentences:
    """Generates random sentences of a grammar.

    Args:
        rules: The rules that `parse` returns.
        root: Index of the root rule.
        rng: Source of randomness.
    """

    def __init__(self, rules: list[Rule], root: int, rng: random.Random) -> None:
        self._rules, self._root, self._rng = rules, root, rng
        self._heights: dict[int, float] = dict.fromkeys(range(len(rules)), math.inf)
        before: dict[int, float] = {}
        while before != self._heights:
            before = dict(self._heights)
            for index in before:
                self._heights[index] = 1 + min(map(self._height, self._ways(index, 0)), default=0)

    def text(self) -> str:
        """Return a sentence, which may be truncated."""
        found: list[str] = []
        todo: list[tuple[Item, int]] = [(self._root, 0)]
        while todo and len(found) < LONGEST:
            item, depth = todo.pop()
            if isinstance(item, Chars):
                found.append(self._character(item))
            else:
                ways = [w for w in self._ways(item, depth) if self._height(w) < math.inf]
                if depth > DEEPEST:
                    ways = [min(ways, key=self._height)]
                todo += [(part, depth + 1) for part in reversed(self._rng.choice(ways))]
        return "".join(found)

    def _ways(self, index: int, depth: int) -> list[list[Item]]:
        rule = self._rules[index]
        if rule.repeat is None:
            return rule.alternatives
        item, low, high = rule.repeat
        most = low if depth > DEEPEST else low + 4 if high is None else min(high, low + 20)
        return [[item] * n for n in range(low, most + 1)]

    def _height(self, way: list[Item]) -> float:
        heights = (
            self._heights[item] if isinstance(item, int) else 0 if _possible(item) else math.inf
            for item in way
        )
        return max(heights, default=0)

    def _character(self, chars: Chars) -> str:
        bounds = [c for low, high in chars.ranges for c in (low - 1, low, high, high + 1)]
        some = [self._rng.randint(low, high) for low, high in chars.ranges]
        known = [c for c in [*bounds, *some, *b'a "(\n', 0xE9, 0x4E00, 0x1F600] if _takes(chars, c)]
        return chr(self._rng.choice(known))


def _takes(chars: Chars, c: int) -> bool:
    inside = any(low <= c <= high for low, high in chars.ranges)
    return 0 < c < 0x110000 and not 0xD800 <= c < 0xE000 and inside != chars.negated


def _possible(chars: Chars) -> bool:
    return chars.negated or any(_takes(chars, c) for bounds in chars.ranges for c in bounds)


def texts(grammar: str, n: int, rng: random.Random) -> Iterator[str]:
    """Yield *n* strings: sentences, sentences with errors, and random characters of the grammar."""
    sentences = Sentences(*parse(grammar), rng)
    known = [sentences.text() for _ in range(n // 2)]
    yield from known
    alphabet = sorted({*"".join(known), "a", " "})
    for _ in range(n // 4):
        text = [*rng.choice(known)]
        for _ in range(rng.randint(1, 3)):
            at = rng.randint(0, len(text))
            text[at : at + rng.randint(0, 2)] = rng.choices(alphabet, k=rng.randint(0, 2))
        yield "".join(text)
    for _ in range(n - n // 2 - n // 4):
        yield "".join(rng.choices(alphabet, k=rng.randint(0, 8)))


def write_vocabulary(path: Path, known: Iterable[str], rng: random.Random) -> Path:
    """Write a model whose tokens are bytes, and characters and substrings of *known*.

    Whole characters, as C's engine rejects the first byte of some that `[^...]` accepts.
    """
    lines = [line for line in known if line]
    words = {character for line in lines for character in line if not character.isascii()}
    for line in rng.choices(lines, k=1000):
        start = rng.randrange(len(line))
        words.add(line[start : start + rng.randint(2, 6)])
    words -= {word for word in words if len(word.encode()) == 1}
    alphabet = byte_alphabet()

    def are_normal(writer: gguf.GGUFWriter) -> None:
        types = writer.kv_data[0]["tokenizer.ggml.token_type"].value
        types[-len(words) :] = [gguf.TokenType.NORMAL] * len(words)

    spelled = ["".join(alphabet[byte] for byte in word.encode()) for word in sorted(words)]
    return write_tiny(path, n_layer=1, n_embd=32, words=spelled, edit=are_normal)


class Judges:
    """C's engine and llguidance, applied to the same strings.

    Args:
        model: The model whose tokens they use.
        grammar: GBNF source.
    """

    def __init__(self, model: Model, grammar: str) -> None:
        self.native = Grammar(model, grammar)
        self.matcher = Matcher(model, LlamaGrammar.from_string(grammar))
        self._spell = Tokens.of(model).spell

    def verdicts(self, text: str) -> tuple[str, str]:
        """Return both verdicts on *text*: `yes`, `unfinished`, or the token that is rejected.

        `given up`: the text has too many parses.
        """
        tokens = self._spell(text.encode())
        return _verdict(self.native, tokens), _verdict(self.matcher, tokens)

    def forced(self, text: str) -> tuple[int, int]:
        """Return the numbers of forced tokens and of all tokens in *text*, which both accept."""
        tokens = self._spell(text.encode())
        self.matcher.reset()
        self.native.reset()
        n = 0
        for token in tokens:
            if forced := self.matcher.forced():
                assert self.native.allows(forced[0]), (text, forced)
                n += 1
            self.matcher.accept(token)
            self.native.accept(token)
        return n, len(tokens)


def _verdict(judge: Grammar | Matcher, tokens: list[int]) -> str:
    judge.reset()
    for i, token in enumerate(tokens):
        try:
            judge.accept(token)
        except ValidationError:
            return f"no, token {i}"
        except GenerationError:
            return "given up"
    return "yes" if judge.complete else "unfinished"
