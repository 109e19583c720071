"""Functionary v3.2: ``>>>recipient`` and a line break before each part of the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..reader import Reader, Steps
from .base import Tool, ToolFormat, Tools
from .grammar import Json, Piece, arguments_schema
from .headed import read_code
from .json_calls import known_names, read_arguments
from .message import MessageBuilder

__all__ = ["FunctionaryFormat"]

_NAME = re.compile(r"[\w.-]*")
_MARK = ">>>"


class FunctionaryFormat(ToolFormat):
    """Recipient `all` is content, any other a call; the prompt ends with the first ``>>>``."""

    name = "functionary-v3.2"
    marks = (">>>all",)
    triggers = (_MARK,)
    content_head = "all\n"

    def _read(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[None]:
        names = known_names(tools)
        found: str | None = (yield from reader.literal(_MARK)) or ""
        while found is not None:
            mark, found = found, None
            reader.hold()
            name = yield from reader.run(_NAME)
            is_head = bool((yield from reader.literal("\n")))
            is_call = is_head and name and (names is None or name in {*names, "python"})
            if is_call and name != "all":
                reader.release()
                found = yield from self._read_call(name, reader, out)
            elif not is_head or name != "all":
                reader.back()
                out.content(mark)
            reader.release()
            found = found or (yield from reader.until([_MARK], out.content))

    def _read_call(self, name: str, reader: Reader, out: MessageBuilder) -> Steps[str | None]:
        """Read a call from its arguments on; return the mark if it was taken."""
        yield from reader.space()
        if (yield from reader.available(1)) != "{":
            # Code for the interpreter, as it is.
            return (yield from read_code(reader, out, name, _MARK))
        out.begin_call(name)
        yield from read_arguments(reader, out)
        out.end_call()
        return None

    def _before(self) -> tuple[Piece, ...]:
        return ()

    def _around(self) -> tuple[str, str, str]:
        return "", _MARK, ""

    def _grammar_triggers(self, tools: Tools) -> tuple[str, ...]:
        # The first mark is in the prompt, so the name itself begins the call.
        return tuple(f"{tool['function']['name']}\n" for tool in tools)

    def _call(self, tool: Tool) -> Sequence[Piece]:
        return f"{tool['function']['name']}\n", Json(arguments_schema(tool))
