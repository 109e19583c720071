"""create_app: the server as an ASGI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import Receive, Scope, Send

from ..api.config import LlamaConfig
from ..validation import reject_unknown
from . import (
    chat,
    completions,
    decisions,
    embeddings,
    info,
    lora,
    metrics,
    native,
    predict,
    rerank,
    router,
    streams,
    tokens,
    transcriptions,
)
from .call import OPENAI, ServerState, new_id, send_error
from .errors import INVALID, ApiError, as_api_error
from .messages import routes as messages
from .messages.routes import ANTHROPIC
from .models import ModelInput, Models
from .page import routes as page
from .request_log import RequestLog
from .responses import routes as responses
from .settings import ServerOptions, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["N_PARALLEL", "create_app"]

N_PARALLEL = 4
# A module of a protocol has `routes()`.
_PROTOCOLS = (
    chat, completions, responses, messages, native, embeddings, rerank, decisions, tokens, lora,
    transcriptions, info, metrics, page, router, streams,
)  # fmt: skip
_NOT_FOUND = "not_found_error"
_LOCAL = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


def create_app(
    models: ModelInput | Sequence[ModelInput] = (),
    config: LlamaConfig | None = None,
    **settings: Unpack[ServerOptions],
) -> Starlette:
    """Return the server as an ASGI app, for uvicorn or any other ASGI server.

    A single model given by path is loaded when the app starts; several are loaded by their first
    request, within the limits of `Settings`. All are freed when it stops, except those that were
    open.

    Args:
        models: A GGUF file, `hf:owner/repo:file`, a `Llama` or `LlamaPool`, or a list of them. More
            may come from the settings `models_dir` and `models_preset`.
        config: The settings of the models that are loaded here; None: four answers together.
        **settings: See `Settings`.

    Raises:
        ValidationError: A setting is out of range.
        UnknownOptionError: There is no setting of this name.
    """
    reject_unknown(settings, ServerOptions.__annotations__, "the server")
    checked = Settings(**settings)
    served = Models(models, config or LlamaConfig(n_parallel=N_PARALLEL), checked)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(served.open)
        served.residency.start()
        try:
            yield
        finally:
            served.residency.stop()
            await served.residency.join()
            await asyncio.to_thread(served.close)

    routes: list[BaseRoute] = [route for module in _PROTOCOLS for route in module.routes()]
    routes += predict.routes(routes)
    app = Starlette(
        routes=[Mount(checked.api_prefix, routes=routes)] if checked.api_prefix else routes,
        middleware=_middleware(checked),
        exception_handlers={HTTPException: _http_error, Exception: _error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # clients do not follow, or send GET instead of POST
    app.state.server = ServerState(checked, served)
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    origins = [origin for origin in settings.cors_origins if origin != "localhost"]
    is_local = "localhost" in settings.cors_origins
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_origin_regex=_LOCAL if is_local else None,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
    ]


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer a request that no route takes."""
    assert isinstance(error, HTTPException)
    status, what = error.status_code, f"{request.method} {request.url.path:.200}"
    message, kind, code = error.detail, INVALID, None
    if status == 404:
        message, kind, code = f"{what} does not exist on this server", _NOT_FOUND, "not_found"
    elif status == 405:
        message = f"{what} does not exist, but the path does for another method"
        kind, code = _NOT_FOUND, "method_not_allowed"
    return _Refusal(ApiError(status, message, kind, code=code, headers=error.headers))


async def _error(_: Request, error: Exception) -> Response:
    return _Refusal(as_api_error(error))


class _Refusal(Response):
    """The response to a request that no endpoint answers, in the shape that its path has."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(status_code=error.status)
        self._error = error

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        state: ServerState = scope["app"].state.server
        log = RequestLog(new_id(), scope["method"], scope["path"])
        path = scope["path"].removeprefix(state.settings.api_prefix)
        is_anthropic = f"{path}/".startswith("/v1/messages/")
        await send_error(send, self._error, ANTHROPIC if is_anthropic else OPENAI, log.id)
        if state.settings.log_requests:
            log.status, log.error = self._error.status, self._error
            log.write()
