"""Tiny models with the template and control tokens of a family, and checks of their answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from llama_cffi import Llama
from support.tiny_gguf import write_tiny


@dataclass(frozen=True)
class Speaker:
    """The shortest chat template of a family.

    Attributes:
        name: `general.name` of the model.
        call: Jinja of one call, `c`; or of all calls of `m`, with its own loop.
        control: Control tokens.
        words: Strings that end text, as single tokens: random weights would never spell them.
        before: Text by which the template's format is detected, if no other part has it.
        turns: Text before a role, after a role, and after a message.
        prompt: Generation prompt.
        reasoning: Jinja of reasoning, `m.reasoning_content`.
        tools: Jinja of the tool definitions.
        content: Jinja of a text answer.
        is_parallel: Whether the family writes several calls in one turn.
        said: Pattern of text that precedes calls.
    """

    name: str
    call: str
    control: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    before: str = ""
    turns: tuple[str, str, str] = ("<|im_start|>", "\n", "<|im_end|>")
    prompt: str = "<|im_start|>assistant\n"
    reasoning: str = ""
    tools: str = "{{ tools | tojson }}"
    content: str = "{{- m.content }}"
    is_parallel: bool = True
    said: str = "{}"

    @property
    def template(self) -> str:
        """The chat template."""
        start, after_role, end = self.turns
        calls = self.call
        if "m.tool_calls" not in calls:
            calls = "{%- for c in m.tool_calls %}" + calls + "{% endfor %}"
        reasoning = f"{{%- if m.reasoning_content %}}{self.reasoning}{{% endif %}}"
        return (
            f"{{#- {self.before} #}}{{%- if tools %}}{self.tools}{{% endif %}}"
            f"{{%- for m in messages %}}{{{{- {start!r} + m.role + {after_role!r} }}}}"
            f"{reasoning if self.reasoning else ''}"
            f"{{%- if m.content and m.role == 'assistant' %}}{self.content}"
            "{% elif m.content %}{{- m.content }}{% endif %}"
            f"{{%- if m.tool_calls %}}{calls}{{% endif %}}{{{{- {end!r} }}}}{{% endfor %}}"
            f"{{%- if add_generation_prompt %}}{{{{- {self.prompt!r} }}}}{{% endif %}}"
        )

    def write(self, path: Path) -> Path:
        """Write a model with this template: one layer of random weights."""
        end = self.turns[2].strip()
        control = tuple(dict.fromkeys((*self.control, *filter(None, (self.turns[0], end)))))
        return write_tiny(
            path, n_layer=1, n_embd=32, n_ctx=4096, name=self.name, chat_template=self.template,
            control=control, words=self.words, eos=end,
        )  # fmt: skip


def tool(name: str, required: Iterable[str] = (), /, **properties: Any) -> dict[str, Any]:
    """Define a tool."""
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    parameters["additionalProperties"] = False
    function = {"name": name, "description": f"To {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    tool("weather", ["city"], city={"type": "string", "maxLength": 9}, unit={"enum": ["C", "F"]}),
    tool("add", ["a", "b"], a={"type": "integer"}, b={"type": "boolean"}),
    tool(
        "note",
        ["tags", "place"],
        tags={"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        place={
            "type": "object",
            "properties": {"at": {"enum": [1, 2]}, "of": {"type": "string", "maxLength": 5}},
            "required": ["at"],
            "additionalProperties": False,
        },
    ),
    tool("now"),
]
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}


def collected(chunks: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
    """Merge a streamed answer like a client; return the message and the finish reason."""
    message: dict[str, Any] = {"role": "", "content": ""}
    reasons = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        reasons.append(choice["finish_reason"])
        for key, value in choice["delta"].items():
            if key != "tool_calls":
                message[key] = message.get(key, "") + value
        for part in choice["delta"].get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": part["type"], "function": {}})
            assert part["index"] == len(calls) - 1
            for key, value in part["function"].items():
                function = calls[-1]["function"]
                function[key] = function.get(key, "") + value
    assert set(reasons[:-1]) <= {None}
    if message.get("tool_calls"):
        message["content"] = message["content"] or None
    return message, reasons[-1]


def whole(answer: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the message and the finish reason."""
    (choice,) = answer["choices"]
    return choice["message"], choice["finish_reason"]


def calls_of(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the calls, after checking them, as (name, arguments)."""
    found = []
    for call in message["tool_calls"]:
        assert call["type"] == "function"
        assert call["id"]
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, SCHEMAS[name])
        found.append((name, arguments))
    assert len({call["id"] for call in message["tool_calls"]}) == len(found)
    return found


class Script:
    """A logits processor that makes the model generate a given text.

    Args:
        llm: The model.
        text: The text.
        is_free: Whether the model (and a grammar) continues after the text; else the answer ends.
    """

    def __init__(self, llm: Llama, text: str, is_free: bool = False) -> None:
        self._tokens = llm.tokenize(text, add_bos=False, special=True)
        if not is_free:
            self._tokens.append(min(llm.model.vocab.eog_tokens))
        self._at = 0

    def __call__(self, ids: Any, scores: Any) -> Any:
        if self._at < len(self._tokens):
            kept = scores[self._tokens[self._at]]
            scores[:] = -float("inf")
            scores[self._tokens[self._at]] = kept
            self._at += 1
        return scores


def likely(llm: Llama, texts: Iterable[str], bias: float = 6.0) -> dict[int, float]:
    """Return logit biases with which random weights complete the structures they begin."""
    single = [llm.tokenize(text, add_bos=False, special=True) for text in texts]
    return {tokens[0]: bias for tokens in single if len(tokens) == 1}
