"""Random patterns, schemas and documents, and whether a grammar takes a document."""

from __future__ import annotations

import itertools
import json
import random
import re
import warnings
from collections.abc import Iterator
from typing import Any

import jsonschema
from llguidance import LLMatcher, LLTokenizer

from llama_cffi import GrammarError
from llama_cffi.grammars import LlamaGrammar

__all__ = ["Taker", "random_document", "random_pattern", "random_schema", "random_text", "wrong"]

# What JSON writes in its own way, what classes of ECMA-262 tell apart, and others.
CHARACTERS = [
    *"abZ07_ -{[]^&'/",
    '"',
    "\\",
    "\n",
    "\t",
    "\0",
    "\1",
    "\7",
    "\x1b",
    "\x7f",
    "é",
    "😀",
]
VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 5, 1.5, "", "a", "b", "ab", 'q"']
_JSON = {"ensure_ascii": False}


class Taker:
    """Tells which documents a grammar takes, byte by byte.

    Raises:
        GrammarError: The grammar does not compile.
    """

    _bytes = LLTokenizer("byte")

    def __init__(self, grammar: LlamaGrammar) -> None:
        self._start = LLMatcher(self._bytes, grammar.compiled(), log_level=0)
        if self._start.is_error():
            raise GrammarError(self._start.get_error())

    def takes_text(self, text: str) -> bool:
        data = list(text.encode())
        matcher = self._start.deep_copy()
        taken: bool = matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
        return taken

    def takes(self, document: Any) -> bool:
        """Return whether a document is taken in some order of its keys."""
        texts = (
            json.dumps(one, ensure_ascii=False).replace("\x7f", "\\u007f")
            for one in itertools.islice(_orders(document), 200)
        )
        return any(map(self.takes_text, texts))


def wrong(schema: Any, documents: list[Any]) -> list[tuple[Any, bool]]:
    """Return the documents for which the grammar does not say what jsonschema says.

    A schema that cannot be enforced has none, unless its error says that nothing fits.
    """
    validator = jsonschema.Draft202012Validator(schema)
    try:
        taker = Taker(LlamaGrammar.from_json_schema(schema))
    except GrammarError as e:
        if "nsatisfiable" not in str(e):
            return []
        return [(document, True) for document in documents if validator.is_valid(document)]
    wanted = [(document, validator.is_valid(document)) for document in documents]
    return [(document, valid) for document, valid in wanted if taker.takes(document) != valid]


def _orders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            for inner in itertools.product(*(_orders(value[name]) for name in names)):
                yield dict(zip(names, inner, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*map(_orders, value)))
    else:
        yield value


# Patterns


def random_pattern(rng: random.Random) -> tuple[str, re.Pattern[str]]:
    """Return a pattern, and how Python writes it: ASCII only, `$` at the very end."""
    while True:
        body = _alternatives(rng, 2)
        if "|" in body and rng.random() < 0.8:
            body = f"(?:{body})"
        start, end = rng.choice(["^", "^", "^", ""]), rng.choice(["$", "$", "$", ""])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # [[ and && in classes
                judge = re.compile(start + body + ("\\Z" if end else ""), re.ASCII)
        except re.error:  # a range that ends before it begins
            continue
        return start + body + end, judge


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.choice([0, 1, 1, 2, 2, 3, 4, 6])))


def _alternatives(rng: random.Random, depth: int) -> str:
    return "|".join(_sequence(rng, depth) for _ in range(rng.choice([1, 1, 1, 2])))


def _sequence(rng: random.Random, depth: int) -> str:
    counts = ["", "", "", "", "", "*", "+", "?", "{2}", "{1,3}"]
    return "".join(_atom(rng, depth) + rng.choice(counts) for _ in range(rng.randint(0, 3)))


