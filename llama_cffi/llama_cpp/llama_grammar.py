"""Grammars, with llama-cpp-python's arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import grammars

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["JSON_ARR_GBNF", "JSON_GBNF", "LlamaGrammar", "closed"]

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
    """A description of the texts that a model may answer with."""

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True, *, root: str = "root") -> Self:
        """Make one from GBNF; nothing is printed, whatever *verbose* says."""
        return cls("gbnf", grammar, root)

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], verbose: bool = True) -> Self:
        """Make one from a file of GBNF, UTF-8."""
        return cls("gbnf", grammars.LlamaGrammar.from_file(file).text)

    @classmethod
    def from_json_schema(
        cls, json_schema: str | Mapping[str, Any] | bool, verbose: bool = True
    ) -> Self:
        """Make one for the JSON that a schema describes, without properties it does not name."""
        text = grammars.LlamaGrammar.from_json_schema(json_schema).text
        return cls("json_schema", json.dumps(closed(json.loads(text)), ensure_ascii=False))


_COMBINED = {"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "unevaluatedProperties"}
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = ("const", "default", "enum", "examples")


def closed(schema: Any) -> Any:
    """Return a JSON Schema that forbids properties it does not name, as llama.cpp reads schemas.

    A schema that combines others with `allOf` stays as it is: each would forbid the others' names.
    """
    return schema if '"allOf"' in json.dumps(schema) else _closed(schema)


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
