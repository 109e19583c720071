from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.errors import GenerationError, GrammarError, ValidationError
from llama_cffi.gbnf.machine import MAX_DEPTH, Machine
from llama_cffi.gbnf.normal import MAX_ITEMS, Normal, normalize
from llama_cffi.gbnf.parser import MAX_GRAMMAR, MAX_NESTING, parse

# Random grammars as Python values, their GBNF, and a simple reference matcher.

Node = tuple[Any, ...]  # ("lit", text) ("class", ranges, negated) ("alt", [[Node]]) ("rep", ...)
ALPHABET = 'ab"é\n𝄞'
RANGES = ["aa", "ab", "bz", "éé", "\n\n", '""', "a\U0010ffff"]


def random_node(rng: random.Random, depth: int, rule: int, n_rules: int) -> Node:
    kind = rng.randrange(9 if depth else 4)
    if kind < 2:
        return "lit", "".join(rng.choices(ALPHABET, k=rng.randint(0, 3)))
    if kind == 2:
        return "class", rng.sample(RANGES, rng.randint(1, 2)), rng.random() < 0.3
    if kind == 3:
        if rule + 1 < n_rules:
            return "ref", rng.randrange(rule + 1, n_rules)
        return "class", [], True  # .
    if kind == 4:  # any rule, after a character
        return "alt", [[("lit", "a"), ("ref", rng.randrange(n_rules))]]
    if kind < 7:
        return random_alternatives(rng, depth - 1, rule, n_rules)
    low = rng.randint(0, 2)
    high = rng.choice([None, low, low + rng.randint(0, 2)])
    return "rep", random_node(rng, depth - 1, rule, n_rules), low, high


def random_alternatives(rng: random.Random, depth: int, rule: int, n_rules: int) -> Node:
    ways = [
        [random_node(rng, depth, rule, n_rules) for _ in range(rng.randint(0, 3))]
        for _ in range(rng.randint(1, 3))
    ]
    return "alt", ways


def random_grammar(rng: random.Random) -> list[Node]:
    n_rules = rng.randint(1, 3)
    return [random_alternatives(rng, 2, i, n_rules) for i in range(n_rules)]


def character(c: str, rng: random.Random, inside: str) -> str:
    if c in inside + "\\":
        return f"\\{c}"
    named = {"\n": "\\n"}.get(c, c)
    code = f"\\x{ord(c):02X}" if ord(c) < 256 else f"\\U{ord(c):08x}"
    return rng.choice([c, named, code])


def write(node: Node, rng: random.Random) -> str:
    kind = node[0]
    if kind == "lit":
        return '"' + "".join(character(c, rng, '"') for c in node[1]) + '"'
    if kind == "class":
        if not node[1]:
            return "."
        ranges = (f"{character(a, rng, '[]-')}-{character(b, rng, '[]-')}" for a, b in node[1])
        return f"[{'^' * node[2]}{''.join(ranges)}]"
    if kind == "ref":
        return f"rule-{node[1]}" if node[1] else "root"
    if kind == "rep":
        _, item, low, high = node
        short = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((low, high))
        count = f"{{{low}}}" if high == low else f"{{{low}, {'' if high is None else high}}}"
        return f"({write(item, rng)})" + (short or count)
    space = rng.choice(["", " ", " # | (\n\t"])
    return f"({space}{'|'.join(write_sequence(way, rng) for way in node[1])})"


def write_sequence(way: list[Node], rng: random.Random) -> str:
    return " ".join(write(node, rng) for node in way) or '""'


def write_grammar(grammar: list[Node], rng: random.Random) -> str:
    names = ["root", *(f"rule-{i}" for i in range(1, len(grammar)))]
    rules = [
        f"{name} ::= {' | '.join(write_sequence(way, rng) for way in ways)}"
        for name, (_, ways) in zip(names, grammar, strict=True)
    ]
    return rng.choice(["\n", "\r\n", " # end\n\n"]).join(rules)


