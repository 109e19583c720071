"""Bodies of requests to the Messages API."""

from __future__ import annotations

from typing import Any

__all__ = ["BILLING", "CLAUDE_CODE", "HELLO", "SUM", "WEATHER"]

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
BILLING = "x-anthropic-billing-header: cc_version=2.1.37.{}; cc_entrypoint=cli; cch={};"
HELLO: dict[str, Any] = {"max_tokens": 50, "messages": [{"role": "user", "content": "Hello!"}]}
SUM: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 17 + 25?"}]}
# The shapes of Claude Code's requests, shortened.
CLAUDE_CODE: dict[str, Any] = {
    "model": "demo",
    "max_tokens": 32000,
    "stream": True,
    "metadata": {"user_id": "user_0123_account__session_4567"},
    "system": [
        {
            "type": "text",
            "text": BILLING.format("0d9", "fa690"),
        },
        {
            "type": "text",
            "text": "You are a command-line tool.",
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "text", "text": "\nUse the tools.", "cache_control": {"type": "ephemeral"}},
    ],
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "xhigh"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "tools": [
        WEATHER,
        {
            "name": "Read",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"file_path": {"type": "string"}},
                "required": ["file_path"],
                "additionalProperties": False,
            },
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>"},
                {"type": "text", "text": "Read a.txt", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I need the file.", "signature": "unsigned"},
                {"type": "text", "text": "I read it."},
                {
                    "type": "tool_use",
                    "id": "toolu_1",
                    "name": "Read",
                    "input": {"file_path": "a.txt"},
                },
                {
                    "type": "tool_use",
                    "id": "toolu_2",
                    "name": "Read",
                    "input": {"file_path": "b.txt"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "Hello."}],
                },
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": "no such file",
                    "is_error": True,
                },
                {"type": "text", "text": "Go on."},
            ],
        },
        {"role": "system", "content": "The user has opened c.txt."},
        {"role": "user", "content": "What is 17 + 25?"},
    ],
}
