"""GET / and /page/NAME: files, with the headers that let browsers trust and keep them."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..call import ServerState

__all__ = ["routes"]

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Scripts and styles from files of this server only, and no text that becomes HTML.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, and asked for with its ETag each time
}


class _File(NamedTuple):
    body: bytes
    media_type: str
    etag: str


def routes() -> list[BaseRoute]:
    """Return the routes of this module."""
    return [Route("/", _send), Route("/page/{name}", _send)]


async def _send(request: Request) -> Response:
    """Answer with a file; keys are not needed, as browsers could not send them."""
    state: ServerState = request.app.state.server
    file = _files().get(request.path_params.get("name", "index.html"))
    if file is None or not state.settings.page:
        raise HTTPException(404)
    headers = {**_HEADERS, "etag": file.etag}
    known = request.headers.get("if-none-match", "")
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(None, 304, headers)
    return Response(file.body, 200, {**headers, "content-type": file.media_type})


@cache
def _files() -> dict[str, _File]:
    """Return the files of the page by name."""
    found = {}
    for entry in files("llama_cffi.server.page").iterdir():
        media_type = _TYPES.get("." + entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[entry.name] = _File(body, media_type, etag)
    return found
