"""Render tool calls with chat templates and parse them back with the detected tool format.

The templates are those in llama.cpp's sources. For each, the table shows the family, the thinking
mode and the tool format that this package detects, and whether the format parses the same calls,
reasoning and content from the turn that the template renders.

    python tools/round_trips.py                        # fetched, or from the cache
    python tools/round_trips.py --templates FOLDER     # *.jinja in a folder
    python tools/round_trips.py --show NAME            # the turns of one of them

A row counts the turns (one call or two, with and without text and reasoning) that are the `same`,
and names the parts of other turns that differ; `none` means that the template renders no calls or
fails on them. Then it counts the calls that come back equal, of calls with values that look like
other types or like the format's own tags, parsed whole and character by character; a call is
`ambiguous` if the template writes what comes back exactly like the call. The exit status is 1 if a
turn or a call differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from template_sources import fetch

from llama_cffi.chat.families import Family, identify
from llama_cffi.chat.formats import ToolFormat
from llama_cffi.chat.reasoning import opens_thinking
from llama_cffi.chat.template import ChatTemplate
from llama_cffi.errors import LlamaError

BOS, EOS = "<s>", "</s>"
USER = {"role": "user", "content": "Hi"}
ANSWER, REASONING = "Let me look.", "I need a tool."
CALLS = [
    ("note", {"text": 'a "b"\n<c>', "n": 3, "b": True, "tags": ["x", "y"], "at": {"k": 1.5}}),
    ("now", {}),
]
_SCHEMAS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "n": {"type": "integer"},
    "b": {"type": "boolean"},
    "tags": {"type": "array"},
    "at": {"type": "object", "additionalProperties": {"type": "number"}},
}


def _tool(name: str, schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    properties: dict[str, Any] = {
        key: {**schema, "description": "Any."} for key, schema in schemas.items()
    }
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    function = {"name": name, "description": f"To {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [_tool("note", _SCHEMAS), _tool("now", {})]


STRING: dict[str, Any] = {"type": "string"}
NULLABLE: dict[str, Any] = {"anyOf": [STRING, {"type": "null"}]}
_LOOKALIKES = ("90210", "true", "null", "None", "1e5", "-0", "[1]", '{"a": 1}', '"a"', "'a'", "")
_TEXTS = (
    "a \"b\" 'c' \\d",
    "\n\nline\n\n",
    " \t spaces ",
    "é中😀\ufffd",  # not U+2028, which Jinja's filter `indent` replaces
    "}]{[,:",
    "<b>x</b> &amp; <br/>",
    "a=1, b='2')",
    "```json\n{}\n```",
    "]]>",
)


def values(form: ToolFormat, call: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield schemas and values that fit them, for the parameter of a call.

    Args:
        form: The format in which calls are written; its tags are among the texts.
        call: A whole call, as the template renders it.
    """
    texts = [*_TEXTS, call, f"See:\n{call}\n", "\n".join(tags(form)), " ".join(tags(form)[::-1])]
    for tag in tags(form):
        texts += [f"a {tag} b", f"\n{tag}\n", tag, f"a{tag}"]
    for text in (*_LOOKALIKES, *texts):
        yield STRING, text
    for text in ("90210", "true", "1e5", "[1]", '{"a": 1}', "x", None):
        yield NULLABLE, text
    for text in texts:
        yield {"type": "array", "items": STRING}, [text, "b"]
        yield {"type": "object", "additionalProperties": STRING}, {"k": text}
    yield {"type": "integer"}, -(2**53) - 1
    yield {"type": "number"}, 1e-7
    yield {"type": "boolean"}, False
    yield {"type": "array", "items": {"type": "array", "items": NULLABLE}}, [["90210", None], []]
    nested = {"type": "object", "properties": {"b": {"type": "array", "items": STRING}}}
    yield {"type": "object", "properties": {"a": nested}}, {"a": {"b": ["1", "true", ""]}}


