"""OpenAI's deprecated functions, as `llama_cffi.api` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api.functions import as_tools, with_function_call

if TYPE_CHECKING:
    from ..api.functions import ChatAnswer as ChatAnswer
    from ..api.functions import ToolChoice as ToolChoice

__all__ = ["as_tools", "with_function_call"]
