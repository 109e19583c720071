"""Llama 3.x: bare JSON with ``parameters``, and what follows ``<|python_tag|>``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ..reader import Reader, Steps
from .base import Tool, ToolFormat, Tools
from .grammar import Piece
from .headed import read_code
from .json_calls import call_pieces, known_names, read_call
from .message import MessageBuilder

__all__ = ["Llama3Format"]

_WORD = re.compile(r"\w*")
_TAG = "<|python_tag|>"


class Llama3Format(ToolFormat):
    """Llama 3.1, 3.2, 3.3: JSON at the beginning is a call if its keys and its name say so.

    After the tag it is JSON, ``name.call(key=value)`` of a built-in tool, or Python code.
    """

    name = "llama3"
    marks = ()
    triggers = ('{"name"', _TAG)
    is_parallel = False

    def detect(self, template: str) -> bool:
        """Say whether a chat template (its source) is of this family."""
        return "<|start_header_id|>" in template and (
            _TAG in template or "dictionary of argument name and its value" in template
        )

    def _read(self, reader: Reader, out: MessageBuilder, tools: Tools | None) -> Steps[None]:
        names = known_names(tools)
        space = yield from reader.space()
        while True:
            reader.hold()
            if not (yield from read_call(reader, out, names, is_bare=True)):
                reader.back()
                break
            reader.release()
            yield from reader.space()
            yield from reader.literal(";", ",")
            yield from reader.space()
        out.content(space)
        while (yield from reader.until([_TAG], out.content)):
            yield from reader.space()
            reader.hold()
            if (yield from read_call(reader, out)):
                reader.release()
                continue
            reader.back()
            reader.hold()
            if (yield from self._built_in(reader, out)):
                reader.release()
                continue
            reader.back()
            yield from read_code(reader, out, "python", "<|eom_id|>", "<|eot_id|>")

    def _built_in(self, reader: Reader, out: MessageBuilder) -> Steps[bool]:
        """Read ``name.call(key=value, ...)``."""
        name = yield from reader.run(_WORD)
        if not name or not (yield from reader.literal(".call(")):
            return False
        reader.release()
        out.begin_call(name)
        out.arguments("{")
        separator = ""
        while True:
            yield from reader.space()
            if (yield from reader.literal(")")):
                out.arguments("}")
                break
            key = yield from reader.run(_WORD)
            yield from reader.space()
            if not key or not (yield from reader.literal("=")):
                break
            yield from reader.space()
            out.arguments(f"{separator}{json.dumps(key)}: ")
            if not (yield from reader.json(out.arguments)):
                break
            separator = ", "
            yield from reader.space()
            yield from reader.literal(",")
        out.end_call()
        return True

    def _call(self, tool: Tool) -> Sequence[Piece]:
        return call_pieces(tool, "parameters")