def tags(form: ToolFormat) -> list[str]:
    """Return the tags of a format."""
    found = [*form.triggers, *form.template_markers]
    for name in ("open", "close", "after", "before", "between", "end", "quote"):
        found.append(getattr(form, name, ""))
    for name in ("key", "value", "raw"):
        found += getattr(form, name, ())
    known = (tag.strip() for tag in found if isinstance(tag, str))
    return sorted({tag for tag in known if len(tag) > 1})


class Turn(NamedTuple):
    """One rendered message.

    Attributes:
        text: The text that the template renders.
        calls: The calls in it, as (name, arguments).
        reasoning: The reasoning in it.
        content: The content in it.
        is_open: Whether the prompt before it ends inside reasoning.
    """

    text: str
    calls: list[tuple[str, dict[str, Any]]]
    reasoning: str
    content: str
    is_open: bool


def turns(template: ChatTemplate, family: Family) -> Iterator[tuple[str, Turn]]:
    """Yield a name and a turn for each kind of message that the template renders."""
    thinks = family.thinking != "never"
    for number in (2, 1):
        for content in (None, ANSWER):
            for reasoning in (REASONING, "") if thinks else ("",):
                message = _message(CALLS[:number], content, reasoning)
                parts = (f"{number} calls", "text" * bool(content), "reasoning" * bool(reasoning))
                found = rendered(template, family, message, TOOLS)
                if found is None or "note" not in found[1]:
                    continue
                is_open, text = found
                yield (
                    ", ".join(filter(None, parts)),
                    Turn(
                        text,
                        [call for call in CALLS[:number] if call[0] in text],
                        reasoning if reasoning in text else "",
                        ANSWER if ANSWER in text else "",
                        is_open,
                    ),
                )


def _message(calls: Any, content: str | None, reasoning: str) -> dict[str, Any]:
    message = {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": f"call0000{i}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for i, (name, arguments) in enumerate(calls)
        ],
    }
    return {**message, "reasoning_content": reasoning} if reasoning else message


def rendered(
    template: ChatTemplate, family: Family, message: dict[str, Any], tools: list[dict[str, Any]]
) -> tuple[bool, str] | None:
    """Return whether the prompt ends inside reasoning, and the text rendered after the prompt."""
    has_reasoning = bool(message.get("reasoning_content"))
    more: dict[str, Any] = {}
    if "functions" in template.variables:
        more = {"functions": json.dumps(tools), "datetime": "2025-07-04"}
    if family.switch:
        more[family.switch] = has_reasoning
    try:
        prompt = template.render([USER], tools, **more)
        before = template.render([USER], tools, False, **more)
        whole = template.render([USER, message], tools, False, **more)
    except LlamaError:
        return None
    start, end = family.tool_format.reasoning
    if whole.startswith(prompt):
        text = whole[len(prompt) :]
        return opens_thinking(prompt, start) and end in text, text
    # The turn does not begin as the prompt ends: cut it where they diverge, before a tag.
    text = whole[len(_shared(before, whole)) :]
    head = prompt[len(_shared(before, prompt)) :]
    common = _shared(head, text)
    if common.rfind("<") > common.rfind(">"):
        common = common[: common.rfind("<")]
    text = text[len(common) :]
    return opens_thinking(prompt, start) and end in text, text


def _shared(a: str, b: str) -> str:
    """Return the common prefix of two strings."""
    pairs = enumerate(zip(a, b, strict=False))
    return a[: next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))]


def called(template: ChatTemplate, family: Family, step: int = 1) -> Iterator[tuple[str, Any, str]]:
    """Yield (verdict, arguments, rendered turn and parsed calls) for every *step*-th value."""
    form = family.tool_format
    example = rendered(template, family, _message(CALLS[:1], None, ""), TOOLS)
    if example is None or "note" not in example[1]:
        return
    for schema, value in islice(values(form, example[1]), 0, None, step):
        other = {"type": "integer"}
        for arguments in ({"value": value, "count": 7}, {"count": 7, "value": value}):
            types = {key: schema if key == "value" else other for key in arguments}
            tools = [_tool("put", types), *TOOLS]
            found = rendered(template, family, _message([("put", arguments)], None, ""), tools)
            if found is None:
                continue
            is_open, text = found
            parsed = _parsed(form, text, tools, is_open)
            wanted = [("put", json.dumps(arguments, sort_keys=True))]
            if [(name, json.dumps(read, sort_keys=True)) for name, read in parsed] == wanted:
                kind = "equal calls"
            else:
                again = rendered(template, family, _message(parsed, None, ""), tools)
                kind = "ambiguous calls" if again == found else "other calls"
            yield kind, arguments, f"{text!r}\n    {parsed}"


