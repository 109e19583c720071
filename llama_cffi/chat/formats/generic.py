"""Models that were never taught a format: the whole answer is one JSON object."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..reader import Emit, Reader, Steps, loads
from .base import Tool, ToolFormat, Tools
from .grammar import Piece
from .json_calls import call_pieces, known_names, read_call
from .message import MessageBuilder

__all__ = ["GenericFormat"]

_UNSETTLED = re.compile(
    r"\\(u[0-9a-fA-F]{0,3})?$|\\u[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?$"
)


class GenericFormat(ToolFormat):
    """``{"tool_calls": [...]}``, ``{"tool_call": {...}}`` or ``{"response": "text"}``."""

    name = "generic"
    marks = ()
    triggers = ('{"tool_call',)
    instructions = (
        "You can call functions. To call some, answer only with JSON of this form: "
        '{"tool_calls": [{"name": "the name", "arguments": {"the parameter": "the value"}}]}. '
        'If no function is needed, answer with {"response": "your answer"}. '
        "The functions, as JSON:"
    )

    def _read(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[None]:
        names = known_names(tools)
        reader.hold()
        yield from reader.space()
        fence = yield from reader.literal("```json", "```")
        yield from reader.space()
        key = yield from self._key(reader)
        done = False
        if key == "response" and (yield from reader.available(1)) == '"':
            reader.release()
            yield from self._text(reader, out.content)
            done = True
        elif key in ("tool_call", "tool_calls"):
            yield from reader.literal("[")
            while (yield from self._one(reader, out, names)):
                done = True
        if done:
            reader.release()
            # What closes the object, and the fence, is no content.
            yield from reader.space()
            while (yield from reader.literal("]", "}", *(["```"] if fence else []))):
                yield from reader.space()
        else:
            reader.back()
            if key is not None:
                out.malformed()
        yield from reader.until((), out.content)

    def _one(self, reader: Reader, out: MessageBuilder, names: set[str] | None) -> Steps[bool]:
        yield from reader.space()
        if not (yield from read_call(reader, out, names, is_bare=True)):
            return False
        yield from reader.space()
        yield from reader.literal(",")
        return True

    def _key(self, reader: Reader) -> Steps[str | None]:
        """Read the beginning of an object up to its first value; return the key if it is ours."""
        if not (yield from reader.literal("{")):
            return None
        yield from reader.space()
        found = yield from reader.literal('"tool_calls"', '"tool_call"', '"response"')
        yield from reader.space()
        if found is None or not (yield from reader.literal(":")):
            return None
        yield from reader.space()
        return found.strip('"')

    def _text(self, reader: Reader, emit: Emit) -> Steps[None]:
        """Hand out the text of a JSON string as it comes."""
        held = ""

        def decode(piece: str) -> None:
            nonlocal held
            held += piece
            unsettled = _UNSETTLED.search(held)
            end = unsettled.start() if unsettled else len(held)
            text, held = held[:end], held[end:]
            emit(loads(f'"{text}"') or "")

        reader.take(1)
        yield from reader.string(lambda piece: decode("" if piece == '"' else piece))

    def _around(self) -> tuple[str, str, str]:
        return '{"tool_calls": [', ", ", "]}"

    def _call(self, tool: Tool) -> Sequence[Piece]:
        return call_pieces(tool)
