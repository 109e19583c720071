"""A body of a request to the Responses API, in the shape of Codex CLI's."""

from __future__ import annotations

from typing import Any

__all__ = ["CODEX"]

# What Codex CLI sends: the whole conversation, tools of every type.
CODEX: dict[str, Any] = {
    "model": "local",
    "instructions": "You are a coding agent.",
    "input": [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "<permissions>read-only</permissions>"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "<environment>bash</environment>"},
                {"type": "input_text", "text": "List the files."},
            ],
        },
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "I should look."}],
            "encrypted_content": "gAAAA-of-another-server",
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look."}],
            "phase": "commentary",
        },
        {
            "type": "function_call",
            "name": "shell",
            "arguments": '{"command": ["ls"]}',
            "call_id": "call_1",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py\nb.py"},
        {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Which is larger?"}],
        },
    ],
    "tools": [
        {"type": "function", "name": "shell", "strict": False, "parameters": {"type": "object"}},
        {"type": "local_shell"},
        {"type": "web_search", "external_web_access": False},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
        {"type": "namespace", "name": "mcp__x", "description": "x", "tools": []},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto", "context": "all_turns"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199-7af0",
    "text": {"verbosity": "low"},
    "client_metadata": {"x": "y"},
}
