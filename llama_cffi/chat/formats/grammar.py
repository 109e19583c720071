"""What a call looks like, described so that a constrained decoder can build its grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

__all__ = [
    "LINE",
    "CallGrammar",
    "Choice",
    "GrammarParts",
    "Json",
    "Maybe",
    "Piece",
    "Repeat",
    "Schema",
    "Text",
    "arguments_schema",
    "example",
    "is_text",
    "parameter_schemas",
]

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Json:
    """A JSON value that a schema allows."""

    schema: Schema


@dataclass(frozen=True)
class Text:
    """Any text that does not hold `stop`, which has to follow.

    Attributes:
        stop: What ends it.
        schema: Of a string: its length and pattern count.
    """

    stop: str
    schema: Schema = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Maybe:
    """Pieces that may be left out."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Choice:
    """One of several sequences of pieces."""

    options: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True)
class Repeat:
    """Any number of times the pieces, `separator` between them; none at all too."""

    pieces: tuple[Piece, ...]
    separator: str


#: A part of a call; a str is that very text.
Piece = Union[str, Json, Text, Maybe, Choice, Repeat]  # noqa: UP007 -- evaluated, forward names


#: A line break, or none.
LINE = Maybe(("\n",))


@dataclass(frozen=True)
class CallGrammar:
    """One call of one function.

    Attributes:
        name: The function.
        pieces: What the model has to write, in order.
    """

    name: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class GrammarParts:
    """``before begin call (separator call)* end``, where a call is one of `calls`.

    Attributes:
        begin: Text before the first call.
        calls: One for each tool.
        separator: Text between two calls; white space may be left out.
        end: Text after the last call.
        triggers: Texts with which a call begins. A lazy grammar waits for one of them and takes it
            in: each is a beginning of what the grammar allows.
        is_parallel: Whether more than one call is allowed.
        is_required: Whether the answer has to be a call from its beginning (after a thought).
        before: What may stand before all that in a required answer.
    """

    begin: str
    calls: tuple[CallGrammar, ...]
    separator: str
    end: str
    triggers: tuple[str, ...]
    is_parallel: bool
    is_required: bool
    before: tuple[Piece, ...] = ()


def arguments_schema(tool: Mapping[str, Any]) -> Schema:
    """Return the JSON schema of a tool's arguments."""
    schema: Schema = tool["function"].get("parameters") or {"type": "object", "properties": {}}
    return schema


def parameter_schemas(tool: Mapping[str, Any]) -> list[tuple[str, Schema, bool]]:
    """Return (name, schema, required) of each parameter, each able to stand alone."""
    schema = arguments_schema(tool)
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = schema.get("required", ())
    properties: Mapping[str, Any] = schema.get("properties") or {}
    return [
        (name, {**shared, **part} if isinstance(part, Mapping) else {}, name in required)
        for name, part in properties.items()
    ]


def example(piece: Piece) -> str:
    """Write a text that a piece allows; a schema's first choices stand for all."""
    if isinstance(piece, str):
        return piece
    if isinstance(piece, Json):
        return json.dumps(_value(piece.schema))
    if isinstance(piece, Text):
        return "value"
    options = piece.options[0] if isinstance(piece, Choice) else piece.pieces
    return "".join(map(example, options))


def _value(schema: Schema) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") != "object":
        return "value"
    properties: Mapping[str, Any] = schema.get("properties") or {}
    return {name: _value(part) for name, part in properties.items()}


def is_text(schema: Schema) -> bool:
    """Say whether only strings fit the schema: formats with raw values write them unquoted."""
    if schema.get("type") == "string":
        return True
    values: Sequence[object] = schema.get("enum") or ()
    return bool(values) and all(isinstance(value, str) for value in values)
