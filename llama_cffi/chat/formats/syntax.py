"""The syntax of tool calls, described so that a constrained decoder can build a grammar from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Union, cast

__all__ = [
    "LINE",
    "Alternatives",
    "CallGrammar",
    "Element",
    "GrammarParts",
    "Json",
    "Maybe",
    "Repeat",
    "Schema",
    "Text",
    "Tool",
    "Tools",
    "arguments_schema",
    "call_schema",
    "example",
    "function_name",
    "is_string",
    "parameter_schemas",
    "shared_definitions",
]

#: A JSON schema.
Schema = Mapping[str, Any]
#: A normalised tool definition in OpenAI's shape.
Tool = Mapping[str, object]
Tools = Sequence[Tool]


@dataclass(frozen=True)
class Json:
    """A JSON value.

    Attributes:
        schema: The JSON schema that it must match.
    """

    schema: Schema


@dataclass(frozen=True)
class Text:
    """Text that ends before the first `stop`, which must follow.

    Attributes:
        stop: The string that ends it.
        schema: The schema of a string; only its length limits and pattern are enforced.
    """

    stop: str
    schema: Schema = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Maybe:
    """An optional sequence of elements."""

    elements: tuple[Element, ...]


@dataclass(frozen=True)
class Alternatives:
    """One of several sequences of elements."""

    options: tuple[tuple[Element, ...], ...]


@dataclass(frozen=True)
class Repeat:
    """Zero or more repetitions of a sequence of elements, with `separator` between them."""

    elements: tuple[Element, ...]
    separator: str


#: A part of a call; a str stands for itself.
Element = Union[str, Json, Text, Maybe, Alternatives, Repeat]  # noqa: UP007 -- evaluated, forward names


#: An optional line break.
LINE = Maybe(("\n",))


@dataclass(frozen=True)
class CallGrammar:
    """The syntax of a call of one function.

    Attributes:
        name: Name of the function.
        elements: The parts of the call, in order.
    """

    name: str
    elements: tuple[Element, ...]


@dataclass(frozen=True)
class GrammarParts:
    """The syntax of tool calls: ``before begin call (separator call)* end``.

    Attributes:
        begin: Text before the first call.
        calls: The alternatives for `call`, one for each tool.
        separator: Text between two calls; if it is white space, it may be left out.
        end: Text after the last call.
        triggers: Strings with which calls begin. A lazy grammar starts at one of them and includes
            it, so each is a prefix of what the grammar allows.
        is_parallel: Whether more than one call is allowed.
        is_required: Whether the answer, after reasoning, must be a call.
        before: Elements before `begin` in an answer that must be a call.
    """

    begin: str
    calls: tuple[CallGrammar, ...]
    separator: str
    end: str
    triggers: tuple[str, ...]
    is_parallel: bool
    is_required: bool
    before: tuple[Element, ...] = ()


def _function(tool: Tool) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", tool["function"])


def function_name(tool: Tool) -> str:
    """Return the name of a tool's function."""
    return str(_function(tool)["name"])


def arguments_schema(tool: Tool) -> Schema:
    """Return the JSON schema of a tool's arguments."""
    schema: Schema = _function(tool).get("parameters") or {"type": "object", "properties": {}}
    return schema


def call_schema(name: str, tools: Tools | None) -> Schema:
    """Return the JSON schema of the arguments of the function *name*; {} if it is unknown."""
    return next((arguments_schema(t) for t in tools or () if function_name(t) == name), {})


def shared_definitions(schema: Schema) -> Schema:
    """Return the definitions in *schema* that its subschemas may refer to."""
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def parameter_schemas(tool: Tool) -> list[tuple[str, Schema, bool]]:
    """Return (name, self-contained schema, is required) for each parameter."""
    schema = arguments_schema(tool)
    shared = shared_definitions(schema)
    required = schema.get("required", ())
    properties: Mapping[str, Any] = schema.get("properties") or {}
    return [
        (name, {**shared, **part} if isinstance(part, Mapping) else {}, name in required)
        for name, part in properties.items()
    ]


def example(element: Element) -> str:
    """Return an example of an element, using the first of its alternatives."""
    if isinstance(element, str):
        return element
    if isinstance(element, Json):
        return json.dumps(_example_value(element.schema))
    if isinstance(element, Text):
        return "value"
    options = element.options[0] if isinstance(element, Alternatives) else element.elements
    return "".join(map(example, options))


def _example_value(schema: Schema) -> object:
    if "enum" in schema:
        value: object = schema["enum"][0]
        return value
    if schema.get("type") != "object":
        return "value"
    properties: Mapping[str, Any] = schema.get("properties") or {}
    return {name: _example_value(part) for name, part in properties.items()}


def is_string(schema: Schema) -> bool:
    """Return whether only strings match *schema*; some formats write strings without quotes."""
    if schema.get("type") == "string":
        return True
    values: Sequence[object] = schema.get("enum") or ()
    return bool(values) and all(isinstance(value, str) for value in values)
