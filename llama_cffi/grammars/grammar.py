"""LlamaGrammar: descriptions of answers, validated before any generation."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..binding.model.deep_stack import call_deep
from ..errors import GrammarError
from ..gbnf.lark import check, to_lark
from ..schema import close_objects
from .enforceable import enforceable
from .integers import written

__all__ = ["LlamaGrammar", "compiling"]

_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_KINDS = ("gbnf", "json_schema", "regex", "lark")
# llguidance recurses over rules and schemas and needs up to 4 KiB of stack per byte: a chain of
# 1,000 $refs overflows 8 MiB.
_STACK = 4
_MAX_BYTES = 2**20
_MAX_SEARCHED = 2**20  # bytes of schemas to try when locating an error


@dataclass(frozen=True)
class LlamaGrammar:
    """A grammar that an answer must match.

    Create one with a `from_...` method. Equal grammars have equal hashes and are compiled once per
    model.

    Attributes:
        kind: `gbnf`, `json_schema`, `regex` or `lark`.
        text: The source of the grammar.
        root: The start rule, for GBNF.

    Raises:
        GrammarError: The grammar is not valid, or cannot be enforced.
        ValidationError: *root* is not a str.
    """

    kind: str
    text: str
    root: str = "root"

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise GrammarError(f"kind={self.kind!r} must be one of {', '.join(_KINDS)}")
        if not isinstance(self.text, str):
            raise GrammarError(f"a grammar must be a str, got {type(self.text).__name__}")
        try:
            n_bytes = len(self.text.encode())
        except UnicodeEncodeError as e:
            raise GrammarError(f"the grammar cannot be encoded as UTF-8: {e}") from None
        if n_bytes > _MAX_BYTES:
            raise GrammarError(f"the grammar has {n_bytes} bytes; the limit is {_MAX_BYTES}")
        if self.kind == "gbnf":
            check(self.text, self.root)
        elif self.kind == "json_schema":
            _check_schema(self._schema())
        elif error := _error(self.compiled()):
            raise GrammarError(f"the {self.kind} grammar is not valid: {error}")

    @classmethod
    def from_string(cls, grammar: str, *, root: str = "root") -> LlamaGrammar:
        """Return a grammar from GBNF, llama.cpp's notation, with *root* as the start rule.

        It matches the same strings as llama.cpp's own engine (`binding.Grammar`), with these
        differences: text is valid UTF-8, and tokens may split a character anywhere; a control token
        counts as text only where a literal spells its name; text that can never be completed is
        rejected from its first token on.

        Raises:
            GrammarError: The grammar does not parse, would crash llama.cpp, or matches no string.
            ValidationError: *root* is not a str.
        """
        return cls("gbnf", grammar, root)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> LlamaGrammar:
        """Return a grammar from a GBNF file, UTF-8.

        Raises:
            GrammarError: The file is not UTF-8, or the grammar is not valid.
            OSError: The file cannot be read.
        """
        try:
            return cls("gbnf", Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as e:
            raise GrammarError(f"{os.fspath(path)} is not UTF-8 text: {e}") from None

    @classmethod
    def from_json_schema(
        cls, schema: str | Mapping[str, object] | bool, *, closed: bool = False
    ) -> LlamaGrammar:
        """Return a grammar for the JSON documents of a JSON Schema.

        Properties are in the schema's order. Between tokens there is at most a space, or a line
        break with up to 32 characters of indentation; a schema can change this in `x-guidance`, as
        llguidance documents. Dates and times exist: 29 February only in leap years, no second 60.
        docs/structured-output.md has all rules.

        Args:
            schema: The schema, or its text.
            closed: Whether objects that declare properties are closed to other names, unless the
                schema says something about them, as in `response_format`.

        Raises:
            GrammarError: A keyword is not supported (the message has its path), or no document
                matches.
        """
        try:
            text = schema
            if not isinstance(text, str):
                text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
            if closed:
                text = json.dumps(close_objects(json.loads(text)), ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as e:
            hint = "; for a Python type call parse" if isinstance(schema, type) else ""
            raise GrammarError(f"the schema is not JSON: {e}{hint}") from None
        return cls("json_schema", text)

    @classmethod
    def from_regex(cls, pattern: str) -> LlamaGrammar:
        """Return a grammar from a regular expression for the whole answer, without look-around.

        The syntax is that of the Rust crate `regex`, which llguidance uses.

        Raises:
            GrammarError: The pattern is not valid.
        """
        return cls("regex", pattern)

    @classmethod
    def from_lark(cls, grammar: str) -> LlamaGrammar:
        """Return a grammar from llguidance's variant of Lark, with the start rule `start`.

        Terminals are greedy, as in Lark. `%json {...}` is a JSON Schema.

        Raises:
            GrammarError: The grammar is not valid.
        """
        return cls("lark", grammar)

    @classmethod
    def from_choices(cls, choices: Sequence[str]) -> LlamaGrammar:
        """Return a grammar for exactly one of several strings.

        Raises:
            GrammarError: There are no choices, or one is not a str.
        """
        if isinstance(choices, str) or not all(isinstance(c, str) for c in choices):
            raise GrammarError(f"choices={choices!r} must be a list of str")
        if not choices:
            raise GrammarError("choices must not be empty")
        return cls("regex", "|".join(map(_escape, choices)))

    @classmethod
    def json_object(cls) -> LlamaGrammar:
        """Return a grammar for any JSON object."""
        return cls.from_json_schema({"type": "object"})

    def compiled(self, control_tokens: Mapping[str, int] | None = None) -> str:
        """Return the grammar in llguidance's format.

        Args:
            control_tokens: Ids of control tokens by name, for literals of GBNF.

        Raises:
            GrammarError: The schema is not JSON.
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
            return json.loads(self.text, parse_constant=_no_json)
        except (ValueError, RecursionError) as e:
            raise GrammarError(f"the schema is not JSON: {e}") from None


