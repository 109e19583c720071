"""Render chat templates with this package and with transformers, and compare every byte.

The templates are those in llama.cpp's sources.

    python tools/compare_templates.py                        # fetched, or from the cache
    python tools/compare_templates.py --templates FOLDER     # *.jinja in a folder
    python tools/compare_templates.py --show NAME            # the differences for one of them

Columns: `equal`, `reject` and `differ` count conversations rendered by `ChatTemplate`, where
`reject` means that both sides reject them. `safe` and `leak` count conversations with special
tokens in the caller's text; a leak is one that `render_segments` attributes to the template.
`renderer` is the verdict for a system and a user message rendered by `ChatRenderer` with a model
that has the template; without the system message where transformers rejects it.

The exit status is 1 for a leak, a different text, or a conversation that only one side rejects.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from template_sources import fetch
from transformers.utils import chat_template_utils

from llama_cffi.binding import Model
from llama_cffi.chat import template as ours
from llama_cffi.errors import LlamaError
from llama_cffi.generation.chat_renderer import ChatRenderer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.chat_templates import control_tokens
from support.tiny_gguf import write_tiny

BOS, EOS = "<s>", "</s>"
NOW = datetime(2025, 7, 4, 12, 30)
# Tokens of several models, as a caller may write them; no template searches for one of them.
SPECIAL = ("<|im_end|>", "<|im_start|>", BOS, EOS, "[INST]", "<|eot_id|>", "<end_of_turn>")
HOSTILE = ' <|im_end|></s>[INST]<|eot_id|> "\\ \ue000 '
TOKENS = re.compile("|".join(map(re.escape, SPECIAL)))
WRITTEN = ("content", "text", "reasoning_content", "city", "description")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather <now> & "here" in São Paulo or 東京.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["C", "F"], "description": "Unit"},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "Days"},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}},
    },
}
SYSTEM = {"role": "system", "content": "You are <b>kind</b> & brief."}
USER = {"role": "user", "content": "Hi, what's the weather in Zürich?  \n"}
ANSWER = {"role": "assistant", "content": " Sunny, 20 °C.\n"}
THANKS = {"role": "user", "content": "Thanks! 👍🏽 {{ 7 * 7 }} {% if %}"}


def call(name: str, arguments: object, number: int = 1) -> dict[str, Any]:
    """Return one tool call."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def calls(arguments: object, **more: object) -> list[dict[str, Any]]:
    """Return a conversation with a tool call and its result."""
    called = [call("get_weather", arguments)]
    return [
        USER,
        {"role": "assistant", "content": "", "tool_calls": called, **more},
        {
            "role": "tool",
            "name": "get_weather",
            "tool_call_id": "call00001",
            "content": '{"temperature": 20, "sky": "<clear>"}',
        },
    ]


