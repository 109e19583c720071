"""OpenAI's Responses API as chat completions: requests in, events and response objects out.

`routes.py` serves what the other modules convert. A streamed response and a whole one are read from
the same chunks by the same code, so that they are equal.

Source: https://platform.openai.com/docs/api-reference/responses, and the types of the package
`openai`.
"""

from ..response_store import ResponseStore, StoredResponse
from .events import ResponseFold, events, response_object
from .request import ResponseRequest, chat_request

__all__ = [
    "ResponseFold",
    "ResponseRequest",
    "ResponseStore",
    "StoredResponse",
    "chat_request",
    "events",
    "response_object",
]
