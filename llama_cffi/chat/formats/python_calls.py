"""Calls in Python syntax: Gemma's ``tool_code`` blocks, LFM2, Llama 4."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..scanner import Parser, Scanner
from .base import MarkedFormat
from .message import MessageBuilder
from .syntax import Element, Json, Maybe, Tool, Tools, function_name, parameter_schemas

__all__ = ["PythonFormat"]

_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)


@dataclass
class PythonFormat(MarkedFormat):
    """``begin name(key=value, ...) end``: one call or a list, parsed when the end arrives.

    Args:
        name: Name of the format.
        template_markers: See `ToolFormat`.
        begin: The marker before the code.
        end: The marker after it.
        instructions: See `ToolFormat`.
        templates: Further sets of markers that identify a chat template.
    """

    name: str
    template_markers: tuple[str, ...]
    begin: str
    end: str
    instructions: str | None = None
    templates: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        self.triggers = (self.begin,)

    def detect(self, template: str) -> bool:
        """Return whether a chat template, given as its source, uses this format."""
        sets = (self.template_markers, *self.templates)
        return any(markers and all(m in template for m in markers) for markers in sets)

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        code, found = yield from scanner.text_until(self.end)
        while found and not _is_python(code):
            # The end marker may be inside a string.
            more, found = yield from scanner.text_until(self.end)
            code += f"{self.end}{more}"
        for name, arguments in _calls(code, tools) if found else ():
            out.begin_call(name)
            out.arguments(arguments)
            out.end_call()

    def _around(self) -> tuple[str, str, str]:
        line = "\n" if self.begin.endswith("\n") else ""
        return f"{self.begin}[", ", ", f"]{line}{self.end}"

    def _call(self, tool: Tool) -> Sequence[Element]:
        elements: list[Element] = [f"{function_name(tool)}("]
        parameters = sorted(parameter_schemas(tool), key=lambda parameter: not parameter[2])
        for i, (key, schema, is_required) in enumerate(parameters):
            # Python allows a trailing comma, so each argument can have one.
            member = (f"{key}=", Json(schema), ", " if i < len(parameters) - 1 else "")
            elements += member if is_required else [Maybe(member)]
        return [*elements, ")"]


def _is_python(code: str) -> bool:
    return _tree(code) is not None


def _tree(code: str) -> ast.Module | None:
    """Parse code; templates do not always escape line breaks in strings."""
    for text in (code, _STRING.sub(lambda found: found[0].replace("\n", "\\n"), code)):
        try:
            return ast.parse(text.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def _calls(code: str, tools: Tools | None) -> list[tuple[str, str]]:
    """Return (name, arguments as JSON) for each call; empty if one cannot be parsed."""
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
        raise ValueError("not a call")
    name = ast.unparse(node.func)
    named = [tool for tool in tools or () if function_name(tool) == name]
    names = [key for key, _, _ in parameter_schemas(named[0])] if named else []
    if len(node.args) > len(names):
        raise ValueError("too many positional arguments")
    arguments: dict[str, Any] = {}
    pairs = [*zip(names, node.args, strict=False)]
    for key, value in [*pairs, *((word.arg, word.value) for word in node.keywords)]:
        if key is None:
            raise ValueError("arguments in a dict")
        arguments[key] = _value(value)
    return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _value(node: ast.expr) -> Any:
    """Evaluate a literal; JSON's constants are allowed, and other names become strings."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key): _value(item) for key, item in pairs if key is not None}
    value = ast.literal_eval(node)
    if isinstance(value, str):
        # JSON escapes each half of a surrogate pair, which Python does not join.
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value
