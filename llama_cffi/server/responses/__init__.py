"""OpenAI's Responses API as chat completions: requests in, events and response objects out.

Source: https://platform.openai.com/docs/api-reference/responses, and the types of the package
`openai`. Pure conversion; a route of the server does

    request = chat_request(body, store)
    chunks = await pool.create_chat_completion(request.messages, stream=True, **request.options)
    async for event in events(request, chunks, store): ...

or `await response_object(request, chunks, store)`. Both read the same chunks with the same code, so
that a streamed response and a whole one are equal.
"""

from .events import ResponseFold, events, response_object
from .request import ResponseRequest, chat_request
from .store import ResponseStore, StoredResponse

__all__ = [
    "ResponseFold",
    "ResponseRequest",
    "ResponseStore",
    "StoredResponse",
    "chat_request",
    "events",
    "response_object",
]
