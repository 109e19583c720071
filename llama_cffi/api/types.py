"""The types of responses: OpenAI's, under llama-cpp-python's names.

Source: https://platform.openai.com/docs/api-reference, chat, completions and embeddings. Two fields
are not OpenAI's: `reasoning_content`, as DeepSeek and llama-server name the reasoning, and, in a
stream that asks for it, `stop_reason`, as vLLM names the stop string that ended the answer. The
server adds llama-server's `timings` and `prompt_progress`.

Pydantic and `typing.get_type_hints` read them, on Python 3.10, too: annotations are not postponed,
and `TypedDict` is that of typing_extensions.
"""

from typing import Literal

from typing_extensions import NotRequired, TypedDict

__all__ = [
    "ChatCompletionLogprobToken",
    "ChatCompletionLogprobs",
    "ChatCompletionMessageToolCall",
    "ChatCompletionMessageToolCallChunk",
    "ChatCompletionMessageToolCallChunkFunction",
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
    completion_tokens_details: NotRequired[dict[str, int]]  # reasoning_tokens, of a chat


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
    stop_reason: NotRequired[str | None]


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
    """One tool call."""

    id: str
    type: Literal["function"]
    function: ChatCompletionMessageToolCallFunction


class ChatCompletionMessageToolCallChunkFunction(TypedDict, total=False):
    """The part of a tool call's function in a chunk."""

    name: str | None
    arguments: str


class ChatCompletionMessageToolCallChunk(TypedDict):
    """The part of a tool call in a chunk: the first has id and name, later ones more arguments."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: ChatCompletionMessageToolCallChunkFunction


class ChatCompletionResponseMessage(TypedDict):
    """The assistant's message.

    `function_call` is OpenAI's deprecated form of `tool_calls`; only the drop-in returns it.
    """

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatCompletionMessageToolCall]]
    function_call: NotRequired[ChatCompletionMessageToolCallFunction]


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
    timings: NotRequired[dict[str, float]]


class ChatCompletionStreamResponseDelta(TypedDict, total=False):
    """The part of the message in a chunk; `function_call` as in the whole message."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    tool_calls: list[ChatCompletionMessageToolCallChunk]
    function_call: ChatCompletionMessageToolCallChunkFunction


class ChatCompletionStreamResponseChoice(TypedDict):
    """One choice of a chunk."""

    index: int
    delta: ChatCompletionStreamResponseDelta
    logprobs: NotRequired[ChatCompletionLogprobs | None]
    finish_reason: FinishReason | None
    stop_reason: NotRequired[str | None]


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
    timings: NotRequired[dict[str, float]]
    prompt_progress: NotRequired[dict[str, float]]


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
