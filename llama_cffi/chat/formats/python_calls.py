"""Calls in Python's syntax: Gemma's ``tool_code`` blocks, LFM2, Llama 4."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..reader import Reader, Steps
from .base import MarkedFormat, Tool, Tools
from .grammar import Json, Maybe, Piece, parameter_schemas
from .message import MessageBuilder

__all__ = ["PythonFormat"]

_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)


@dataclass
class PythonFormat(MarkedFormat):
    """``begin name(key=value, ...) end``, one call or a list; read when its end has come.

    Args:
        name: Of the format.
        marks: What its templates hold.
        begin: Begins the code.
        end: Ends it.
        instructions: See `ToolFormat`.
        templates: What other templates of it hold in place of *marks*.
    """

    name: str
    marks: tuple[str, ...]
    begin: str
    end: str
    instructions: str | None = None
    templates: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        self.triggers = (self.begin,)

    def detect(self, template: str) -> bool:
        """Say whether a chat template (its source) is of this family."""
        every = (self.marks, *self.templates)
        return any(marks and all(mark in template for mark in marks) for marks in every)

    def _read_calls(
        self, marker: str, reader: Reader, out: MessageBuilder, tools: Tools | None
    ) -> Steps[None]:
        code, found = yield from reader.text_until(self.end)
        while found and not _is_python(code):
            # This end may stand inside of a string.
            more, found = yield from reader.text_until(self.end)
            code += f"{self.end}{more}"
        for name, arguments in _calls(code, tools) if found else ():
            out.begin_call(name)
            out.arguments(arguments)
            out.end_call()

    def _around(self) -> tuple[str, str, str]:
        line = "\n" if self.begin.endswith("\n") else ""
        return f"{self.begin}[", ", ", f"]{line}{self.end}"

    def _call(self, tool: Tool) -> Sequence[Piece]:
        pieces: list[Piece] = [f"{tool['function']['name']}("]
        parameters = sorted(parameter_schemas(tool), key=lambda parameter: not parameter[2])
        for i, (key, schema, is_required) in enumerate(parameters):
            # Python allows a comma after the last argument, so each may bring its own.
            member = (f"{key}=", Json(schema), ", " if i < len(parameters) - 1 else "")
            pieces += member if is_required else [Maybe(member)]
        return [*pieces, ")"]


def _is_python(code: str) -> bool:
    return _tree(code) is not None


def _tree(code: str) -> ast.Module | None:
    """Parse code; templates do not always write line breaks in strings as Python has to."""
    for text in (code, _STRING.sub(lambda found: found[0].replace("\n", "\\n"), code)):
        try:
            return ast.parse(text.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def _calls(code: str, tools: Tools | None) -> list[tuple[str, str]]:
    """Return (name, arguments as JSON) of the calls, or none if one of them cannot be read."""
    tree = _tree(code)
    if tree is None:
        return []
    nodes: list[ast.expr] = []
    for statement in tree.body:
        value = statement.value if isinstance(statement, ast.Expr) else ast.Name("no_call")
        nodes += value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    try:
        return [_one(node, tools) for node in nodes]
    except (ValueError, TypeError, RecursionError):
        return []


def _one(node: ast.expr, tools: Tools | None) -> tuple[str, str]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and node.args:
        node = node.args[0]
    if not isinstance(node, ast.Call):
        raise ValueError("no call")
    name = ast.unparse(node.func)
    given = [tool for tool in tools or () if tool["function"]["name"] == name]
    names = [key for key, _, _ in parameter_schemas(given[0])] if given else []
    if len(node.args) > len(names):
        raise ValueError("more values than names")
    arguments: dict[str, Any] = {}
    pairs = [*zip(names, node.args, strict=False)]
    for key, value in [*pairs, *((word.arg, word.value) for word in node.keywords)]:
        if key is None:
            raise ValueError("no name")
        arguments[key] = _value(value)
    return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _value(node: ast.expr) -> Any:
    """Read a literal; JSON's own words are taken too, and a name is its text."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key): _value(item) for key, item in pairs if key is not None}
    value = ast.literal_eval(node)
    if isinstance(value, str):
        # JSON may write the halves of a surrogate pair one by one, which Python keeps apart.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value