class Reference:
    """Naive matcher: the set of offsets at which a node can end."""

    def __init__(self, grammar: list[Node], text: str) -> None:
        self.grammar, self.text = grammar, text

    def matches(self) -> bool:
        return len(self.text) in self.ends(self.grammar[0], 0)

    def ends(self, node: Node, at: int) -> set[int]:
        kind, text = node[0], self.text
        if kind == "lit":
            return {at + len(node[1])} if text.startswith(node[1], at) else set()
        if kind == "class":
            if at == len(text):
                return set()
            inside = any(a <= text[at] <= b for a, b in node[1])
            return {at + 1} if inside != node[2] else set()
        if kind == "ref":
            return self.ends(self.grammar[node[1]], at)
        if kind == "alt":
            return {end for way in node[1] for end in self.sequence(way, {at})}
        _, item, low, high = node
        found, now = set(), {at}
        for count in range(len(text) + 1 + low if high is None else high + 1):
            if count >= low:
                found |= now
            now = self.sequence([item], now)
        return found

    def sequence(self, way: list[Node], starts: set[int]) -> set[int]:
        for node in way:
            starts = {end for start in starts for end in self.ends(node, start)}
        return starts


def random_strings(grammar: list[Node], rng: random.Random, n: int) -> Iterator[tuple[str, bool]]:
    for _ in range(n):
        text = "".join(rng.choices(ALPHABET, k=rng.randint(0, 6)))
        yield text, Reference(grammar, text).matches()


def machine_of(text: str, root: str = "root") -> Machine:
    return Machine(normalize(text, *parse(text, root)))


def empty_ways_agree(normal: Normal) -> bool:
    """Whether each rule matches the empty string in one way, or not at all."""
    for rule in normal.rules:
        empty = [
            way
            for way in rule.alternatives
            if all(isinstance(item, int) and normal.rules[item].nullable for item in way)
        ]
        if len(empty) != rule.nullable:
            return False
    return True


def accepts(machine: Machine, text: str) -> bool:
    state = machine.start
    for byte in text.encode():
        following = machine.feed(state, bytes([byte]))
        if following is None:
            return False
        state = following
    return machine.complete(state)


def reads(text: str, *inputs: str) -> list[bool]:
    machine = machine_of(text)
    return [accepts(machine, line) for line in inputs]


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_machine_matches_the_reference(rng: random.Random) -> None:
    grammar = random_grammar(rng)
    text = write_grammar(grammar, rng)
    normal = normalize(text, *parse(text))
    assert empty_ways_agree(normal), text
    machine = Machine(normal)
    for line, expected in random_strings(grammar, rng, 10):
        assert accepts(machine, line) is expected, (text, line)
    # Feeding a whole piece gives the same result as single bytes.
    line = "".join(rng.choices(ALPHABET, k=4))
    state = machine.feed(machine.start, line.encode())
    assert (state is not None and machine.complete(state)) is accepts(machine, line)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='root:= "[]()^-|*+?{},.0123ab\\xuU\n\r\t#<>!_é\0\ud800'), st.booleans())
def test_any_string_is_parsed_or_rejected(text: str, as_rule: bool) -> None:
    if as_rule:
        text = "root ::= " + text
    try:
        normal = normalize(text, *parse(text))
    except GrammarError:
        return
    again = normalize(normal.text(), *parse(normal.text()))
    assert again.rules[0].nullable == normal.rules[0].nullable