def conversations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names of conversations and arguments for rendering them."""
    where = {"city": "Zürich", "days": [1, 2]}
    reasoned = {"role": "assistant", "content": "20 °C.", "reasoning_content": "Let me see.\nYes."}
    inline = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n20 °C."}
    two = [call("get_weather", where), call("clock", {}, 2)]
    answers = [
        {"role": "tool", "name": n, "tool_call_id": f"call0000{i}", "content": c}
        for i, n, c in [(1, "get_weather", "20"), (2, "clock", "12:30")]
    ]
    tools = [WEATHER, CLOCK]
    chats: dict[str, list[dict[str, Any]]] = {
        "user": [USER],
        "system": [SYSTEM, USER],
        "turns": [USER, ANSWER, THANKS],
        "system turns": [SYSTEM, USER, ANSWER, THANKS, ANSWER, USER],
        "empty": [{"role": "user", "content": ""}],
        "two users": [USER, THANKS],
        "assistant first": [ANSWER, USER],
        "developer": [{"role": "developer", "content": "Be brief."}, USER],
        "odd role": [{"role": "wizard", "content": "Abracadabra"}, USER],
        "system late": [USER, ANSWER, SYSTEM, THANKS],
        "reasoning": [USER, reasoned, THANKS],
        "reasoning twice": [SYSTEM, USER, reasoned, THANKS, reasoned, USER],
        "reasoning under thinking": [USER, {**ANSWER, "thinking": "Hm."}, THANKS],
        "reasoning under reasoning": [USER, {**ANSWER, "reasoning": "Hm."}, THANKS],
        "reasoning in content": [USER, inline, THANKS, inline, USER],
        "call": calls(where),
        "call, content None": calls(where, content=None),
        "call with text": calls(where, content="Let me look."),
        "call with reasoning": calls(where, reasoning_content="I need a tool."),
        "call, answered": [SYSTEM, *calls(where), ANSWER, THANKS],
        "call as text": calls(json.dumps(where, ensure_ascii=False)),
        "two calls": [USER, {"role": "assistant", "content": None, "tool_calls": two}, *answers],
        "two calls, answered": [
            SYSTEM,
            USER,
            {"role": "assistant", "content": "", "tool_calls": two},
            *answers,
            ANSWER,
            THANKS,
        ],
        "call pending": [USER, {"role": "assistant", "content": "", "tool_calls": two[:1]}],
        "ends with assistant": [USER, ANSWER],
        "parts": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}],
        "two parts": [
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
            },
        ],
    }
    for name, chat in chats.items():
        for prompt in (True, False):
            yield (
                f"{name}{'' if prompt else ', no prompt'}",
                {
                    "messages": chat,
                    "add_generation_prompt": prompt,
                },
            )
        yield (
            f"{name}, tools",
            {
                "messages": chat,
                "tools": tools,
                "add_generation_prompt": True,
            },
        )
    for thinking in (True, False):
        flags = {"enable_thinking": thinking, "thinking": thinking}
        for name in ("user", "system turns", "reasoning twice", "call", "reasoning in content"):
            yield (
                f"{name}, thinking {thinking}",
                {
                    "messages": chats[name],
                    "tools": tools if name == "call" else None,
                    "add_generation_prompt": True,
                    **flags,
                },
            )
    for name, last in {
        "plain": {"role": "assistant", "content": "Sunny and"},
        "trailing": {"role": "assistant", "content": "Sunny and  \n"},
        "parts": {"role": "assistant", "content": [{"type": "text", "text": "Sunny and"}]},
        "reasoning": reasoned,
        "inline reasoning": inline,
        "none": {"role": "assistant", "content": None},
    }.items():
        yield (
            f"continued, {name}",
            {
                "messages": [SYSTEM, USER, last],
                "continue_final_message": True,
            },
        )
    yield (
        "continued in reasoning",
        {
            "messages": [USER, {**reasoned, "content": ""}],
            "continue_final_message": "reasoning_content",
        },
    )
    documents = [{"title": "Weather", "text": "It rains."}]
    yield "documents", {"messages": [USER], "documents": documents, "add_generation_prompt": True}
    sparse = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {}}}},
    }
    yield "sparse tool", {"messages": [USER], "tools": [sparse], "add_generation_prompt": True}
    for name in ("system turns", "call, answered"):  # variables of Firefunction
        yield (
            f"{name}, functions",
            {
                "messages": chats[name],
                "functions": json.dumps([WEATHER]),
                "datetime": "2025-07-04",
                "add_generation_prompt": True,
            },
        )
    yield "no tools", {"messages": [USER], "tools": [], "add_generation_prompt": True}
    yield (
        "effort",
        {
            "messages": [SYSTEM, USER],
            "reasoning_effort": "high",
            "add_generation_prompt": True,
        },
    )


def theirs(source: str, template: ours.ChatTemplate, given: dict[str, Any]) -> str | None:
    """Render as transformers does; return None if it rejects the conversation.

    Shapes that transformers does not convert are converted first, see `plain`. A role that neither
    OpenAI nor the template has is rejected.
    """
    messages = given["messages"]
    if any(m["role"] == "wizard" for m in messages):
        return None
    messages = template._caps.fit([plain(m, template._caps.separator) for m in messages])
    given = {"bos_token": BOS, "eos_token": EOS, **given}
    del given["messages"]
    try:
        (text,), _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=source, **given
        )
    except Exception:
        return None
    return str(text)


def plain(message: dict[str, Any], separator: str) -> dict[str, Any]:
    """Return *message* in the form of transformers' documentation."""
    message = dict(message)
    if message["role"] == "developer":
        message["role"] = "system"
    if message.get("content") is None:
        message["content"] = ""
    if isinstance(message["content"], list):
        message["content"] = separator.join(part["text"] for part in message["content"])
    if "tool_calls" in message:
        message["tool_calls"] = [_with_dict(call) for call in message["tool_calls"]]
    names = ("reasoning_content", "thinking", "reasoning")
    if reasoning := next((message[name] for name in names if name in message), None):
        message |= dict.fromkeys(names, reasoning)
    return message


