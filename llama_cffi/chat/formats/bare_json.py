"""Calls that are JSON without a marker: recognised by their keys and by the function's name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from ..scanner import Emit, Parser, Scanner, loads
from .base import ToolFormat
from .json_calls import call_elements, parse_call, parse_calls
from .lines import parse_lines
from .message import MessageBuilder
from .name_then_json import parse_code
from .python_calls import parse_python_call, parse_python_calls
from .syntax import Element, Tool, Tools

__all__ = ["GenericFormat", "Llama3Format", "Llama4Format"]

_CALL_KEYS = ("tool_calls", "tool_call")
_INCOMPLETE_ESCAPE = re.compile(
    r"\\(u[0-9a-fA-F]{0,3})?$|\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?$"
)


class Llama3Format(ToolFormat):
    """Llama 3.1, 3.2, 3.3: JSON at the beginning of a line is a call if its keys and its name fit.

    After ``<|python_tag|>`` comes JSON, ``name.call(key=value)`` of a built-in tool, or Python
    source code. Small models also write a list of calls in Python.
    """

    name = "llama3"
    template_markers = ()
    triggers = ('{"name"', "<|python_tag|>")
    is_parallel = False

    _TAG = "<|python_tag|>"
    _ENDS = ("<|eom_id|>", "<|eot_id|>")
    _HEADER = "<|start_header_id|>"

    def detect(self, template: str) -> bool:
        """Return whether a chat template, given as its source, uses this format."""
        return self._HEADER in template and (
            self._TAG in template or "dictionary of argument name and its value" in template
        )

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        def parse_bare() -> Parser[bool]:
            if tools is None and out.has_content:
                return False
            return (yield from parse_python_calls(scanner, out, tools, is_bare=True))

        while (yield from parse_lines(scanner, out, parse_bare, ("{", "["), [self._TAG])):
            yield from scanner.space()
            if not (yield from scanner.trial(self._parse_tagged(scanner, out, tools))):
                yield from self._parse_other(scanner, out)

    def _parse_tagged(
        self, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        """Parse the call after the tag; return whether there is one."""
        if (yield from scanner.available(1)) in ("{", "["):
            return (yield from parse_python_calls(scanner, out, tools))
        ends = (self._TAG, *self._ENDS)
        return (yield from parse_python_call(scanner, out, tools, ends, is_built_in=True))

    def _parse_other(self, scanner: Scanner, out: MessageBuilder) -> Parser[None]:
        """Parse what follows the tag if it is not a call."""
        yield from parse_code(scanner, out, "python", *self._ENDS)

    def _call(self, tool: Tool) -> Sequence[Element]:
        return call_elements(tool, "parameters")


class Llama4Format(Llama3Format):
    """Llama 4: as its template asks, JSON; or a list of calls in Python.

    Either may stand between ``<|python_start|>`` and ``<|python_end|>``; so may other text, which
    is content.
    """

    name = "llama4"
    triggers = ('{"name"', "<|python_start|>")

    _TAG = "<|python_start|>"
    _END = "<|python_end|>"
    _HEADER = "<|header_start|>"

    def _parse_tagged(
        self, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[bool]:
        return (yield from parse_python_calls(scanner, out, tools, self._END))

    def _parse_other(self, scanner: Scanner, out: MessageBuilder) -> Parser[None]:
        yield from scanner.until([self._END], out.content)


class GenericFormat(ToolFormat):
    """The format for models without one of their own: the whole answer is a JSON object.

    ``{"tool_calls": [...]}``, ``{"tool_call": {...}}`` or ``{"response": "text"}``.
    """

    name = "generic"
    template_markers = ()
    triggers = ('{"tool_call',)
    instructions = (
        "You can call functions. To call some, answer only with JSON of this form: "
        '{"tool_calls": [{"name": "the name", "arguments": {"the parameter": "the value"}}]}. '
        'If no function is needed, answer with {"response": "your answer"}. '
        "The functions, as JSON:"
    )

    def _parse(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[None]:
        yield from scanner.trial(self._object(scanner, out, tools))
        yield from scanner.until((), out.content)

    def _object(self, scanner: Scanner, out: MessageBuilder, tools: Tools | None) -> Parser[bool]:
        """Parse the object; return whether it is one."""
        yield from scanner.space()
        fence = yield from scanner.literal("```json", "```")
        yield from scanner.space()
        key = yield from scanner.attempt(self._key(scanner))
        is_parsed = key == "response" and (yield from scanner.available(1)) == '"'
        if is_parsed:
            scanner.commit()
            yield from self._text(scanner, out.content)
        elif key != "response" and (key or tools):
            parse_one = partial(parse_call, scanner, out, tools, is_bare=True)
            yield from parse_calls(scanner, out, parse_one)
            is_parsed = bool(out.calls)
        if is_parsed:
            # The closing brackets and the closing fence are not content.
            yield from scanner.space()
            while (yield from scanner.literal("]", "}", *(["```"] if fence else []))):
                yield from scanner.space()
        elif key is not None:
            out.malformed()
        return is_parsed

    def _key(self, scanner: Scanner) -> Parser[str | None]:
        """Parse the beginning of an object up to its first value; return the key if known."""
        if not (yield from scanner.literal("{")):
            return None
        yield from scanner.space()
        found = yield from scanner.literal(*(f'"{key}"' for key in (*_CALL_KEYS, "response")))
        yield from scanner.space()
        if found is None or not (yield from scanner.literal(":")):
            return None
        yield from scanner.space()
        return found.strip('"')

    def _text(self, scanner: Scanner, emit: Emit) -> Parser[None]:
        """Emit the decoded content of a JSON string as it arrives."""
        pending = ""

        def decode(chunk: str) -> None:
            nonlocal pending
            pending += chunk
            incomplete = _INCOMPLETE_ESCAPE.search(pending)
            end = incomplete.start() if incomplete else len(pending)
            text, pending = pending[:end], pending[end:]
            emit(loads(f'"{text}"') or "")

        scanner.take(1)
        yield from scanner.string(lambda chunk: decode("" if chunk == '"' else chunk))

    def _around(self) -> tuple[str, str, str]:
        return '{"tool_calls": [', ", ", "]}"

    def _call(self, tool: Tool) -> Sequence[Element]:
        return call_elements(tool)
