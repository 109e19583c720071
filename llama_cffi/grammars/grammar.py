"""What a text must look like, checked before anything is generated."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..binding.model.deep_stack import call_deep
from ..errors import GrammarError
from ..gbnf.lark import check, to_lark
from .dates import DATE_PATTERNS

__all__ = ["SPACE", "LlamaGrammar", "compiling", "narrow_dates"]

_KINDS = ("gbnf", "json_schema", "regex", "lark")
# llguidance recurses over rules and schemas, up to 4 KiB of stack for a byte: a chain of 1,000
# $refs overflows 8 MiB.
_STACK = 4
_MAX_BYTES = 2**20
_MAX_SEARCHED = 2**20  # bytes of schemas that are tried to find which part is refused
# Between two tokens of JSON at most one line break with its indentation, or one space: without
# a limit a model can go on with white space for ever.
SPACE = r"\n[ \t]{0,32}| "


@dataclass(frozen=True)
class LlamaGrammar:
    """A description of the texts that a model may answer with.

    Make one with a `from_...`; equal ones have equal hashes, and are compiled once per model.

    Attributes:
        kind: `gbnf`, `json_schema`, `regex` or `lark`.
        text: The description itself.
        root: The start rule, of GBNF.

    Raises:
        GrammarError: It is not valid, or asks for what cannot be enforced.
        ValidationError: *root* is not a str.
    """

    kind: str
    text: str
    root: str = "root"

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise GrammarError(f"kind={self.kind!r} is none of {', '.join(_KINDS)}")
        if not isinstance(self.text, str):
            raise GrammarError(f"a grammar is a text, not {type(self.text).__name__}")
        try:
            n_bytes = len(self.text.encode())
        except UnicodeEncodeError as e:
            raise GrammarError(f"the grammar cannot be encoded as UTF-8: {e}") from None
        if n_bytes > _MAX_BYTES:
            raise GrammarError(f"the grammar has {n_bytes} bytes; {_MAX_BYTES} is the limit")
        if self.kind == "gbnf":
            check(self.text, self.root)
        elif self.kind == "json_schema":
            _check_schema(self._schema())
        elif error := _error(self.compiled()):
            raise GrammarError(f"the {self.kind} grammar is not valid: {error}")

    @classmethod
    def from_string(cls, grammar: str, *, root: str = "root") -> LlamaGrammar:
        """Make one from GBNF, llama.cpp's own notation, with *root* as the start rule.

        It accepts the same texts as llama.cpp's own engine (`binding.Grammar`), but: text is
        valid UTF-8, and tokens may split a character anywhere; a control token counts as text
        only where a literal spells its name; text that could never be completed is rejected from
        its first token on.

        Raises:
            GrammarError: It does not parse, would crash llama.cpp, or matches no text.
            ValidationError: *root* is not a str.
        """
        return cls("gbnf", grammar, root)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> LlamaGrammar:
        """Make one from a file of GBNF, UTF-8.

        Raises:
            GrammarError: It is no UTF-8 or not valid.
            OSError: It cannot be read.
        """
        try:
            return cls("gbnf", Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as e:
            raise GrammarError(f"{os.fspath(path)} is no UTF-8 text: {e}") from None

    @classmethod
    def from_json_schema(cls, schema: str | Mapping[str, object] | bool) -> LlamaGrammar:
        """Make one for JSON documents that a JSON Schema describes.

        Properties come in the schema's order. Between tokens stands at most a space, or a line
        break with up to 32 characters of indentation. A schema may say otherwise in `x-guidance`,
        as llguidance documents it. Dates and times are real ones: 29 February in leap years only,
        no second 60.

        Raises:
            GrammarError: A keyword is not supported (the message names it and its place), or
                nothing can match.
        """
        if isinstance(schema, str):
            return cls("json_schema", schema)
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as e:
            raise GrammarError(f"the schema is no JSON: {e}") from None
        return cls("json_schema", text)

    @classmethod
    def from_regex(cls, pattern: str) -> LlamaGrammar:
        """Make one from a regular expression for the whole text, without look-around.

        The syntax is that of Rust's crate `regex`, which llguidance has.

        Raises:
            GrammarError: It is not valid.
        """
        return cls("regex", pattern)

    @classmethod
    def from_lark(cls, grammar: str) -> LlamaGrammar:
        """Make one from llguidance's variant of Lark, with the start rule `start`.

        A terminal takes as much text as it can, as in Lark. `%json {...}` is a JSON Schema.

        Raises:
            GrammarError: It is not valid.
        """
        return cls("lark", grammar)

    @classmethod
    def from_choices(cls, choices: Sequence[str]) -> LlamaGrammar:
        """Make one for exactly one of these texts.

        Raises:
            GrammarError: There are none, or one is no text.
        """
        if isinstance(choices, str) or not all(isinstance(c, str) for c in choices):
            raise GrammarError(f"choices={choices!r} is no list of texts")
        if not choices:
            raise GrammarError("there are no choices")
        return cls("regex", "|".join(map(_literally, choices)))

    @classmethod
    def json_object(cls) -> LlamaGrammar:
        """Make one for any JSON object."""
        return cls.from_json_schema({"type": "object"})

    def compiled(self, control_tokens: Mapping[str, int] | None = None) -> str:
        """Return the grammar in llguidance's format.

        Args:
            control_tokens: Ids by name. Literals of GBNF may stand for them.

        Raises:
            GrammarError: A schema is no JSON.
            ValidationError: *root* is not a str.
        """
        from llguidance import LLMatcher

        if self.kind == "regex":
            return str(LLMatcher.grammar_from_regex(self.text))
        if self.kind == "gbnf":
            lark = to_lark(self.text, self.root, control_tokens)
            return str(LLMatcher.grammar_from_lark(lark))
        if self.kind == "lark":
            return str(LLMatcher.grammar_from_lark(self.text))
        return _for_llguidance(self._schema())

    def _schema(self) -> Any:
        try:
            schema = json.loads(self.text, parse_constant=_no_json)
        except (ValueError, RecursionError) as e:
            raise GrammarError(f"the schema is no JSON: {e}") from None
        narrow_dates(schema)
        return schema


def narrow_dates(schema: Any) -> None:
    """Add to each date and time in *schema* the pattern that real ones match."""
    left = [schema]
    while left:
        part = left.pop()
        left += [inner for _, inner in _inner(part)]
        name = part.get("format") if isinstance(part, dict) else None
        if isinstance(name, str) and name in DATE_PATTERNS:
            others = part.get("allOf", [])
            if isinstance(others, list):
                part["allOf"] = [*others, {"pattern": DATE_PATTERNS[name]}]


def compiling(grammar: str, compile_: Callable[[], Any]) -> Any:
    """Call *compile_*, which must not raise, with the stack that llguidance needs."""
    return call_deep(compile_, _STACK * len(grammar.encode()))


def _literally(text: str) -> str:
    """Return a regular expression for *text* alone."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _for_llguidance(schema: Any) -> str:
    from llguidance import LLMatcher

    if not isinstance(schema, (dict, bool)):
        raise GrammarError(f"a schema is an object or a boolean, not {schema!r:.80}")
    document = {"allOf": [schema]} if isinstance(schema, bool) else schema
    try:
        text = json.dumps(document, ensure_ascii=False)
        return str(LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": SPACE}))
    except ValueError as e:  # nested too deeply, or a lone surrogate
        raise GrammarError(f"the schema cannot be read: {e}") from None


def _error(grammar: str) -> str:
    """Return why llguidance refuses *grammar*; empty = it does not."""
    from llguidance import LLMatcher

    refused, messages = compiling(
        grammar, lambda: LLMatcher.validate_grammar_with_warnings(grammar, None)
    )
    return str(messages[0]).strip() if refused else ""


def _check_schema(schema: Any) -> None:
    error = _error(_for_llguidance(schema))
    if error:
        place = "/".join(["#", *_place(schema, error)])
        raise GrammarError(f"the JSON schema cannot be enforced at {place}: {error}")


def _place(schema: Any, error: str) -> list[str]:
    """Find the smallest part of *schema* that alone gives *error*."""
    names = ("$schema", "$defs", "definitions")
    shared = {n: schema[n] for n in names if isinstance(schema, dict) and n in schema}
    part, left = schema, _MAX_SEARCHED
    path: list[str] = []
    while True:
        for name, inner in _inner(part):
            alone = _for_llguidance({**shared, **inner})
            left -= len(alone)
            if left < 0:
                return path
            if _error(alone) == error:
                path, part = [*path, name], inner
                break
        else:
            return path


def _inner(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the schemas directly within *schema* with their places."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword in {"const", "enum", "default", "examples"}:
            continue
        if keyword in _MAPS and isinstance(value, dict):
            parts = [(f"{keyword}/{name}", inner) for name, inner in value.items()]
        elif isinstance(value, list):
            parts = [(f"{keyword}/{i}", inner) for i, inner in enumerate(value)]
        else:
            parts = [(keyword, value)]
        yield from ((place, inner) for place, inner in parts if isinstance(inner, dict))


_MAPS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