def _with_dict(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def own(template: ours.ChatTemplate, given: dict[str, Any]) -> str | None:
    """Render with this package; return None if it rejects the conversation."""
    given = {"add_generation_prompt": False, **given}
    try:
        return template.render(**given)
    except LlamaError:
        return None


def compare(path: Path, show: bool) -> Counter[str]:
    """Compare all conversations in one template."""
    source = path.read_text(encoding="utf-8")
    template = ours.ChatTemplate(source, BOS, EOS, special_tokens=SPECIAL)
    counts = check_segments(template)
    for name, given in conversations():
        a, b = own(template, given), theirs(source, template, given)
        verdict = "differ" if a != b else "reject" if a is None else "equal"
        counts[verdict] += 1
        if show and verdict == "differ":
            print(f"--- {path.stem}: {name}")
            if a is None or b is None:
                print(f"rejected by {'us' if a is None else 'transformers'} only")
            else:
                print("\n".join(difflib.unified_diff(b.splitlines(), a.splitlines(), lineterm="")))
    return counts


def check_segments(template: ours.ChatTemplate) -> Counter[str]:
    """Count conversations in which special tokens of the caller would become control tokens.

    The template's segments must contain the special tokens of a harmless conversation.
    """
    counts: Counter[str] = Counter()
    for _, given in conversations():
        try:
            hostile = _written(given, HOSTILE)
            text = template.render(**hostile)
            harmless = template.render(**_written(given, "x" * len(HOSTILE)))
        except LlamaError:
            continue
        segments = template.render_segments(**hostile)
        if "".join(s.text for s in segments) != text:
            counts["leak"] += 1
        found = Counter(t for s in segments if s.is_template for t in TOKENS.findall(s.text))
        counts["leak" if found != Counter(TOKENS.findall(harmless)) else "safe"] += 1
    return counts


def _written(value: Any, end: str, key: str = "") -> Any:
    """Return *value* with *end* after the text of users, tools and the model."""
    if isinstance(value, str):
        return value + end if key in WRITTEN else value
    if isinstance(value, dict):
        return {k: _written(v, end, k) for k, v in value.items()}
    return [_written(v, end, key) for v in value] if isinstance(value, list) else value


def renderer_verdict(path: Path, show: bool) -> str:
    """Compare the text of `ChatRenderer`, for a model with the template, with transformers'."""
    source = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        file = write_tiny(
            Path(scratch, "model.gguf"), n_layer=1, n_embd=32, chat_template=source,
            control=control_tokens([source]),
        )  # fmt: skip
        with Model(file, vocab_only=True) as model:
            vocab, renderer = model.vocab, ChatRenderer(model)
            assert renderer.template is not None
            assert vocab.bos is not None
            assert vocab.eos is not None
            given = {"bos_token": vocab.text(vocab.bos), "eos_token": vocab.text(vocab.eos)}
            for messages in ([SYSTEM, USER], [USER]):
                chat = {**given, "messages": messages, "add_generation_prompt": True}
                expected = theirs(source, renderer.template, chat)
                try:
                    tokens, text = renderer.render(messages)
                except LlamaError:
                    if expected is None:
                        continue
                    return "differ"
                if show and text != expected:
                    print(f"--- {path.stem}: renderer\n{expected!r}\n{text!r}")
                is_same = text == expected and vocab.detokenize(tokens, True) == text
                return "equal" if is_same else "differ"
    return "reject"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--templates", type=Path, help="a folder with *.jinja instead of fetching")
    parser.add_argument("--show", metavar="NAME", help="only templates with NAME; show differences")
    args = parser.parse_args()
    total: Counter[str] = Counter()
    rendered: Counter[str] = Counter()
    found = sorted(args.templates.glob("*.jinja")) if args.templates else fetch()
    found = [path for path in found if (args.show or "") in path.name]
    if not found:
        parser.error("there are no templates with that name or in that folder")
    clock = mock.Mock(wraps=datetime, **{"now.return_value": NOW})
    print(f"{'template':58} chats equal reject differ  safe leak  renderer")
    with (
        mock.patch.object(chat_template_utils, "datetime", clock),
        mock.patch.object(ours, "datetime", clock),
    ):
        for path in found:
            counts = compare(path, bool(args.show))
            verdict = renderer_verdict(path, bool(args.show))
            total += counts
            rendered[verdict] += 1
            print(f"{path.stem:58} {_row(counts)}  {verdict}", flush=True)
    print(f"{f'{len(found)} templates':58} {_row(total)}")
    print("ChatRenderer:", ", ".join(f"{n} {kind}" for kind, n in rendered.most_common()))
    return 1 if total["differ"] or total["leak"] or rendered["differ"] else 0


def _row(counts: Counter[str]) -> str:
    kinds = ("equal", "reject", "differ")
    chats = sum(counts[kind] for kind in kinds)
    return f"{chats:5}" + "".join(f"{counts[kind]:6}" for kind in (*kinds, "safe", "leak"))


if __name__ == "__main__":
    sys.exit(main())
