"""OpenAI's deprecated functions: they become tools, and tool calls become function calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from .chat_completions import Tool
    from .types import CreateChatCompletionResponse, CreateChatCompletionStreamResponse

    ToolChoice: TypeAlias = str | Mapping[str, object]
    ChatAnswer: TypeAlias = (
        CreateChatCompletionResponse | Iterator[CreateChatCompletionStreamResponse]
    )

__all__ = ["add_function_call", "as_tools", "with_function_call"]


def as_tools(
    functions: Sequence[Mapping[str, object]] | None,
    function_call: ToolChoice | None,
    tools: Sequence[Tool] | None,
    tool_choice: ToolChoice | None,
) -> tuple[Sequence[Tool] | None, ToolChoice | None]:
    """Return tools and the choice among them.

    A choice may also be a tool's name, as LangChain passes it.
    """
    if functions is not None:
        tools = [{"type": "function", "function": function} for function in functions]
    if function_call is not None:
        tool_choice = function_call
    if isinstance(tool_choice, str) and tool_choice not in ("auto", "none", "required"):
        tool_choice = {"name": tool_choice}
    if isinstance(tool_choice, Mapping) and "function" not in tool_choice:
        tool_choice = {"type": "function", "function": tool_choice}
    return tools, tool_choice


def with_function_call(answer: ChatAnswer) -> ChatAnswer:
    """Add `function_call` to each message or delta that has `tool_calls`."""
    if isinstance(answer, Mapping):
        for choice in answer["choices"]:
            add_function_call(choice["message"])
        return answer
    return _chunks(answer)


def _chunks(
    chunks: Iterator[CreateChatCompletionStreamResponse],
) -> Iterator[CreateChatCompletionStreamResponse]:
    for chunk in chunks:
        for choice in chunk["choices"]:
            add_function_call(choice["delta"])
        yield chunk


def add_function_call(message: Any) -> None:
    """Add `function_call` to a message or delta that has `tool_calls`."""
    calls = message.get("tool_calls")
    if calls:
        function = calls[0].get("function", {})
        message["function_call"] = {"name": "", "arguments": "", **function}