def _atom(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if kind < 0.35:
        return _character(rng)
    if kind < 0.7:
        return _class(rng)
    if kind < 0.8:
        return "\\" + rng.choice("dwsDWS")
    if kind < 0.88 or not depth:
        return "."
    return f"(?:{_alternatives(rng, depth - 1)})"


def _class(rng: random.Random) -> str:
    ranges = ["a-z", "0-9", "A-Z", "!-~", " -~", r"\x00-\x1f", r"\x20-\x7e", r"#-\[", r"\]-~"]
    items = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.random()
        items.append(
            _character(rng)
            if kind < 0.6
            else rng.choice(ranges)
            if kind < 0.75
            else "\\" + rng.choice("dwsDWS")
        )
    return f"[{rng.choice(['', '^'])}{''.join(items)}]"


def _character(rng: random.Random) -> str:
    c = rng.choice(CHARACTERS)
    if c in "\\-{[]^.":
        return "\\" + c
    if ord(c) < 32 or c == "\x7f":
        return rng.choice(["\\x{:02x}", "\\u{:04x}"]).format(ord(c))
    return c


# Schemas with the keywords that are rewritten


def random_document(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.random()
    if kind < 0.55 or not depth:
        return rng.choice(VALUES)
    if kind < 0.75:
        return [random_document(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {k: random_document(rng, depth - 1) for k in rng.sample("abc", rng.randint(0, 3))}


def random_schema(rng: random.Random) -> dict[str, Any]:
    schema = _plain(rng, 2)
    schema = schema if isinstance(schema, dict) else {}
    for _ in range(rng.choice([1, 1, 2])):
        schema |= _rewritten(rng)
    if rng.random() < 0.3:
        schema = {"properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
        schema["type"] = "object"
    return schema


def _plain(rng: random.Random, depth: int) -> Any:
    bounds = [{"minimum": 1}, {"maximum": 1}, {"exclusiveMinimum": 0}, {"minimum": 0, "maximum": 2}]
    lengths = [
        {},
        {"maxItems": 2},
        {"maxItems": 3},
        {"minItems": 1},
        {"minItems": 1, "maxItems": 3},
    ]
    texts = [{"minLength": 1}, {"maxLength": 1}, {"pattern": "^a"}, {"enum": ["a", "b"]}]
    simple: list[Any] = [
        {"type": rng.choice(["null", "boolean", "string", "integer", "number"])},
        {"enum": rng.sample(VALUES, rng.randint(1, 4))},
        {"const": rng.choice(VALUES)},
        {"type": rng.choice(["integer", "number"]), **rng.choice(bounds)},
        {"type": "string", **rng.choice(texts)},
        rng.choice([True, {}]),
    ]
    if not depth or rng.random() < 0.45:
        return rng.choice(simple)
    kind = rng.random()
    if kind < 0.25:
        return {"type": "array", "items": _plain(rng, depth - 1), **rng.choice(lengths)}
    if kind < 0.75:
        return _object(rng, depth)
    parts = [_plain(rng, depth - 1) for _ in range(2)]
    return {rng.choice(["anyOf", "allOf", "oneOf"]): parts}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = sorted(rng.sample("abc", rng.randint(0, 3)))
    schema: dict[str, Any] = {"properties": {name: _plain(rng, depth - 1) for name in names}}
    if rng.random() < 0.85:
        schema["type"] = "object"
    if rng.random() < 0.5:
        schema["required"] = rng.sample(names or ["a"], 1)
    if rng.random() < 0.5:
        schema["additionalProperties"] = rng.choice([False, False, {"type": "integer"}])
    return schema


def _test(rng: random.Random, depth: int = 1) -> dict[str, Any]:
    """Return a schema whose complement can mostly be written."""
    name = rng.choice("abc")
    types = ["null", "boolean", "string", "number", "object", ["array", "null"]]
    options: list[dict[str, Any]] = [
        {"type": rng.choice(types)},
        {"enum": rng.sample(VALUES, rng.randint(1, 3))},
        {"const": rng.choice(VALUES)},
        {"required": [name]},
        rng.choice([{"minimum": 1}, {"minLength": 1}, {"minItems": 1}, {"maxItems": 1}]),
        {"type": "integer", "minimum": 1},
    ]
    if depth:
        options += 2 * [{"properties": {name: _test(rng, depth - 1)}, "required": [name]}]
        options += [{"properties": {name: _test(rng, 0)}}]
        options += [{rng.choice(["anyOf", "allOf"]): [_test(rng, 0), _test(rng, 0)]}]
    return rng.choice(options)


def _rewritten(rng: random.Random) -> dict[str, Any]:
    name, other = rng.sample("abc", 2)
    names = [{"enum": ["a", "b"]}, {"pattern": "^[ab]"}, {"maxLength": 1}, {"const": "a"}, False]
    contained = {"contains": _test(rng, 0), "maxItems": rng.choice([1, 2, 3])}
    if rng.random() < 0.4:
        contained["minContains"] = rng.choice([0, 2])
    if rng.random() < 0.4:
        contained["maxContains"] = rng.choice([0, 1, 2])
    condition = {"if": _test(rng), "then": _plain(rng, 1)}
    if rng.random() < 0.5:
        condition["else"] = _plain(rng, 1)
    items = rng.choice([{"enum": ["a", 1, None]}, {"type": "boolean"}])
    return rng.choice(
        [
            {"not": _test(rng)},
            condition,
            {"dependentRequired": {name: [other]}},
            {"dependentSchemas": {name: _plain(rng, 1)}},
            {"propertyNames": rng.choice(names)},
            contained,
            {"oneOf": [_test(rng), _test(rng)]},
            {"items": items, "uniqueItems": True},
        ]
    )
