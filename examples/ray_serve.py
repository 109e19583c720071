"""A chat server on Ray Serve: `python examples/ray_serve.py`, or `serve run ray_serve:app` there.

Needs `pip install "llama-cffi[ray]"`. Each replica has one copy of the weights and answers
N_PARALLEL conversations together. The environment variable MODEL is a GGUF file or
`hf:owner/repo:file`; by default the demo model answers:

    curl -N localhost:8000 -d '{"messages": [{"role": "user", "content": "What is 17 + 25?"}],
                                "stream": true}'
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llama_cffi import LlamaPool, ValidationError
from llama_cffi.demo import model_path

N_PARALLEL = 8
OPTIONS = {"messages", "max_tokens", "temperature", "top_p", "seed", "stop", "response_format"}


# More than the pool runs together, so that waiting requests fill free sequences immediately.
@serve.deployment(max_ongoing_requests=4 * N_PARALLEL)
class Chat:
    """Answers conversations, as JSON or as server-sent events."""

    def __init__(self, model: str, **options: Any) -> None:
        self.pool = LlamaPool(model, N_PARALLEL, warmup=True, **options)

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request in OpenAI's format."""
        try:
            body = await request.json()
            options = {name: value for name, value in body.items() if name in OPTIONS}
            if not body.get("stream"):
                return JSONResponse(await self.pool.create_chat_completion(**options))
            chunks = await self.pool.create_chat_completion(**options, stream=True)
        except (ValidationError, json.JSONDecodeError, AttributeError, TypeError) as error:
            return JSONResponse({"error": {"message": str(error)}}, status_code=400)
        return StreamingResponse(self._events(chunks), media_type="text/event-stream")

    async def text(self, prompt: str, max_tokens: int = 128) -> AsyncIterator[str]:
        """Stream a continuation, for `handle.options(stream=True).text.remote(...)`."""
        async for piece in await self.pool.generate(prompt, max_tokens, stream=True):
            yield piece

    async def stats(self) -> Any:
        """Return the statistics of this replica's engine."""
        return self.pool.llm.engine.stats

    def check_health(self) -> None:
        """Raise if the engine has stopped, so that Serve replaces the replica."""
        self.pool.llm.engine.start()  # type: ignore[union-attr]  # no effect while it runs

    def __del__(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()

    @staticmethod
    async def _events(chunks: AsyncIterator[Any]) -> AsyncIterator[str]:
        # When the client disconnects, Serve cancels this, which cancels the generation.
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"


# mypy and pyright do not know `bind`, which the decorator adds.
app: Any = Chat.bind(os.environ.get("MODEL", str(model_path())), n_ctx=2048)  # type: ignore[attr-defined]

if __name__ == "__main__":
    serve.run(app, blocking=True)
