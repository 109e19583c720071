"""serve: start a server, with a clear error where its packages are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..api.config import LlamaConfig
from ..errors import LlamaError
from .settings import ServerOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .http_server import HttpServer
    from .models import ModelInput

__all__ = ["serve"]


def serve(
    models: ModelInput | Sequence[ModelInput] = (),
    config: LlamaConfig | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    **settings: Unpack[ServerOptions],
) -> HttpServer:
    """Serve models over HTTP, in a thread.

    Args:
        models: See `create_app`.
        config: See `create_app`.
        host: The address to listen on.
        port: The port; 0: a free one.
        **settings: See `Settings`.

    Raises:
        LlamaError: A package of the extra `server` is missing, the address cannot be used, or a
            model cannot be loaded.
        ValidationError: An argument is out of range.
    """
    try:
        from .app import create_app
        from .http_server import HttpServer
    except ModuleNotFoundError as e:
        raise LlamaError(
            f"the server needs the package {e.name}; install it with "
            "pip install 'llama-cffi[server]'"
        ) from e
    return HttpServer(create_app(models, config, **settings), host, port)
