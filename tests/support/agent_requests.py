"""Second requests of agents, after a call of a tool: what they really send, shortened.

Recorded from Codex CLI 0.171 and Claude Code 2.1.197, with texts and ids of ours.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CLAUDE_CODE_HEADERS", "CLAUDE_CODE_TURN", "CODEX_HEADERS", "CODEX_TURN"]


def _schema(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _function(name: str, description: str, parameters: Any) -> dict[str, Any]:
    return {
        "type": "function", "name": name, "description": description, "strict": False,
        "parameters": parameters,
    }  # fmt: skip


def _message(role: str, *texts: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text} for text in texts]
    return {"type": "message", "role": role, "content": content}


TEXT = {"type": "string", "maxLength": 8}
CODEX_HEADERS = {
    "accept": "text/event-stream", "accept-encoding": "zstd,gzip", "originator": "codex_exec",
    "user-agent": "codex_exec/0.171.0", "session-id": "s-1", "thread-id": "t-1",
    "x-codex-beta-features": "remote_compaction_v2", "x-codex-window-id": "t-1:0",
    "x-client-request-id": "t-1", "x-codex-turn-metadata": '{"request_kind": "turn"}',
}  # fmt: skip
CODEX_TURN: dict[str, Any] = {
    "model": "demo",
    "stream": True,
    "input": [
        _message("developer", "You are an agent in a terminal."),
        _message("developer", "<skills>none</skills>"),
        _message("user", "<environment_context>\n  <shell>bash</shell>\n</environment_context>"),
        _message("user", "What is 17 + 25?"),
        {
            "type": "function_call",
            "status": "completed",
            "id": "fc_1",
            "name": "run",
            "arguments": '{\n"cmd" :"bc"\n}',
            "call_id": "66b118afa",
        },
        {
            "type": "function_call",
            "status": "completed",
            "id": "fc_2",
            "name": "run",
            "arguments": '{"cmd" : "dc" }',
            "call_id": "f64426158",
        },
        {
            "type": "function_call_output",
            "id": "fco_1",
            "call_id": "66b118afa",
            "output": "not found",
        },
        {
            "type": "function_call_output",
            "id": "fco_2",
            "call_id": "f64426158",
            "output": "not found",
        },
    ],
    "tools": [
        _function("run", "Run a command.", _schema(["cmd"], cmd=TEXT)),
        {
            "type": "namespace",
            "name": "agents_v1",
            "description": "Other agents.",
            "tools": [_function("stop", "Stop one.", _schema(["target"], target=TEXT))],
        },
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "t-1",
    "client_metadata": {"session_id": "s-1", "x-codex-turn-metadata": "{}"},
}
CLAUDE_CODE_HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
    "anthropic-dangerous-direct-browser-access": "true", "x-api-key": "none", "x-app": "cli",
    "user-agent": "claude-cli/2.1.197 (external, sdk-cli)", "x-stainless-timeout": "600",
    "x-claude-code-session-id": "s-1", "accept-encoding": "gzip, deflate, br, zstd",
}  # fmt: skip
_CACHED = {"cache_control": {"type": "ephemeral"}}
CLAUDE_CODE_TURN: dict[str, Any] = {
    "model": "demo",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nIt is Monday.\n</system-reminder>"},
                {"type": "text", "text": "What is 17 + 25?"},
            ],
        },
        {"role": "system", "content": "Available agents: none."},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "(no content)", "citations": []},
                {
                    "type": "tool_use",
                    "id": "9b5722af1",
                    "name": "Read",
                    "input": {"file_path": "a", "offset": 5},
                },
                {"type": "tool_use", "id": "6cf32b9a9", "name": "Read", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "content": "no such file",
                    "is_error": True,
                    "tool_use_id": "9b5722af1",
                },
                {
                    "type": "tool_result",
                    "content": "<tool_use_error>file_path is missing</tool_use_error>",
                    "is_error": True,
                    "tool_use_id": "6cf32b9a9",
                    **_CACHED,
                },
            ],
        },
    ],
    "system": [
        {
            "type": "text",
            "text": "x-anthropic-billing-header: cc_version=2.1.197.84c; cc_entrypoint=sdk-cli;",
        },
        {"type": "text", "text": "You are an agent.", **_CACHED},
        {"type": "text", "text": "Be brief.", **_CACHED},
    ],
    "tools": [
        {
            "name": "Read",
            "description": "Read a file.",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                **_schema(
                    ["file_path"],
                    file_path={"description": "Its path", **TEXT},
                    offset={"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
                    limit={"type": "integer", "exclusiveMinimum": 0, "maximum": 2**53 - 1},
                ),
            },
        }
    ],
    "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s-1"}'},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}
