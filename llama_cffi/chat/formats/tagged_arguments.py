"""Calls with a pair of tags around each argument, and strings without quotes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...schema import ANY_TYPE, allowed_types, json_type, resolved
from ..scanner import Emit, Parser, Scanner, is_json, loads, quoted
from .base import MarkedFormat
from .json_calls import known_names, parse_call
from .message import MessageBuilder
from .syntax import (
    LINE,
    Alternatives,
    Element,
    Json,
    Maybe,
    Schema,
    Text,
    Tool,
    Tools,
    arguments_schema,
    function_name,
    parameter_schemas,
)
from .unquoted import is_text, read_unquoted

__all__ = ["KimiK3Format", "TaggedArgumentsFormat", "raw_value"]

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^<>\"\n]*")
_ATTRIBUTES = re.compile(r"[^<>\n]*")
_TYPES = {"integer": "number", "number": "number", "boolean": "boolean", "null": "null",
          "array": "array", "object": "object"}  # fmt: skip
_STRING = frozenset({"string"})
_MAX_DEPTH = 20  # levels of schemas within the schema of a text
# Bounds the time for a model that repeats the beginning of a call without end.
_MAX_NESTED_DEPTH = 8
_MAX_NESTED = 64  # tags that begin a call
_WRAPPERS = ("arguments", "parameters", "input")  # what some models put around all arguments


@dataclass
class TaggedArgumentsFormat(MarkedFormat):
    """``open before name after_name (key value)* after close``.

    Qwen3-Coder and Qwen3.5, Nemotron 3, Seed-OSS, MiniMax M2, MiniCPM 5, GLM 4.5 and later,
    DeepSeek V3.2, Hunyuan 3.

    Nothing is escaped, so where a value ends is a matter of rules:

    - An end tag ends a value if the next parameter, the end of the call or the end of the text
      follows; else it is part of the value. The next parameter is one that was not given before;
      a name that the function does not have counts only where line breaks are as the template
      writes them.
    - If the end of the call and other text follow, and the same end again, the last one counts.
    - Complete calls within a value are part of it.
    - If the end tag is missing, the value ends before the next parameter that the function has,
      before the end of the call, or before the next call.
    - A line break next to a missing tag is not part of the value.

    What is not a parameter is skipped up to the next tag.

    Args:
        name: Name of the format.
        template_markers: See `ToolFormat`.
        open: The marker before one call or several; may be empty.
        before: The text before the name; may be empty.
        after_name: The text after the name.
        key: The text before and after a key. If the text after a key gives the type of the value:
            first the one for strings, then those for other types.
        value: The text before and after a value.
        after: The text after a call.
        close: The marker that closes `open`; may be empty.
        is_shared: Whether one `open` and `close` enclose all calls.
        is_inline: Whether a key's tag may follow a value on the same line.
        frame: White space around a value that belongs to its tags.
        raw: The text around a string that contains special characters; may be empty.
        body: The text around arguments that are written as a JSON object instead; may be empty.
        variants: Other pairs of `open` and `close` that models write.
        reasoning: The markers before and after reasoning.
        content: Markers around a text answer.
    """

    name: str
    template_markers: tuple[str, ...]
    open: str
    before: str
    after_name: str
    key: tuple[str, ...]
    value: tuple[str, str]
    after: str
    close: str
    is_shared: bool = False
    is_inline: bool = False
    frame: str = ""
    raw: tuple[str, str] = ("", "")
    body: tuple[str, str] = ("", "")
    variants: tuple[tuple[str, str], ...] = ()
    reasoning: tuple[str, str] = ("<think>", "</think>")
    content: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._opens = _filled(self.open, *(opened for opened, _ in self.variants))
        self._closes = _filled(self.close, *(closed for _, closed in self.variants))
        # Models sometimes omit the outer tag.
        self.triggers = _filled(*self._opens, self.before)
        self._ends = _filled(self.after, *self._closes)
        self._tags = _filled(self.key[0], *self._ends, *self.triggers)
        self.content_markers = self.content
        self.content_head = self.content[0] if self.content else ""

    def _parse_calls(
        self, marker: str, scanner: Scanner, out: MessageBuilder, tools: Tools | None
    ) -> Parser[None]:
        is_inside = marker == self.before
        n_calls = len(out.calls)
        while True:
            yield from scanner.space()
            call = yield from scanner.attempt(self._head(scanner, tools, is_inside))
            if call is None:
                # Fine-tuned models write Hermes calls with these templates.
                if len(out.calls) == n_calls:
                    yield from parse_call(scanner, out)
                    yield from self._follow(scanner, *self._ends)
                break
            scanner.commit()
            if not (yield from self._parse_one(scanner, out, call)):
                return
            if is_inside or not self.before:
                break
        yield from scanner.space()
        if self._closes:
            yield from scanner.literal(*self._closes)

    def _parse_one(self, scanner: Scanner, out: MessageBuilder, call: _Call) -> Parser[bool]:
        """Parse the arguments of a call and its end; return whether it ended."""
        out.begin_call(call.name)
        yield from self._parse_body(scanner, out, call)
        while True:
            yield from scanner.space()
            if (yield from scanner.literal(*self._ends)):
                out.arguments("}")
                out.end_call()
                return True
            key = yield from scanner.attempt(self._key(scanner, call))
            if key is not None:
                yield from self._parse_value(scanner, out, call, *key)
            elif (yield from self._skip(scanner)):
                out.malformed()
            else:
                out.end_call()
                return False

    def _parse_body(self, scanner: Scanner, out: MessageBuilder, call: _Call) -> Parser[None]:
        """Begin the arguments; parse those that are a JSON object."""
        yield from scanner.space()
        if self.body[0]:
            yield from scanner.literal(self.body[0])
        if (yield from scanner.available(1)) != "{":
            out.arguments("{")
            return
        text = yield from scanner.trial(_json(scanner))
        if text is None:
            parts: list[str] = []
            yield from scanner.before(self._tags, parts.append)
            text = "".join(parts)
        text = call.unwrapped(text)
        call.given.update(loads(text) or ())
        out.arguments(text.rstrip().removesuffix("}"))
        yield from scanner.space()
        if self.body[1]:
            yield from scanner.literal(self.body[1])

    def _parse_value(
        self, scanner: Scanner, out: MessageBuilder, call: _Call, key: str, types: frozenset[str]
    ) -> Parser[None]:
        """Parse a value and its end tag; emit strings as they arrive, others when complete."""
        separator = ", " if call.given else ""
        name = json.dumps(key, ensure_ascii=False)
        is_wrapper = call.is_wrapper(key) and not call.given
        call.given.add(key)
        ends = self._value_ends(key)
        if self.frame:
            yield from scanner.literal(self.frame)
        if self.raw[0] and (yield from scanner.literal(self.raw[0])):
            types = types & _STRING or types
            ends = (self.raw[1] + self.value[1],)
        can_be_null = "null" in types and (yield from scanner.available(4)) in ("null", "None")
        if is_text(types) and not is_wrapper and not can_be_null:
            out.arguments(f'{separator}{name}: "')
            ended = yield from self._text(
                scanner, lambda text: out.arguments(quoted(text)), call, ends
            )
            out.arguments('"' if ended else "")
            return
        # An end tag inside a JSON string is part of the string.
        text = yield from scanner.trial(self._json_value(scanner, types, ends))
        if text is None:
            parts: list[str] = []
            ended = yield from self._text(scanner, parts.append, call, ends)
            text = "".join(parts)
            if not ended and "string" not in types:
                # What can be completed is.
                out.arguments(f"{separator}{name}: {text}")
                return
        member = f"{{{name}: {read_unquoted(text, types)}}}"
        out.arguments(separator + (call.unwrapped(member) if is_wrapper else member)[1:-1])

    def _json_value(
        self, scanner: Scanner, types: frozenset[str], ends: tuple[str, ...]
    ) -> Parser[str | None]:
        """Return a JSON value of an allowed type before an end; consume its end tag."""
        text = yield from _json(scanner)
        if text is None or json_type(loads(text)) not in types:
            return None
        yield from scanner.space()
        if (yield from scanner.literal(*ends)):
            return text
        found = yield from scanner.peek(scanner.literal(*self._tags))
        return text if found or not (yield from scanner.available(1)) else None

    def _text(
        self, scanner: Scanner, emit: Emit, call: _Call, ends: tuple[str, ...]
    ) -> Parser[bool]:
        """Emit a text and consume its end tag; return False if the answer ends before."""
        lines = _Lines(emit)
        tags = (*ends, *self._tags)
        while True:
            found = yield from scanner.before(tags, lines.push)
            if found is None:
                lines.end("\n")
                return False
            here = scanner.position
            end = yield from scanner.peek(self._end(scanner, call, found, ends, lines.is_at_start))
            if end == here:
                is_tag = found in ends
                lines.end(self.frame if is_tag else "\n")
                scanner.take(len(found) if is_tag else 0)
                return True
            lines.push(scanner.take(len(found) if end is None else end - here))

    # Where a value ends. The following parsers are for `Scanner.peek` and `Scanner.attempt`.

    def _end(
        self, scanner: Scanner, call: _Call, found: str, ends: tuple[str, ...], is_at_start: bool
    ) -> Parser[int | None]:
        """Return the position at which the value ends; None: not at the tag *found*, maybe later.

        Args:
            scanner: Before the tag.
            call: The call.
            found: The tag.
            ends: The end tags of the value.
            is_at_start: Whether the tag is at the start of a line.
        """
        here = scanner.position
        if found in ends:
            scanner.take(len(found))
            is_end = yield from self._is_end(scanner, call, is_at_start)
        elif found == self.key[0]:
            key = yield from self._key(scanner, call)
            if key is None or not (is_at_start or self.is_inline):
                return None
            if not call.expects(key[0], False) or (yield from self._follows(scanner, ends, key[0])):
                return None
            return here
        elif found in self._ends:
            is_end = yield from scanner.peek(self._is_end_of_call(scanner, call))
            is_end = False if is_end is False else None
        else:
            nested = yield from scanner.peek(self._nested(scanner))
            if nested is None:
                return None
            is_whole = found in self._opens or self.is_shared or not call.has_close
            is_next = is_whole and is_at_start and call.may_call(nested)
            later = yield from self._later_end(scanner, call, ends)
            return here if later is None and is_next else later
        if is_end is not None:
            return here if is_end else None
        later = yield from self._later_end(scanner, call, ends)
        return here if later is None else later

    def _follows(self, scanner: Scanner, ends: tuple[str, ...], key: str) -> Parser[bool]:
        """Return whether the parameter *key* begins after the next end tag."""
        yield from scanner.until(ends)
        before, *after = self.key
        return bool((yield from self._follow(scanner, *(f"{before}{key}{tag}" for tag in after))))

    def _is_end(self, scanner: Scanner, call: _Call, is_framed: bool) -> Parser[bool | None]:
        """Return whether the end tag before ends the value; None: if it is the last one."""
        yield from scanner.space()
        if not (yield from scanner.available(1)):
            return True
        key = yield from scanner.attempt(self._key(scanner, call))
        if key is not None:
            if self.frame:
                is_framed = is_framed and bool((yield from scanner.literal(self.frame)))
            return call.expects(key[0], is_framed or not self.frame)
        if (yield from scanner.peek(scanner.literal(*self._ends))):
            return (yield from self._is_end_of_call(scanner, call))
        name = yield from self._nested(scanner)
        return name is not None and call.may_call(name)

    def _is_end_of_call(self, scanner: Scanner, call: _Call) -> Parser[bool | None]:
        """Return whether the next tags end the call; None: if they are the last ones."""
        found = yield from scanner.literal(*self._ends)
        yield from scanner.space()
        if found == self.after and self._closes:
            found = (yield from scanner.literal(*self._closes)) or found
            yield from scanner.space()
        if not (yield from scanner.available(1)) or (yield from self._nested(scanner)):
            return True
        return None if found in self._closes or not call.has_close else False

    def _nested(self, scanner: Scanner) -> Parser[str | None]:
        """Return the name of the call that begins here; None: none does."""
        opened = (yield from scanner.literal(*self._opens)) if self._opens else None
        yield from scanner.space()
        if self.before:
            if not (yield from scanner.literal(self.before)):
                return None
        elif not opened:
            return None
        name = yield from scanner.match(_NAME)
        if not name or not (yield from self._after_name(scanner)):
            return None
        return name if (yield from self._follow(scanner, self.key[0], *self._ends)) else None

    def _later_end(
        self, scanner: Scanner, call: _Call, ends: tuple[str, ...]
    ) -> Parser[int | None]:
        """Return the position of the next end of the value that is not within a nested call."""
        depth = n_nested = 0  # of sections and calls within the value
        lines = _Lines(lambda _: None)
        while True:
            found = yield from scanner.before((*ends, *self._tags), lines.push)
            here = scanner.position
            if found is None:
                return None
            if found in self.triggers and (yield from scanner.peek(self._nested(scanner))):
                depth += 1
                n_nested += 1
                if depth > _MAX_NESTED_DEPTH or n_nested > _MAX_NESTED:
                    return None
            elif found in self._ends and depth:
                depth -= 1
            is_at_start = lines.is_at_start
            lines.push(scanner.take(len(found)))
            if found in ends and not depth:
                is_end = yield from scanner.peek(self._is_end(scanner, call, is_at_start))
                if is_end is not False:
                    return here

    # Tags

    def _head(self, scanner: Scanner, tools: Tools | None, is_inside: bool) -> Parser[_Call | None]:
        """Parse the beginning of a call; return None if no arguments and no end follow."""
        if self.before and not is_inside and not (yield from scanner.literal(self.before)):
            return None
        name = yield from scanner.peek(scanner.match(_NAME))
        if not self.after_name:
            name = yield from scanner.peek(self._known_name(scanner, name, tools))
        scanner.take(len(name))
        call = _Call(name, tools, bool(self._closes) and not is_inside)
        if not name or not (yield from self._after_name(scanner)):
            return None
        return call if (yield from scanner.peek(self._has_arguments(scanner, call))) else None

    def _known_name(self, scanner: Scanner, name: str, tools: Tools | None) -> Parser[str]:
        """Return the known name in *name* if the tag between it and the first key is missing."""
        scanner.take(len(name))
        if (yield from scanner.literal(self.key[1])):
            for known in sorted(known_names(tools) or (), key=len, reverse=True):
                if _Call(known, tools).has(name.removeprefix(known)):
                    return known
        return name

    def _after_name(self, scanner: Scanner) -> Parser[bool]:
        if not self.after_name or (yield from scanner.literal(self.after_name)):
            return True
        # Some models forget the end of the tag.
        return bool((yield from scanner.peek(self._follow(scanner, self.key[0], *self._ends))))

    def _has_arguments(self, scanner: Scanner, call: _Call) -> Parser[bool]:
        tags = ("{", self.key[0], *_filled(self.body[0]), *self._ends)
        if (yield from scanner.peek(self._follow(scanner, *tags))):
            return True
        if (yield from self._key(scanner, call)):
            return True
        is_end = not (yield from scanner.available(1))
        return bool(self.after_name) and (is_end or (yield from self._skip(scanner)))

    def _follow(self, scanner: Scanner, *tags: str) -> Parser[str | None]:
        """Consume white space and one of *tags*."""
        yield from scanner.space()
        return (yield from scanner.literal(*tags))

    def _key(self, scanner: Scanner, call: _Call) -> Parser[tuple[str, frozenset[str]] | None]:
        """Parse a key and its tags; return it and the types that its value may have."""
        before, after, *others = self.key
        has_tag = yield from scanner.repeats(before)  # some models write it twice
        if not has_tag:  # or the one of the call in its place, or none
            if not self.value[0]:
                return None
            yield from scanner.literal(*self._opens)
        key = (yield from scanner.match(_KEY)).strip()
        found = yield from scanner.literal(after, *others)
        if found is None and others:  # the type is missing
            found = yield from scanner.literal('">')
        elif found is None and call.has(key):
            is_line = (yield from scanner.available(1)) == "\n"
            found = "" if is_line and not self.value[0] else found
            if self.value[0] and (yield from scanner.peek(scanner.literal(self.value[0]))):
                found = ""
        if not key or found is None or not (has_tag or (found and call.has(key))):
            return None
        if self.value[0]:
            yield from scanner.repeats(after)
            yield from scanner.space()
            if not (yield from scanner.literal(self.value[0])) and not call.has(key):
                return None
        types = call.types_of(key)
        if others and found == after:  # the tag says that it is a string
            types = types & _STRING or types
        elif found in others:
            types = ANY_TYPE
        return key, types

    def _value_ends(self, key: str) -> tuple[str, ...]:
        """Return the end tag of a value, and the one that models write in its place."""
        named = re.sub(r"\w+>$", f"{key}>", self.value[1])
        return tuple(dict.fromkeys(tag for tag in (self.value[1], named) if tag not in self._ends))

    def _skip(self, scanner: Scanner) -> Parser[bool]:
        """Skip what is not a parameter if another tag of this call follows, and return that."""
        length = yield from scanner.peek(self._broken_length(scanner))
        scanner.take(length or 0)
        return length is not None

    def _broken_length(self, scanner: Scanner) -> Parser[int | None]:
        start = scanner.position
        if (yield from scanner.peek(self._nested(scanner))):
            return None
        scanner.take(1)
        found = yield from scanner.before(self._tags)
        is_ours = found is not None and found not in self.triggers
        return scanner.position - start if is_ours else None

    # Grammar

    def _around(self) -> tuple[str, str, str]:
        if self.is_shared:
            return self.open, "", self.close
        return "", "\n" if self.frame else "", ""

    def _call(self, tool: Tool) -> Sequence[Element]:
        # Some templates of a family write line breaks, others do not.
        opened, closed = ("", "") if self.is_shared else (self.open, self.close)
        elements: list[Element] = [opened, LINE] if self.open and self.before else [opened]
        elements += self._header(function_name(tool))
        for key, schema, is_required in parameter_schemas(tool):
            parameter = self._parameter(key, schema)
            elements += parameter if is_required else [Maybe(parameter)]
        end: list[Element] = [LINE, closed] if self.close else []
        return [*elements, self.after, *end]

    def _header(self, name: str) -> list[Element]:
        return [f"{self.before}{name}{self.after_name}", LINE]

    def _parameter(self, key: str, schema: Schema) -> tuple[Element, ...]:
        end = f"{self.frame}{self.value[1]}"
        tag: list[Element] = [f"{self.key[0]}{key}", self._after_key(schema)]
        if self.value[0]:
            tag += [LINE, self.value[0]]
        return *tag, self.frame, *raw_value(schema, end), LINE

    def _after_key(self, schema: Schema) -> Element:
        if len(self.key) == 2 or allowed_types(schema) == _STRING:
            return self.key[1]
        value_type = _TYPES.get(str(schema.get("type")))
        known = tuple((after,) for after in self.key[2:] if f'"{value_type}"' in after)
        return Alternatives(known or tuple((after,) for after in self.key[2:]))


class KimiK3Format(TaggedArgumentsFormat):
    """Kimi K3: tags have attributes, and calls are numbered."""

    def __init__(self) -> None:
        types = ("string", "number", "boolean", "null", "array", "object")
        super().__init__(
            "kimi-k3", ("<|open|>", "<|close|>", "<|end_of_msg|>"), "<|open|>tools<|sep|>",
            '<|open|>call tool="', '"',
            ('<|open|>argument key="', *(f'" type="{value_type}"<|sep|>' for value_type in types)),
            ("", "<|close|>argument<|sep|>"), "<|close|>call<|sep|>", "<|close|>tools<|sep|>",
            is_shared=True, is_inline=True,
            body=('<|open|>json type="object"<|sep|>', "<|close|>json<|sep|>"),
            reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
            content=(
                "<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>",
                "<|end_of_msg|>",
            ),
        )  # fmt: skip

    def _after_name(self, scanner: Scanner) -> Parser[bool]:
        yield from scanner.match(_ATTRIBUTES)
        return bool((yield from scanner.literal("<|sep|>")))

    def _header(self, name: str) -> list[Element]:
        return [f'{self.before}{name}" index="', Json({"enum": [*range(1, 100)]}), '"<|sep|>']

    def _before(self) -> tuple[Element, ...]:
        # The prompt may have opened a text answer.
        opened, closed = self.content[:2]
        return (Maybe((Maybe((opened,)), closed)),)


class _Call:
    """A call whose arguments are parsed, and what its function's schema says.

    Attributes:
        name: The name of the function.
        has_close: Whether a tag should follow that closes an outer one.
        given: The parameters so far.
    """

    def __init__(self, name: str, tools: Tools | None, has_close: bool = False) -> None:
        self.name = name
        self.has_close = has_close
        self.given: set[str] = set()
        self._names = known_names(tools)
        self._types: dict[str, frozenset[str]] | None = None
        for tool in tools or ():
            if function_name(tool) == name:
                schema = arguments_schema(tool)
                properties: Mapping[str, object] = schema.get("properties") or {}
                self._types = {key: allowed_types(properties[key], schema) for key in properties}

    def types_of(self, key: str) -> frozenset[str]:
        """Return the types that a parameter's schema allows."""
        return ANY_TYPE if self._types is None else self._types.get(key, ANY_TYPE)

    def has(self, key: str) -> bool:
        """Return whether the function has a parameter, or may have it."""
        return (
            bool(_NAME.fullmatch(key) if self._types is None else key in self._types) and key != ""
        )

    def expects(self, key: str, is_certain: bool) -> bool:
        """Return whether a parameter comes next.

        Args:
            key: Its name.
            is_certain: Whether it is one even if the function does not have it.
        """
        return key not in self.given and (is_certain or self._types is None or self.has(key))

    def may_call(self, name: str) -> bool:
        """Return whether there is a function with this name, or may be."""
        return self._names is None or name in self._names

    def is_wrapper(self, key: str) -> bool:
        """Return whether a parameter that the function does not have contains all arguments."""
        return bool(self._types) and not self.has(key) and key in _WRAPPERS

    def unwrapped(self, text: str) -> str:
        """Return arguments as JSON without a wrapper around them."""
        value = loads(text)
        if not isinstance(value, dict) or len(value) != 1 or self._types is None:
            return text
        [(key, inner)] = value.items()
        if not self.is_wrapper(key):
            return text
        read = loads(inner) if isinstance(inner, str) else inner
        if not isinstance(read, dict):
            if len(self._types) > 1:
                return text
            read = {next(iter(self._types)): inner}
        return json.dumps(read, ensure_ascii=False)