def compiling(grammar: str, compile_: Callable[[], Any]) -> Any:
    """Call *compile_*, which must not raise, with enough stack for llguidance.

    Raises:
        GrammarError: Rust has panicked.
    """

    def attempt() -> Any:
        try:
            return compile_()
        except BaseException as e:
            # Pyo3's class is no Exception, and cannot be imported.
            if type(e).__name__ != "PanicException":
                raise
            return GrammarError(f"llguidance fails at the grammar: {e}")

    found = call_deep(attempt, _STACK * len(grammar.encode()))
    if isinstance(found, GrammarError):
        raise found
    return found


def _escape(text: str) -> str:
    """Return a regular expression that matches exactly *text*."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _for_llguidance(schema: Any) -> str:
    from llguidance import LLMatcher

    try:
        rules: list[str] = []
        root = written(enforceable(schema), rules)
        if root.startswith("%json "):
            return str(LLMatcher.grammar_from_json_schema(root.removeprefix("%json ")))
        return str(LLMatcher.grammar_from_lark("\n".join([f"start: {root}", *rules])))
    except GrammarError:
        raise
    except (RecursionError, ValueError) as e:  # nested too deeply, or a lone surrogate
        raise GrammarError(f"the schema cannot be read: {e}") from None


def _error(grammar: str) -> str:
    """Return llguidance's error for *grammar*; empty: it is valid."""
    from llguidance import LLMatcher

    refused, messages = compiling(
        grammar, lambda: LLMatcher.validate_grammar_with_warnings(grammar, None)
    )
    return str(messages[0]).strip() if refused else ""


def _check_schema(schema: Any) -> None:
    error = _schema_error(schema)
    if error:
        path = "/".join(["#", *_locate(schema, error)])
        raise GrammarError(f"the JSON schema cannot be enforced at {path}: {_in_words(error)}")


def _in_words(error: str) -> str:
    """Return llguidance's message without the names of Rust's types."""
    wrong = re.fullmatch(r"Invalid type: (.*)", error)
    if wrong is None:
        return error.replace("Expected f64", "Expected a number")
    near = difflib.get_close_matches(wrong[1], _TYPES, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"type {wrong[1]!r} is not one of {', '.join(_TYPES)}{hint}"


def _schema_error(schema: Any) -> str:
    """Return why *schema* cannot be enforced; empty: it can."""
    try:
        return _error(_for_llguidance(schema))
    except GrammarError as e:
        return str(e)


def _locate(schema: Any, error: str) -> list[str]:
    """Return the path of the smallest part of *schema* that causes *error* by itself."""
    names = ("$schema", "$defs", "definitions")
    shared = {n: schema[n] for n in names if isinstance(schema, dict) and n in schema}
    part, left = schema, _MAX_SEARCHED
    path: list[str] = []
    while True:
        for name, inner in _inner(part):
            alone = {**shared, **inner}
            left -= len(json.dumps(alone))
            if left < 0:
                return path
            if _schema_error(alone) == error:
                path, part = [*path, name], inner
                break
        else:
            return path


def _inner(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas directly within *schema* with their paths."""
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
        yield from ((path, inner) for path, inner in parts if isinstance(inner, dict))


_MAPS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
