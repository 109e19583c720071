"""The shapes of requests and responses: OpenAI's, with llama-cpp-python's names.

https://platform.openai.com/docs/api-reference, chat, completions and embeddings. Fields that OpenAI
does not have say so: `reasoning_content` (DeepSeek's and llama-server's name for the thinking).
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
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[dict[str, int]]  # cached_tokens


class CompletionLogprobs(TypedDict):
    """Natural logarithms of probabilities, one entry for each token."""

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
    """What `create_completion` returns."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[CompletionUsage]


CreateCompletionStreamResponse = CreateCompletionResponse


class ChatCompletionMessageToolCallFunction(TypedDict):
    """A function that the model wants to call; the arguments are JSON."""

    name: str
    arguments: str


class ChatCompletionMessageToolCall(TypedDict):
    """One tool call; in a stream the first part has id and name, later ones more arguments."""

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
    """A token that could have come, and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatCompletionLogprobToken(ChatCompletionTopLogprobToken):
    """The token that came, and the most probable ones in its place."""

    top_logprobs: list[ChatCompletionTopLogprobToken]


class ChatCompletionLogprobs(TypedDict):
    """One entry for each token of the content."""

    content: list[ChatCompletionLogprobToken] | None
    refusal: None


class ChatCompletionResponseChoice(TypedDict):
    """One answer of a chat completion."""

    index: int
    message: ChatCompletionResponseMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: FinishReason | None


class CreateChatCompletionResponse(TypedDict):
    """What `create_chat_completion` returns."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionResponseChoice]
    usage: CompletionUsage


class ChatCompletionStreamResponseDelta(TypedDict, total=False):
    """What a chunk adds to the message."""

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
    """A chunk of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatCompletionStreamResponseChoice]
    usage: NotRequired[CompletionUsage]


class EmbeddingUsage(TypedDict):
    """Tokens of the input."""

    prompt_tokens: int
    total_tokens: int


class Embedding(TypedDict):
    """The embedding of one text: (n_embd,), or (n_tokens, n_embd) without pooling."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | list[list[float]]


class CreateEmbeddingResponse(TypedDict):
    """What `create_embedding` returns."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