def _parsed(form: ToolFormat, text: str, tools: Any, is_open: bool) -> list[tuple[str, Any]]:
    """Return the calls in a turn; none if they depend on how the turn is split, or are broken."""
    results = []
    for pieces in ([text], text):
        stream = form.stream(tools, starts_open=is_open)
        deltas = [delta for piece in pieces for delta in stream.push(piece)] + stream.finish()
        calls = stream.message.tool_calls
        arguments = [""] * len(calls)
        for delta in deltas:
            for part in delta.get("tool_calls", ()):
                arguments[part["index"]] += part["function"]["arguments"]
        if stream.message.is_malformed or arguments != [call.arguments for call in calls]:
            return []
        results.append([(call.name, json.loads(call.arguments)) for call in calls])
    return results[0] if results[0] == results[1] else []


def verdict(family: Family, turn: Turn) -> tuple[str, str]:
    """Parse a turn as an answer; return the verdict and the parsed message."""
    message = family.tool_format.parse(turn.text, TOOLS, starts_open=turn.is_open)
    found = []
    for call in message.tool_calls:
        try:
            found.append((call.name, json.loads(call.arguments)))
        except ValueError:
            found.append((call.name, call.arguments))
    is_same = found == turn.calls and not message.is_malformed
    reasoning = message.reasoning_content.strip() in (turn.reasoning, turn.content)
    content = turn.content in message.reasoning_content + message.content
    checks = {"calls": is_same, "reasoning": reasoning, "content": content}
    differing = [name for name, ok in checks.items() if not ok]
    return (
        " ".join(differing) or "same"
    ), f"{found} {message.reasoning_content!r} {message.content!r}"


def check(path: Path, show: bool) -> tuple[str, Counter[str]]:
    """Check one template; return its row and its counts."""
    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(source, BOS, EOS)
    family = identify({}, f"{path.stem}.gguf", source)
    counts: Counter[str] = Counter()
    for name, turn in turns(template, family):
        kind, parsed = verdict(family, turn)
        counts[kind] += 1
        if show or kind != "same":
            print(f"    {kind}: {path.stem}: {name}{' (open)' * turn.is_open}")
            print(f"    {turn.text!r}\n    {parsed}")
    if not counts:
        counts["none"] += 1
    for kind, arguments, details in called(template, family):
        counts[kind] += 1
        if kind == "other calls":
            print(f"    call: {path.stem}: {arguments}\n    {details}")
    name = f"{family.name} {family.version}".strip()
    row = f"{path.stem:46.46} {name:22.22} {family.thinking:8} {family.tool_format.name:17}"
    return row + " " + ", ".join(f"{n} {kind}" for kind, n in counts.items()), counts


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--templates", type=Path, help="a folder with *.jinja instead of fetching")
    parser.add_argument("--show", metavar="NAME", help="only templates with NAME; show the turns")
    args = parser.parse_args()
    total: Counter[str] = Counter()
    rows = []
    found = sorted(args.templates.glob("*.jinja")) if args.templates else fetch()
    found = [path for path in found if (args.show or "") in path.name]
    for path in found:
        row, counts = check(path, bool(args.show))
        rows.append(row)
        total += counts
    print("\n".join(rows))
    print(f"{len(found)} templates, {dict(total)}")
    return 1 if total.keys() - {"same", "none", "equal calls", "ambiguous calls"} else 0


if __name__ == "__main__":
    sys.exit(main())
