"""HTTP requests that no well-behaved client sends, over every route and field of the server.

A case is one request. The server has to answer it with 200, with a status 4xx and a JSON error, or
with 501, and to answer a good request right afterwards.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import random
import re
import socket
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = ["BODIES", "NO_BODY", "STEPS", "Case", "case", "check", "program", "run"]

STEPS = 1
_TIMEOUT_S = 60.0  # a longer silence is a hang

# A request for each route that reads JSON; together they have every field that it knows.
_GENERATION: dict[str, Any] = {
    "model": "demo", "user": "u", "metadata": {"k": "v"}, "store": False, "service_tier": "auto",
    "n": 1, "stream": True, "stream_options": {"include_usage": True},
    "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 1.0,
    "typ_p": 1.0, "top_n_sigma": -1.0, "xtc_probability": 0.1, "xtc_threshold": 0.1,
    "dynatemp_range": 0.1, "dynatemp_exponent": 1.0, "mirostat_mode": 0, "mirostat": 0,
    "mirostat_tau": 5.0, "mirostat_eta": 0.1, "adaptive_target": -1.0, "adaptive_decay": 0.9,
    "repeat_penalty": 1.1, "repetition_penalty": 1.1, "frequency_penalty": 0.1,
    "presence_penalty": 0.1, "penalty_last_n": 64, "repeat_last_n": 64, "dry_multiplier": 0.1,
    "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1,
    "dry_sequence_breakers": ["\n", ":"], "min_keep": 1, "ignore_eos": False,
    "logit_bias": {"5": -1, "6": False}, "samplers": ["top_k", "temperature"], "seed": 7,
    "stop": ["END", "\n\n"], "cache_prompt": True, "max_tokens": 4,
}  # fmt: skip
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3, "pattern": "[a-c]+"},
        "kind": {"enum": ["a", 1, None]},
        "list": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2},
    },
    "required": ["name"],
    "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
}
_FUNCTION = {"name": "f", "description": "d", "parameters": _SCHEMA}
_TOOLS = [{"type": "function", "function": _FUNCTION}]
_USER = {"role": "user", "content": "What is 1 + 1?"}
_PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"name":"a"}'}}
_TALK = [
    {"role": "system", "content": "short"},
    _PARTS,
    {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    _USER,
]
_FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA, "strict": True}}
_CHAT: list[dict[str, Any]] = [
    {**_GENERATION, "messages": [_USER], "logprobs": True, "top_logprobs": 2,
     "verbose": True},
    {
        "messages": _TALK, "tools": _TOOLS, "tool_choice": "auto", "parallel_tool_calls": True,
        "max_tokens": 8, "thinking": False, "reasoning_effort": "low", "thinking_budget": 3,
        "reasoning_control": True, "lora": [],
    },
    {
        "messages": _TALK, "tools": _TOOLS, "max_tokens": 8, "stream": True,
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    },
    {"messages": [_USER], "response_format": _FORMAT, "max_completion_tokens": 8},
    {"messages": [_USER], "json_schema": _SCHEMA, "n_predict": 8},
    {"messages": [_USER], "grammar": 'root ::= "a" | [b-c]+', "grammar_root": "root",
     "max_tokens": 4},
    {
        "messages": [_USER, {"role": "assistant", "content": "It is"}], "max_tokens": 4,
        "continue_final_message": True, "chat_template_kwargs": {"enable_thinking": False},
        "thinking_budget_tokens": 3, "modalities": ["text"], "context_policy": "drop_oldest_turns",
    },
    {
        "messages": [_USER], "functions": [_FUNCTION], "function_call": "auto", "max_tokens": 4,
        "add_generation_prompt": True, "reasoning_budget_tokens": 3,
    },
    {"messages": [_USER], "audio": {}, "web_search_options": {}},
]  # fmt: skip
_INPUT = [
    "hello",
    {"type": "message", "role": "developer", "content": "short"},
    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
     "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": None},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "2"},
    {"type": "custom_tool_call", "call_id": "d", "name": "f", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "d", "output": [
        {"type": "input_text", "text": "2"}]},
]  # fmt: skip
_RESPONSES: list[dict[str, Any]] = [
    {
        "input": _INPUT, "instructions": "short", "max_output_tokens": 4, "max_tool_calls": 2,
        "model": "demo", "stream": True, "stream_options": {"include_obfuscation": False},
        "store": False, "temperature": 0.7, "top_p": 0.9, "top_logprobs": 2,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "metadata": {"k": "v"}, "prompt_cache_key": "k", "safety_identifier": "s", "user": "u",
        "truncation": "auto", "reasoning": {"effort": "low", "summary": "auto"},
        "background": False, "conversation": None, "prompt": None, "previous_response_id": None,
        "service_tier": "auto",
    },
    {
        "input": "hello", "max_output_tokens": 4, "parallel_tool_calls": False,
        "tools": [{"type": "function", **_FUNCTION, "strict": True}, {"type": "web_search"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto",
                        "tools": [{"type": "function", "name": "f"}]},
    },
    {
        "input": "hello", "max_output_tokens": 8, "top_k": 5, "stop": ["x"], "thinking": False,
        "lora": [],
        "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n",
                                                "schema": _SCHEMA, "strict": True}},
    },
]  # fmt: skip
_MESSAGES: list[dict[str, Any]] = [
    {
        "model": "demo", "max_tokens": 4, "stream": True, "temperature": 0.5, "top_p": 0.9,
        "top_k": 5, "stop_sequences": ["x"], "metadata": {"user_id": "u"},
        "system": [{"type": "text", "text": "short", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"name": "a"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "is_error": True,
                 "content": [{"type": "text", "text": "2"}]}]},
        ],
        "tools": [{"type": "custom", "name": "f", "description": "d", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 3},
    },
    {
        "max_tokens": 8, "system": "short", "messages": [_USER], "lora": [],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _SCHEMA}},
    },
    {
        "max_tokens": 8, "messages": [_USER], "tool_choice": {"type": "tool", "name": "f"},
        "tools": [{"name": "f", "input_schema": _SCHEMA}],
    },
]  # fmt: skip
_TEXT = [
    {**_GENERATION, "prompt": "1 + 1 =", "logprobs": 2, "best_of": 1},
    {"prompt": "a", "suffix": "x", "max_tokens": 2},
    {"prompt": "a", "max_tokens": 2, "lora": []},
    {"prompt": [[5, 6], [7]], "max_tokens": 2, "echo": True, "n_predict": 2},
    {"prompt": ["a", [5]], "max_completion_tokens": 2, "stream": True, "n": 2, "best_of": 2},
    {"prompt": "a", "max_tokens": 2, "grammar": "root ::= [0-9]+", "grammar_root": "root"},
]
_NATIVE = [
    {**{k: v for k, v in _GENERATION.items() if k not in ("user", "metadata", "stream_options")},
     "prompt": "1 + 1 =", "n_probs": 2, "post_sampling_probs": False, "return_tokens": True},
    {"prompt": ["a", [5, "b"], {"prompt_string": "c"}], "n_predict": 2, "n_cmpl": 1,
     "response_fields": ["content", "timings/prompt_n"], "logprobs": 1},
    {"prompt": "a", "max_tokens": 8, "json_schema": _SCHEMA, "stream": True},
    {"prompt": "a", "max_completion_tokens": 2, "grammar": "root ::= [0-9]+",
     "grammar_root": "root", "timings_per_token": True, "return_progress": True, "stream": True},
    {"prompt": "a", "n_predict": 2, "id_slot": 0, "t_max_predict_ms": 1000, "n_indent": 0,
     "speculative.n_max": 1, "lora": []},
]  # fmt: skip
_INFILL = [
    {
        "input_prefix": "def f(",
        "input_suffix": "return a",
        "prompt": "a",
        "n_predict": 2,
        "input_extra": [{"filename": "a.py", "text": "b"}],
        "stream": True,
    },
]
_DECISIONS = [
    {
        "input": [_USER, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                  {"type": "function_call_output", "call_id": "c", "output": "2"}],
        "average_orders": True, "model": "demo",
        "questions": [
            {"type": "predicate", "name": "p", "instructions": "Yes?"},
            {"type": "choice", "instructions": [{"type": "input_text", "text": "Which?"}],
             "choices": [{"value": "a", "description": "d"}, {"value": True}]},
            {"type": "score", "instructions": "How?", "levels": [{"label": "a"}, {"label": "b"}]},
        ],
    },
    {"input": "hello", "lora": [], "questions": [{"type": "predicate", "instructions": "Yes?"}]},
]  # fmt: skip
_SYSTEMONE = [
    {
        "state": {"text": "hello"}, "average_orders": False, "model": "demo",
        "questions": {
            "a": {"type": "noul", "instructions": "Yes?", "criteria": {"true": "t", "false": "f"}},
            "b": {"type": "choice", "instructions": {"ask": 1}, "criteria": {"x": "d", "y": None}},
            "c": {"type": "score", "instructions": "How?", "criteria": ["a", {"b": 2}]},
        },
    },
]  # fmt: skip
_EMBEDDINGS = [
    {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8, "user": "u"},
    {"input": [[5, 6], [7]], "model": "demo"},
]
_RERANK = [
    {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True},
    {"query": "q", "texts": ["a", "b"], "return_text": True},
]
BODIES: Mapping[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/chat/completions/input_tokens": _CHAT,
    "/v1/chat/completions/control": [{"id": "chatcmpl-1", "action": "reasoning_end"}],
    "/v1/streams/lookup": [{"conversation_ids": ["a", "b"]}],
    "/apply-template": _CHAT,
    "/infill": _INFILL,
    "/slots/0?action=erase": [{"filename": "a"}],
    "/lora-adapters": [{"adapters": []}],
    "/models/load": [{"model": "demo"}],
    "/models/unload": [{"model": "demo"}],
    "/v1/completions": _TEXT,
    "/completion": _NATIVE,
    "/v1/responses": _RESPONSES,
    "/v1/responses/input_tokens": _RESPONSES,
    "/v1/messages": _MESSAGES,
    "/v1/messages/count_tokens": _MESSAGES,
    "/v1/embeddings": _EMBEDDINGS,
    "/embedding": [{"input": "a", "embd_normalize": 2}, {"content": [[5], [6]]}],
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK[:1],
    "/v1/decisions": _DECISIONS,
    "/v1/systemone": _SYSTEMONE,
    "/tokenize": [
        {"content": "a b", "add_special": True, "parse_special": True, "with_pieces": True}
    ],
    "/detokenize": [{"tokens": [5, 6]}],
}
# Routes that read no JSON, as (method, path).
NO_BODY = [
    ("GET", "/health"), ("GET", "/v1/models"), ("GET", "/v1/models/demo"), ("GET", "/props"),
    ("GET", "/metrics"), ("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1"),
    ("POST", "/v1/audio/transcriptions"), ("POST", "/v1/audio/translations"),
    ("GET", "/upstream/demo/props"), ("POST", "/props"), ("GET", "/slots"),
    ("GET", "/lora-adapters"), ("GET", "/v1/responses/resp_1/input_items"),
    ("POST", "/v1/responses/resp_1/cancel"), ("GET", "/"), ("GET", "/page/app.js"),
    ("GET", "/v1/stream"), ("DELETE", "/v1/stream"), ("GET", "/v1/stream/demo"),
    ("DELETE", "/v1/stream/demo"), ("DELETE", "/v1/models"), ("DELETE", "/v1/models/demo"),
]  # fmt: skip


class _Raw(str):
    """Text that is written into JSON as it is."""

    __slots__ = ()


_NUMBERS: list[Any] = [
    0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    -(2**63) - 1, 10**400, 0.5, 1.5, -0.0, -0.5, 1e-320, 1e300, -1e300, 3.4028236e38,
]  # fmt: skip
_CONSTANTS = [
    _Raw(text)
    for text in (
        "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "00", "+1", ".5", "0x10",
        "1" * 5000, "1." + "0" * 5000, "undefined", "True", "'x'", '"\\ud800"', '"\\udc00x"',
        '"\\x41"', '"\\u12"', '"\t"', "[" * 10_000, '{"a":' * 10_000, "[" * 10_000 + "]" * 10_000,
        "[" * 90 + "]" * 90, "", ",", "[1,]", '{"a":1,"a":"b"}',
    )
]  # fmt: skip
_STRINGS = [
    "", " ", "x", "\0", "a\0b", "\n", "1", "true", "null", "NaN", "auto", "none", "required",
    "json_object", "json_schema", "text", "function", "user", "assistant", "system", "tool",
    "<|im_start|>", "<|im_end|>\n<|im_start|>system", "{{ 7 * 7 }}", "{% for x in y %}", "%s%n",
    "é" * 300, "😀", "\u202e", "\ufffe", "\U0010ffff", "a" * 3000, " " * 3000, "\\" * 500,
    '{"a": ' * 200, "../../etc/passwd", "data:image/png;base64,AAAA", "http://127.0.0.1:1/x",
]  # fmt: skip
_GRAMMARS = [
    "root ::= ", "root ::= root", 'root ::= root "a" | "a"', "root ::= [", "root ::= (", "x ::= y",
    'root ::= "a"{1,100000}', 'root ::= "a"{5,2}', 'root ::= ("a"?)*', 'root ::= (("a"*)*)*',
    "root ::= [^\\x00-\\U0010FFFF]", 'root ::= "\\xff"', "root ::= " + "(" * 2000,
    'root ::= ""', "root ::= .", "start: /a+/", '%llguidance {}\nstart: "a"',
]  # fmt: skip
_SCHEMAS: list[Any] = [
    {}, {"type": "nothing"}, {"type": ["string", 5]}, {"$ref": "#"}, {"$ref": "#/$defs/x"},
    {"$ref": "http://127.0.0.1:1/x.json"}, {"$ref": 5}, {"enum": []}, {"enum": "abc"},
    {"const": {"a": [1]}}, {"type": "string", "pattern": "(a+)+$"},
    {"type": "string", "pattern": "["}, {"type": "string", "pattern": "(?=a)b\\1"},
    {"type": "string", "minLength": 5, "maxLength": 2}, {"type": "string", "minLength": 10**9},
    {"type": "string", "format": "date-time"}, {"type": "string", "format": 5},
    {"type": "array", "minItems": 10**6, "items": {"type": "null"}},
    {"type": "array", "items": [5]}, {"type": "array", "prefixItems": {}},
    {"type": "integer", "minimum": 9, "maximum": 1}, {"type": "integer", "multipleOf": 0},
    {"type": "number", "minimum": "x"}, {"allOf": []}, {"anyOf": [{}]}, {"oneOf": 5},
    {"not": {}}, {"properties": [], "required": "x"}, {"required": ["x"] * 500},
    {"properties": {"": {}}, "additionalProperties": 5}, {"type": "object", "minProperties": 10**6},
    {"patternProperties": {"[": {}}}, {"if": {}, "then": 5}, {"definitions": 5},
    {"properties": {f"p{i}": {"type": "string"} for i in range(300)}}, True, False,
]  # fmt: skip
_CONTAINERS: list[Any] = [
    [], [[]], [None], [True], ["x"], [1, 2], [-1], [2**70], [1e300], [{}], ["x", 5], ["x"] * 3000,
    [5] * 600, [[5]] * 300, {}, {"x": None}, {"": 0}, {"type": 5}, {"type": "text"},
    {"type": "object"}, {"text": "x"}, {"role": "user"}, {"role": "user", "content": "x"},
    {"name": "f"}, {"a": {"b": [1, {"c": []}]}}, {f"k{i}": i for i in range(3000)},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}},
    {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
]  # fmt: skip
_POOLS: list[list[Any]] = [
    [None, True, False], _NUMBERS, _CONSTANTS, _STRINGS, _GRAMMARS, _SCHEMAS, _CONTAINERS,
]  # fmt: skip
_LONG = "\1long\1"  # replaced by text that is too long to keep in a table
_LONG_N = 300_000


class Case(NamedTuple):
    """A request.

    Attributes:
        what: What is odd about it.
        data: Its bytes.
        method: Its method; empty: it is not HTTP.
        path: Its path.
        cut: Whether its end is missing, so that no response is right, too.
    """

    what: str
    data: bytes
    method: str
    path: str
    cut: bool = False


def case(rng: random.Random) -> Case:
    """Return a request."""
    return rng.choices([_odd_field, _odd_body, _odd_http], [80, 8, 12])[0](rng)


def _odd_field(rng: random.Random) -> Case:
    """A good body, of which one to three values are replaced, moved or removed."""
    path = rng.choice([*BODIES])
    body = copy.deepcopy(rng.choice(BODIES[path]))
    changes = [_mutate(rng, body) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return Case(f"{path}: {'; '.join(changes)}", _request(path, _dumps(body)), "POST", path)


def _mutate(rng: random.Random, body: dict[str, Any]) -> str:
    places = [*_places(body, "")]
    if not places:
        return "nothing left"
    where, owner, key = rng.choice(places)
    kind = rng.choices(["value", "other", "drop", "double", "wrap"], [70, 12, 6, 6, 6])[0]
    if kind == "value":
        value = copy.deepcopy(rng.choice(rng.choice(_POOLS)))
        owner[key] = _LONG if rng.random() < 0.01 else value
    elif kind == "other":  # a value that is right elsewhere
        _, other, name = rng.choice(places)
        owner[key] = copy.deepcopy(other[name])
    elif kind == "drop":
        del owner[key]
        return f"no {where}"
    elif kind == "double":
        owner[key] = [copy.deepcopy(owner[key]) for _ in range(rng.choice([2, 50]))]
    else:
        owner[key] = {rng.choice(["type", "text", "function", "x"]): owner[key]}
    return f"{where} = {owner[key]!r:.80}"


def _places(value: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, the container and the key of every value in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        path = f"{where}.{key}" if where else str(key)
        yield path, value, key
        if isinstance(item, (dict, list)) and len(item) < 100:
            yield from _places(item, path)


def _dumps(value: Any) -> bytes:
    """Return JSON, with `_Raw` as it is."""
    raws: list[str] = []

    def marked(item: Any) -> Any:
        if isinstance(item, _Raw):
            raws.append(item)
            return f"\1raw{len(raws) - 1}\1"
        if isinstance(item, dict):
            return {key: marked(one) for key, one in item.items()}
        return [marked(one) for one in item] if isinstance(item, list) else item

    text = json.dumps(marked(value)).replace(json.dumps(_LONG), json.dumps("a b " * (_LONG_N // 4)))
    return re.sub(r'"\\u0001raw(\d+)\\u0001"', lambda m: raws[int(m[1])], text).encode()


def _request(
    path: str, body: bytes, method: str = "POST", headers: Mapping[str, str] | None = None
) -> bytes:
    fields = {
        "host": "x", "content-type": "application/json", "content-length": str(len(body)),
        "connection": "close", **(headers or {}),
    }  # fmt: skip
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def _odd_body(rng: random.Random) -> Case:
    """Bytes that are not the JSON of an object."""
    path = rng.choice([*BODIES])
    good = _dumps(rng.choice(BODIES[path]))
    at = rng.randrange(len(good))
    headers: dict[str, str] = {}
    kind = rng.choice([
        "cut off", "changed byte", "not UTF-8", "utf-16", "utf-32", "gzip", "announced gzip",
        "random", "another value", "twice", "leading text", "trailing text", "spaces", "empty",
        "byte order mark", "duplicate keys", "content type", "surrogate",
    ])  # fmt: skip
    if kind == "content type":
        headers["content-type"] = rng.choice([
            "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
            "application/octet-stream", "", ";", "application/json; charset=utf-16", "\xff",
            "application/json" + ";a" * 1000, "application/json, text/plain", "image/png",
        ])  # fmt: skip
        kind += f" {headers['content-type'][:40]!r}"
        body = good
    elif "gzip" in kind:
        body = gzip.compress(good, mtime=0)
        if kind == "announced gzip":
            headers["content-encoding"] = rng.choice(["gzip", "br", "x", "identity, gzip"])
    else:
        body = {
            "cut off": good[:at],
            "changed byte": good[:at] + bytes([rng.randrange(256)]) + good[at + 1 :],
            "not UTF-8": good[:at] + rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80"]) + good[at:],
            "utf-16": good.decode().encode("utf-16"),
            "utf-32": good.decode().encode("utf-32"),
            "random": rng.randbytes(rng.randrange(1, 2000)),
            "another value": rng.choice(
                [b"5", b"[]", b'"x"', b"null", b"true", b"[" + good + b"]"]
            ),
            "twice": good + good,
            "leading text": b"x" + good,
            "trailing text": good + b"x",
            "spaces": b" " * rng.choice([1, 1_000_000]),
            "empty": b"",
            "byte order mark": b"\xef\xbb\xbf" + good,
            "duplicate keys": b"{" + good[1:-1] + b"," + good[1:],
            "surrogate": good.replace(b'"a', b'"\\ud83d', 1),
        }[kind]
    return Case(f"{path}: body, {kind}", _request(path, body, headers=headers), "POST", path)


def _odd_http(rng: random.Random) -> Case:
    """Odd methods, paths and headers, or what is not HTTP."""
    make = rng.choice([_odd_method, _odd_path, _odd_header, _odd_header, _odd_bytes])
    return make(rng)


def _odd_method(rng: random.Random) -> Case:
    methods = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "get")
    method = rng.choice(methods)
    path = rng.choice([*BODIES, *(path for _, path in NO_BODY)])
    body = rng.choice([b"", b"{}", b"x"])
    return Case(f"method: {method} {path}", _request(path, body, method), method, path)


def _odd_path(rng: random.Random) -> Case:
    method, path = rng.choice([*NO_BODY, *(("POST", path) for path in BODIES)])
    path = rng.choice([
        path + "/", path + "//", "/" + path, path.upper(), path + "%00", path + "/../health",
        path + "?x=%ff&y", path + "?" + "a=b&" * 500, "/" + "a" * 5000, "/%", "/%zz", "/%2e%2e",
        path + "#x", "*", "http://y" + path, "//y/z", "/v1/models/" + "%F0%9F%98%80",
        "/v1/models/a%2Fb%00%0d%0a", "/props?model=" + "x" * 3000, "/props?model=%00",
        "/v1/responses/" + "x" * 3000, "/v1/responses/%0d%0ax:%20y", "/é", path + "?é", "/v1",
        "/v1/responses/resp_1?stream=true&starting_after=x", "/.env", "/v1/v1/models",
    ])  # fmt: skip
    body = b"{}" if method == "POST" else b""
    return Case(f"path: {method} {path:.80}", _request(path, body, method), method, path)


def _odd_header(rng: random.Random) -> Case:
    path = rng.choice([*BODIES])
    good = _dumps(rng.choice(BODIES[path]))
    name, value = rng.choice([
        ("content-length", str(2**30)), ("content-length", "-1"), ("content-length", "1e3"),
        ("content-length", "9" * 40), ("content-length", "9" * 5000), ("content-length", "5, 5"),
        ("content-length", ""), ("transfer-encoding", "chunked"), ("transfer-encoding", "gzip"),
        ("expect", "100-continue"), ("expect", "x"), ("upgrade", "websocket"), ("upgrade", "h2c"),
        ("connection", "upgrade, http2-settings"), ("range", "bytes=0-1"), ("host", ""),
        ("authorization", "Bearer " + "é" * 100), ("authorization", "\x7f"), ("x-api-key", "\xff"),
        ("accept", "text/html"), ("accept-encoding", "gzip"), ("origin", "http://evil.example"),
        ("cookie", "a=b; " * 3000), ("x" * 3000, "y"), ("x", "y" * 60_000), ("x y", "z"),
        ("x", "a\0b"), ("", "x"), ("x-forwarded-for", "::1"), ("traceparent", "\\"),
        ("x-conversation-id", "\xff/\x80"), ("x-conversation-id", "x" * 300),
    ])  # fmt: skip
    data = _request(path, good, headers={name: value})
    cut = name == "content-length" or name == "transfer-encoding"
    return Case(f"{path}: header {name[:20]}: {value[:40]!r}", data, "POST", path, cut)


def _odd_bytes(rng: random.Random) -> Case:
    what, data = rng.choice([
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500)),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("HTTP/0.9", b"GET /health\r\n\r\n"),
        ("HTTP/1.0", b"GET /health HTTP/1.0\r\n\r\n"),
        ("HTTP/9.9", b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n"),
        ("no host", b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n"),
        ("empty lines", b"\r\n" * 100),
        ("random", rng.randbytes(rng.randrange(1, 3000))),
        ("nulls", bytes(1000)),
        ("a line without end", b"G" * 100_000),
        ("folded header", b"GET /health HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n"),
        ("line feeds", b"GET /health HTTP/1.1\nhost: x\nconnection: close\n\n"),
        ("many headers", b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 3000 + b"\r\n"),
        ("two lengths", b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
                        b"content-length: 20\r\n\r\n{}"),
        ("length and chunks", b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
                              b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        ("bad chunk", b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
                      b"zz\r\n{}\r\n0\r\n\r\n"),
        ("negative chunk", b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
                           b"\r\n-2\r\n{}\r\n0\r\n\r\n"),
        ("huge chunk", b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
                       b"fffffffffffffffff\r\n{}"),
    ])  # fmt: skip
    return Case(f"bytes: {what}", data, "", "", cut=True)


def check(one: Case, url: str) -> str:
    """Send a request, and a good one afterwards; return the status of the first.

    Raises:
        AssertionError: A response was not as it has to be.
        OSError: One did not come.
    """
    status = _checked(one, url)
    after = _exchange(_GOOD, url)
    assert after is not None, "the good request after it got no response"
    assert after[0] == 200, after
    assert json.loads(after[2])["usage"]["completion_tokens"] == 1, after
    return status


_GOOD = Case(
    "a good one",
    _request("/v1/completions", b'{"prompt": "1 + 1 =", "max_tokens": 1, "temperature": 0}'),
    "POST",
    "/v1/completions",
)


def _checked(one: Case, url: str) -> str:
    found = _exchange(one, url)
    if found is None:
        assert one.cut, "no response"
        return "closed"
    status, kind, body = found
    assert status < 500 or status == 501, (status, body[:500])
    assert 200 <= status < 300 or status >= 400, status
    if one.method == "HEAD":
        return str(status)
    if status >= 400:
        assert kind == "application/json", (status, kind, body[:500])
        answer = json.loads(body)
        error = answer["error"]
        assert isinstance(error["message"], str), answer
        assert error["message"], answer
        assert isinstance(error["type"], str), answer
        shown = error["message"]
        assert len(shown) < 2000, ("a very long message", shown[:200])
    elif kind == "text/event-stream":
        for line in body.decode().splitlines():
            if line.startswith("data: ") and line != "data: [DONE]":
                data = json.loads(line[6:], parse_constant=_refuse)
                wrong = data.get("error") or data.get("type") == "error"
                assert not wrong, ("an error after the headers", data)
    elif kind == "application/json":
        json.loads(body, parse_constant=_refuse)
    return str(status)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _exchange(one: Case, url: str) -> tuple[int, str, bytes] | None:
    """Send a request; return status, content type and body of the response, None without one."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), _TIMEOUT_S) as connection:
        try:
            connection.sendall(one.data)
            if one.cut:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused before its end; the response may be there
        response = HTTPResponse(connection, method=one.method or "GET")
        try:
            response.begin()
            kind = response.getheader("content-type", "").split(";")[0]
            return response.status, kind, response.read()
        except (HTTPException, ConnectionResetError):
            if one.cut:
                return None
            raise
        finally:
            response.close()


@functools.cache
def _server() -> str:
    """Start a server in this process; return its URL."""
    from llama_cffi import LlamaPool
    from llama_cffi.demo import model_path

    pool = LlamaPool(model_path(), n_parallel=4, n_ctx=512, n_threads=1, embeddings=True)
    server = pool.serve(aliases=["demo"], metrics=True, body_timeout_s=2.0)

    return server.url


def program(seed: int, steps: int) -> str:
    """Return a line about a case."""
    return case(random.Random(seed)).what


def run(seed: int, steps: int) -> str:
    """Send the request of a case; return the status of its response."""
    return check(case(random.Random(seed)), _server())