SILENT = """
    import json, sys
    from llama_cffi.binding import Grammar, Model

    model = Model(sys.argv[1], n_gpu_layers=0)
    vocab = model.vocab
    checked = 0
    for text, lines in json.load(open(sys.argv[2], encoding="utf-8")):
        grammar = Grammar(model, text)
        if not grammar._in_c:
            continue
        for line, expected in lines:
            grammar.reset()
            for token in vocab.tokenize(line):
                for other in range(0, vocab.n_tokens, 5):
                    if not vocab.is_eog(other):
                        piece = vocab.token_to_piece(other, True)
                        mine = grammar._machine.feed(grammar._state, piece) is not None
                        assert mine == grammar._c_allows(other), (text, line, piece)
                if not grammar.allows(token):
                    assert not expected, (text, line)
                    break
                grammar.accept(token)
            else:
                assert grammar.complete == expected, (text, line)
                assert grammar._c_allows(vocab.eos) == expected, (text, line)
            checked += 1
        grammar.close()
    print(checked)
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_c_accepts_every_grammar_silently_and_agrees(
    child: Child, tiny_model: Path, tmp_path: Path, build: str
) -> None:
    rng = random.Random(build)
    cases = []
    for _ in range(150):
        grammar = random_grammar(rng)
        cases.append((write_grammar(grammar, rng), list(random_strings(grammar, rng, 4))))
    for text in ('root ::= "\\x00"', 'root ::= [^\\x00-\\x1F"-\\[\\]]', "root ::= .{0,10000}"):
        cases.append((text, []))
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases), encoding="utf-8")
    result = child(SILENT, tiny_model, path, LLAMA_CFFI_BUILD=build)
    assert (result.stderr, result.returncode) == ("", 0)
    assert int(result.stdout) > 450, "too few random grammars were checked by C"


def test_syntax() -> None:
    assert reads('root ::= "a" | [b-d-]', "a", "b", "-", "e") == [True, True, True, False]
    assert reads("root ::= [-a] [^\\]]", "-x", "a]", "b") == [True, False, False]
    assert reads("root ::= [--0]", "-", ".", "1") == [True, True, False]
    assert reads('root ::= x\nx ::= "a"{2} | "b"{1,} "c"{0,2}', "aa", "a", "bbcc") == [1, 0, 1]
    assert reads('root ::= "ab"+ "c"*?', "abab", "abb", "abccc") == [True, False, True]
    assert reads("# nothing\n\n  root  ::=\n\t. # any\n\n", "é", "ab") == [True, False]
    assert reads('root ::= ("a"\n|\n"b")', "a", "b") == [True, True]
    assert reads('root ::= "\\x41\\u00e9\\U0001F600\\t\\"\\\\"', 'Aé😀\t"\\') == [True]
    assert reads('root ::= "a"{0} "b"', "b", "ab") == [True, False]
    assert accepts(machine_of('start-1 ::= "a"', "start-1"), "a")


@pytest.mark.parametrize(
    "text",
    ['root ::= ("a"?)*', 'root ::= (("a" | "b"?)* "a"?)+', 'root ::= x* "a"\nx ::= "a"? "b"?'],
)
def test_repetition_of_nullable_items(text: str) -> None:
    """Old builds overflow their stack on these grammars."""
    assert reads(text, "aba", "aaa")[1]


def test_common_prefixes_are_shared() -> None:
    words = " | ".join(f'"{i * 7919}"' for i in range(1, 3000))
    machine = machine_of(f"root ::= {words}")
    assert len(machine.start.stacks) < 10
    assert accepts(machine, "7919")
    assert not accepts(machine, "7918")
    doubling = 'root ::= "-" root "b" | "-" root "c" | "d"'
    assert reads(doubling, "-" * 100 + "d" + "bc" * 50) == [True]
    optional = 'root ::= "a" "b"? | "a" "c"? | "a"'
    assert empty_ways_agree(normalize(optional, *parse(optional)))
    assert reads(optional, "a", "ab", "ac", "abc") == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", None, "no rule 'root'"),
        ("start ::= [a]", None, "it has: start"),
        ('root ::= "a', "1:10", 'not closed; add `"`'),
        ("root ::= [a", "1:10", "not closed; add `]`"),
        ('root ::= ("a"\nx ::= "b"', "1:10", "not closed"),
        ('root ::= "a")', "1:13", "unexpected"),
        ("root ::= []", "1:10", "class is empty"),
        ("root ::= [z-a]", "1:11", "range is reversed"),
        ('root ::= "\\d"', "1:11", "unknown escape"),
        ('root ::= "\\x4"', "1:11", "2 hexadecimal digits"),
        ('root ::= "\\U00110000"', "1:11", "above U+10FFFF"),
        ('root ::= "\\ud83d\\ude00"', "1:17", "is a surrogate"),
        ("root ::= 'a'", "1:10", "double quotes"),
        ('root = "a"', "1:6", "::="),
        ('root ::= "a"\n  | "b"', "2:3", "end of the line before"),
        ('root ::= "a" x ::= "b"', "1:14", "its own line"),
        ("root ::= itme\nitem ::= [a]", "1:10", "did you mean 'item'"),
        ("root ::= my_item", "1:12", "`_`"),
        ('root ::= "a"\r\nroot ::= "b"', "2:1", "line 1"),
        ("root ::= *", "1:10", "nothing before"),
        ('root ::= ""*', "1:12", "nothing before"),
        ('root ::= "a"{3,1}', "1:13", "less than the minimum"),
        ('root ::= "a"{x}', "1:13", "{3,5}"),
        ('root ::= "a"{0,100000}', "1:13", "10000"),
        ('root ::= "a"{10001}', "1:13", "10000"),
        ('root ::= "a"{٣}', "1:13", "{3,5}"),
        ("root ::= <[7]>", "1:10", "token references"),
        ("root ::= !<think>", "1:10", "token references"),
        ('root ::= root "a" | "b"', "1:1", "left recursion: root -> root"),
        ('root ::= a\na ::= "x"? b "y"\nb ::= a', "2:1", "left recursion: a -> b -> a"),
        ('root ::= n root "a" | "b"\nn ::= m\nm ::= "c"*', "1:1", "left recursion"),
        ('root ::= "a\0"', "1:12", "not allowed in a grammar"),
        ('root ::= "\ud800"', "1:11", "not allowed in a grammar"),
        ("root ::= root", "1:1", "left recursion"),
        ('root ::= "a" | x\nx ::= y\ny ::= x', "2:1", "left recursion"),
        ("root ::= " + "(" * 60_000, "1:210", f"{MAX_NESTING} nested parentheses"),
        ("root ::= " + '"a"' + "*" * 5000, None, "begin with one another"),
        ("root ::= [a]{10000}{10000} " * 4, None, "::="),
        ("root ::= " + "[a]{10000} " * 11, None, f"{MAX_ITEMS}"),
        ('root ::= "' + "a" * MAX_ITEMS + '"', None, f"{MAX_ITEMS}"),
        (" " * (MAX_GRAMMAR + 1), None, f"{MAX_GRAMMAR}"),
    ],
)
def test_invalid_grammars(text: str, where: str | None, what: str) -> None:
    with pytest.raises(GrammarError) as caught:
        normalize(text, *parse(text))
    message = str(caught.value)
    assert what in message
    if where:
        assert message.startswith(f"line {where}: ")
        _, excerpt, caret = message.split("\n")
        line, column = map(int, where.split(":"))
        source = text.splitlines()[line - 1] + " "
        shown = source[column - 1]
        marked = excerpt.ljust(len(caret))[len(caret) - 1]
        assert marked == (shown if shown.isprintable() else "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("text", [None, 7, b'root ::= "a"', ["root"]])
def test_grammar_must_be_str(text: Any) -> None:
    with pytest.raises(ValidationError, match="str"):
        parse(text)
    with pytest.raises(ValidationError, match="str"):
        parse('root ::= "a"', text)


def test_too_many_leading_derivations() -> None:
    """C's left recursion check takes 2^60 steps here, as no prefixes can be shared."""
    rules = "".join(f'r{i} ::= r{i + 1} "x" | "y"? r{i + 1}\n' for i in range(60))
    text = f"root ::= r0\n{rules}r60 ::= [a]"
    with pytest.raises(GrammarError, match="can begin in"):
        normalize(text, *parse(text))


