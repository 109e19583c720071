"""Calls in Python syntax: Gemma's ``tool_code`` blocks, LFM2, Llama 4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..scanner import Parser, Scanner
from .base import MarkedFormat
from .json_calls import offered_name, parse_call, parse_calls
from .lines import parse_lines
from .message import MessageBuilder
from .syntax import Element, Json, Maybe, Tool, Tools, call_schema, function_name, parameter_schemas
from .values import ValueReader

__all__ = ["PythonFormat", "parse_python_call", "parse_python_calls"]

_NAME = re.compile(r"[\w.-]*")
_OUTSIDE = re.compile(r"[^()\"']*")
_STRING = {quote: re.compile(rf"[^\\{quote}]*") for quote in "'\""}
_WRAPPER = "print("
_BUILT_IN = ".call"


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
        is_bare: Whether models also write lists of calls without markers.
    """

    name: str
    template_markers: tuple[str, ...]
    begin: str
    end: str
    instructions: str | None = None
    templates: tuple[tuple[str, ...], ...] = ()
    is_bare: bool = False

    def __post_init__(self) -> None:
        self.triggers = (self.begin,)

    def detect(self, template: str) -> bool:
        """Return whether a chat template, given as its source, uses this format."""
        sets = (self.template_markers, *self.templates)
        return any(markers and all(m in template for m in markers) for markers in sets)

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        if not self.is_bare:
            yield from super()._parse(scanner, out, tools)
            return
        bare = partial(parse_python_calls, scanner, out, tools, is_bare=True)
        while (yield from parse_lines(scanner, out, bare, ["["], self.triggers)):
            yield from self._parse_marked(self.begin, scanner, out, tools)

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        yield from parse_python_calls(scanner, out, tools, self.end)

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


def parse_python_calls(
    scanner: Scanner,
    out: MessageBuilder,
    tools: Tools | None,
    *ends: str,
    is_bare: bool = False,
) -> Parser[bool]:
    """Parse one call in Python or a list of them, or calls in JSON.

    Args:
        scanner: At the position where the calls may begin.
        out: Receives each call when it ends.
        tools: The tools that were offered; None: unknown.
        ends: The markers after the calls.
        is_bare: Whether no marker precedes them, so that a list of calls of offered functions
            identifies them.

    Returns:
        Whether there was a call.
    """
    before = len(out.calls)

    def parse_one() -> Parser[bool]:
        if (yield from scanner.available(1)) == "{":
            return (yield from parse_call(scanner, out, tools, ends, is_bare))
        return (yield from parse_python_call(scanner, out, tools, ends, is_bare))

    yield from parse_calls(scanner, out, parse_one, *ends, skip=_skip_call)
    return len(out.calls) > before


def parse_python_call(
    scanner: Scanner,
    out: MessageBuilder,
    tools: Tools | None,
    ends: Sequence[str] = (),
    is_bare: bool = False,
    is_built_in: bool = False,
) -> Parser[bool]:
    """Parse ``name(key=value, ...)``, also in ``print(...)``; return whether it is a call.

    Values are literals; a name stands for a string, and an expression makes it no call.

    Args:
        scanner: At the position where the call may begin.
        out: Receives the call when it ends.
        tools: The tools that were offered; None: unknown.
        ends: The markers after the call.
        is_bare: Whether only an offered function's name identifies it.
        is_built_in: Whether it must be ``name.call(...)``, as Llama 3 calls built-in tools.
    """
    is_printed = bool((yield from scanner.literal(_WRAPPER)))
    written = yield from scanner.match(_NAME)
    if is_built_in and not written.endswith(_BUILT_IN):
        return False
    name = offered_name(written.removesuffix(_BUILT_IN) if is_built_in else written, tools)
    schema = call_schema(name, tools)
    if not name or not (yield from scanner.literal("(")) or (is_bare and not schema):
        return False
    arguments: list[str] = []
    ends = (*ends, ")") if is_printed else ends
    reader = ValueReader(scanner, arguments.append, schema, ends=ends, is_python=True)
    if not (yield from reader.call(tuple(schema.get("properties") or ()))):
        return False
    if is_printed:
        yield from scanner.literal(")")
    scanner.commit()
    out.begin_call(name)
    out.arguments("".join(arguments))
    out.end_call()
    return True


def _skip_call(scanner: Scanner) -> Parser[str | None]:
    """Consume a call that cannot be parsed; return its text, or None if none ends."""
    parts = [(yield from scanner.match(_NAME))]
    if (yield from scanner.available(1)) != "(":
        return None
    depth = 0
    while (yield from scanner.emit_match(_OUTSIDE, parts.append)):
        char = scanner.take(1)
        parts.append(char)
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth == 0:
            return "".join(parts)
        while char in _STRING and (yield from scanner.emit_match(_STRING[char], parts.append)):
            parts.append(scanner.take(2 if (yield from scanner.available(1)) == "\\" else 1))
            if parts[-1] == char:
                break
    return None
