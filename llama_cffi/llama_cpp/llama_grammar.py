"""LlamaGrammar with llama-cpp-python's arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .. import grammars

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["JSON_ARR_GBNF", "JSON_GBNF", "LlamaGrammar"]

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
        cls,
        json_schema: str | Mapping[str, object] | bool,
        verbose: bool = True,
        *,
        closed: bool = True,
    ) -> Self:
        """Make one from a JSON Schema; properties that it does not name are forbidden."""
        made = grammars.LlamaGrammar.from_json_schema(json_schema, closed=closed)
        return cls("json_schema", made.text)
