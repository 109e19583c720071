"""Anthropic's Messages API: requests to chat completions, and chunks to messages and events.

`request.py` and `answer.py` are pure conversion; `routes.py` serves them.

Source: https://platform.claude.com/docs/en/api/messages, and the types of the package `anthropic`.
"""

from .answer import Event, error_body, events, message_object
from .request import ChatRequest, chat_request

__all__ = ["ChatRequest", "Event", "chat_request", "error_body", "events", "message_object"]
