"""Ask a running server, for the commands `ps` and `stop`."""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import LlamaError, ValidationError

__all__ = ["ServerClient", "add_server"]

_KEY = "LLAMA_CFFI_API_KEY"
_TIMEOUT_S = 10.0
_URL = "http://127.0.0.1:8080"


def add_server(parser: Any) -> None:
    """Add the server's address and key to a command."""
    parser.add_argument(
        "--url", default=_URL, help=f"the server's address, with its --api-prefix (default: {_URL})"
    )
    parser.add_argument(
        "--api-key", default="", metavar="KEY", help=f"the server's key (default: {_KEY})"
    )


class ServerClient:
    """Sends requests to a server of llama_cffi, or to llama-server.

    Args:
        url: Its address.
        key: Its key; empty: that of the environment.

    Raises:
        ValidationError: The address is not one of HTTP.
    """

    def __init__(self, url: str, key: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValidationError(f"--url must begin with http:// or https://, got {url!r}")
        self.url = url.rstrip("/")
        self._key = key or os.environ.get(_KEY, "").partition(",")[0].strip()

    def get(self, path: str) -> Any:
        """Return the JSON at *path*.

        Raises:
            LlamaError: The server does not answer, or with an error.
        """
        return self._ask(path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send *body*; return the JSON of the answer.

        Raises:
            LlamaError: The server does not answer, or with an error.
        """
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None) -> Any:
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError
        from urllib.request import ProxyHandler, Request, build_opener

        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            request = Request(self.url + path, body, headers)
            with build_opener(ProxyHandler({})).open(request, timeout=_TIMEOUT_S) as answer:
                return json.loads(answer.read())
        except HTTPError as e:
            raise LlamaError(f"{self.url}{path} answered {e.code}: {_message(e.read())}") from None
        except (URLError, OSError, HTTPException, ValueError) as e:
            reason = getattr(e, "reason", None) or e
            raise LlamaError(
                f"no server of llama_cffi answers at {self.url} ({reason}); start one with "
                "`llama-cffi serve`, or give its address with --url"
            ) from None


def _message(body: bytes) -> str:
    try:
        found: Any = json.loads(body)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace") or "no reason"
