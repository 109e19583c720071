"""LlamaGrammar with llama-cpp-python's arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from .. import grammars

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["JSON_ARR_GBNF", "JSON_GBNF", "LlamaGrammar", "closed", "closed_format"]

T = TypeVar("T")

_JSON = r"""
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (member ("," ws member)*)? "}"
member ::= string ":" ws value ws
array  ::= "[" ws (value ws ("," ws value ws)*)? "]"
string ::= "\"" ([^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" hex hex hex hex))* "\""
hex    ::= [0-9a-fA-F]
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
ws     ::= [ \n\t]?
"""
JSON_GBNF = "root ::= object" + _JSON
"""Any JSON object."""
JSON_ARR_GBNF = "root ::= array" + _JSON
"""Any JSON array."""


class LlamaGrammar(grammars.LlamaGrammar):
    """A grammar that the output matches; see `llama_cffi.LlamaGrammar`."""

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True, *, root: str = "root") -> Self:
        """Make one from GBNF; *verbose* is ignored."""
        return cls("gbnf", grammar, root)

    @classmethod
    def from_file(  # pyright: ignore[reportIncompatibleMethodOverride]  # the argument's name
        cls, file: str | os.PathLike[str], verbose: bool = True
    ) -> Self:
        """Make one from a file of GBNF, UTF-8; *verbose* is ignored."""
        return cls("gbnf", grammars.LlamaGrammar.from_file(file).text)

    @classmethod
    def from_json_schema(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, json_schema: str | Mapping[str, object] | bool, verbose: bool = True
    ) -> Self:
        """Make one from a JSON Schema; properties that it does not name are forbidden."""
        text = grammars.LlamaGrammar.from_json_schema(json_schema).text
        return cls("json_schema", json.dumps(closed(json.loads(text)), ensure_ascii=False))


_COMBINED = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "unevaluatedProperties"}
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = ("const", "default", "enum", "examples")


def closed(schema: T) -> T:
    """Return a JSON Schema that forbids properties it does not name, as llama.cpp does.

    A schema with `allOf` is returned unchanged: each part would forbid the names of the others.
    """
    found: T = schema if '"allOf"' in json.dumps(schema) else _closed(schema)
    return found


def closed_format(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return OpenAI's `response_format` with its schema `closed`."""
    if not isinstance(response_format, Mapping):
        return response_format
    inner = response_format.get("json_schema")
    if isinstance(inner, Mapping):
        return {**response_format, "json_schema": closed_format(inner)}
    if "schema" in response_format:
        return {**response_format, "schema": closed(response_format["schema"])}
    return response_format


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    new: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _VALUES:
            new[keyword] = value
        elif keyword in _MAPS and isinstance(value, Mapping):
            new[keyword] = {name: _closed(part) for name, part in value.items()}
        else:
            new[keyword] = _closed(value)
    if "properties" in new and not _COMBINED & new.keys():
        new.setdefault("additionalProperties", False)
    return new