@pytest.mark.parametrize(
    "rules",
    [
        '"-" root "b" | [-+] root "c" | "d"',
        '("a"+)+',
        '("<" (("a"*)* "b"*)* ">")*',
        '("a" | [ab] | "aa" | "ab"? "a")* "\\n"',
    ],
)
def test_exponential_growth_is_detected(rules: str) -> None:
    assert machine_of(f"root ::= {rules}").explodes()


@pytest.mark.parametrize(
    "rules",
    [
        '("a" | "b")* "c" root?',
        '" "* ("-" " "*)? " "* "b"',
        '("\\"" [^"]* "\\"" " "* ","? " "*)*',
        " | ".join(f'"{i}"' for i in range(500)),
        '[a-z]{0,500} "."{3}',
    ],
)
def test_ordinary_grammars_do_not_grow(rules: str) -> None:
    assert not machine_of(f"root ::= {rules}").explodes()


def test_parallel_parses_are_bounded() -> None:
    machine = machine_of('root ::= "-" root "b" | [-+] root "c" | "d"')
    with pytest.raises(GenerationError, match="parallel ways"):
        accepts(machine, "-" * 50)


def test_depth_is_bounded() -> None:
    machine = machine_of('root ::= "(" root ")" | "a"')
    assert accepts(machine, "(" * 900 + "a" + ")" * 900)
    with pytest.raises(GenerationError, match="deep"):
        accepts(machine, "(" * (MAX_DEPTH + 1))
    # Right recursion does not add depth.
    assert accepts(machine_of('root ::= "a" root?'), "a" * 3 * MAX_DEPTH)


def test_description_of_next_characters() -> None:
    machine = machine_of('root ::= "a" [0-9]? | . "\\n"')
    assert machine.describe(machine.start) in ('"a", .', '., "a"')
    state = machine.feed(machine.start, b"a")
    assert state is not None
    assert set(machine.describe(state).split(", ")) == {"[0-9]", "the end", '"\\x0A"'}