class _Lines:
    """Emits text except for a line break at its end.

    Attributes:
        is_at_start: Whether the next text begins a line.
    """

    def __init__(self, emit: Emit) -> None:
        self.is_at_start = True
        self._emit = emit
        self._rest = ""

    def push(self, text: str) -> None:
        """Add text."""
        text = self._rest + text
        kept = text.removesuffix("\n")
        self._rest = text[len(kept) :]
        self.is_at_start = bool(self._rest) or (self.is_at_start and not kept)
        if kept:
            self._emit(kept)

    def end(self, frame: str) -> None:
        """End the text; *frame* is a line break that is not part of it, or empty."""
        if self._rest and not frame:
            self._emit(self._rest)


def _filled(*tags: str) -> tuple[str, ...]:
    return tuple(filter(None, tags))


def _json(scanner: Scanner) -> Parser[str | None]:
    text = yield from scanner.json_text()
    return text if text is not None and is_json(text) else None


def raw_value(schema: Schema, end: str) -> tuple[Element, ...]:
    """Return the syntax of a value and its *end*: a string without quotes, or JSON."""
    if not is_text(allowed_types(schema)):
        return Json(schema), end
    options = tuple((option, end) for option in _texts(schema, schema, end))
    return options[0] if len(options) == 1 else (Alternatives(options),)


def _texts(schema: Any, root: Schema, end: str, depth: int = 0) -> Iterator[Element]:
    """Yield the alternatives for text, or null, that ends before *end*."""
    types = allowed_types(schema, root)
    if not isinstance(schema, Mapping) or depth == _MAX_DEPTH:
        yield Text(end)
    elif "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        known = (value for value in values if json_type(value) in types)
        yield from ("null" if value is None else value for value in known)
    elif parts := _parts(schema, root):
        for part in parts:
            yield from _texts(part, root, end, depth + 1)
    elif types == {"null"}:
        yield "null"
    else:
        yield Text(end, schema)
        if "null" in types and schema.keys() & {"minLength", "maxLength", "pattern"}:
            yield "null"


def _parts(schema: Schema, root: Schema) -> list[Any]:
    """Return the schemas of which a schema that says nothing else is made."""
    if "type" in schema:
        return []
    if "$ref" in schema:
        return [resolved(schema["$ref"], root)]
    every = schema.get("allOf") or ()
    return [*(schema.get("anyOf") or schema.get("oneOf") or (every if len(every) == 1 else ()))]
