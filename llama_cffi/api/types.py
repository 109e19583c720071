"""The types of responses: OpenAI's, under llama-cpp-python's names.

Source: https://platform.openai.com/docs/api-reference, chat, completions and embeddings. One field
is not OpenAI's: `reasoning_content`, as DeepSeek and llama-server name the reasoning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing_extensions import NotRequired

__all__ = [
    "ChatCompletionLogprobToken",
    "ChatCompletionLogprobs",
    "ChatCompletionMessageToolCall",
    "ChatCompletionMessageToolCallFunction",
    "ChatCompletionResponseChoice",
    "ChatCompletionResponseMessage",
    "ChatCompletionStreamResponseChoice",
    "ChatCompletionStreamResponseDelta",
    "ChatCompletionTopLogprobToken",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionUsage",
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse",
    "CreateCompletionStreamResponse",
    "CreateEmbeddingResponse",
    "Embedding",
    "EmbeddingUsage",
    "FinishReason",
]

FinishReason = Literal["stop", "length", "tool_calls"]


class CompletionUsage(TypedDict):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[dict[str, int]]  # cached_tokens


class CompletionLogprobs(TypedDict):
    """Log-probabilities, one entry per token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(TypedDict):
    """One answer of a completion."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CreateCompletionResponse(TypedDict):
    """The response of `create_completion`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[CompletionUsage]


class CreateCompletionStreamResponse(TypedDict):
    """A chunk of a streamed completion; `usage` as in `CreateChatCompletionStreamResponse`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[CompletionUsage | None]


class ChatCompletionMessageToolCallFunction(TypedDict):
    """The function of a tool call; the arguments are JSON."""

    name: str
    arguments: str


class ChatCompletionMessageToolCall(TypedDict):
    """One tool call; in a stream, the first delta has id and name, later ones more arguments."""

    id: str
    type: Literal["function"]
    function: ChatCompletionMessageToolCallFunction
    index: NotRequired[int]


class ChatCompletionResponseMessage(TypedDict):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatCompletionMessageToolCall]]


class ChatCompletionTopLogprobToken(TypedDict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatCompletionLogprobToken(ChatCompletionTopLogprobToken):
    """A generated token, and the most probable alternatives."""

    top_logprobs: list[ChatCompletionTopLogprobToken]


class ChatCompletionLogprobs(TypedDict):
    """Log-probabilities, one entry per generated token."""

    content: list[ChatCompletionLogprobToken] | None
    refusal: None


class ChatCompletionResponseChoice(TypedDict):
    """One answer of a chat completion."""

    index: int
    message: ChatCompletionResponseMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: FinishReason | None


class CreateChatCompletionResponse(TypedDict):
    """The response of `create_chat_completion`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: CompletionUsage


class ChatCompletionStreamResponseDelta(TypedDict, total=False):
    """The part of the message in a chunk."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    tool_calls: list[dict[str, Any]]


class ChatCompletionStreamResponseChoice(TypedDict):
    """One choice of a chunk."""

    index: int
    delta: ChatCompletionStreamResponseDelta
    logprobs: NotRequired[ChatCompletionLogprobs | None]
    finish_reason: FinishReason | None


class CreateChatCompletionStreamResponse(TypedDict):
    """A chunk of a streamed chat completion.

    With `stream_options={"include_usage": True}`, `usage` is None in all chunks but the last, which
    has no choices.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionStreamResponseChoice]
    usage: NotRequired[CompletionUsage | None]


class EmbeddingUsage(TypedDict):
    """Token counts of the input."""

    prompt_tokens: int
    total_tokens: int


class Embedding(TypedDict):
    """The embedding of one text: (n_embd,), or (n_tokens, n_embd) without pooling."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | list[list[float]]


class CreateEmbeddingResponse(TypedDict):
    """The response of `create_embedding`."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
