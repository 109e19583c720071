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

from ..api.config import LlamaConfig
from ..validation import reject_unknown
from . import (
    chat,
    completions,
    decisions,
    embeddings,
    info,
    metrics,
    native,
    rerank,
    router,
    tokens,
)
from .call import ServerState
from .errors import ApiError, as_api_error, openai_error
from .messages import routes as messages
from .models import ModelInput, Models
from .page import routes as page
from .responses import routes as responses
from .settings import ServerOptions, Settings
from .sse import dumps

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["N_PARALLEL", "create_app"]

N_PARALLEL = 4
# A module of a protocol has `routes()`.
_PROTOCOLS = (
    chat, completions, responses, messages, native, embeddings, rerank, decisions, tokens, info,
    metrics, page, router,
)  # fmt: skip
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

    app = Starlette(
        routes=[route for protocol in _PROTOCOLS for route in protocol.routes()],
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
    what = f"{request.method} {request.url.path:.200}"
    if error.status_code == 405:
        message = f"{what} does not exist, but the path does for another method"
    elif error.status_code == 404:
        message = f"{what} does not exist on this server"
    else:
        message = error.detail
    kind = "not_found_error" if error.status_code in (404, 405) else "invalid_request_error"
    return _response(
        ApiError(error.status_code, message, kind, code="not_found", headers=error.headers)
    )


async def _error(_: Request, error: Exception) -> Response:
    return _response(as_api_error(error))


def _response(error: ApiError) -> Response:
    body = dumps(openai_error(error))
    return Response(body, error.status, error.headers, media_type="application/json")
