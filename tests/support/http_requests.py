"""Plain HTTP requests, for what SDKs do not send."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = ["Reply", "connect", "get", "post", "request_bytes", "send"]

_JSON = {"content-type": "application/json"}


class Reply(NamedTuple):
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error object, in OpenAI's shape with all four fields."""
        error = self.json["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert isinstance(error["message"], str)
        assert error["message"]
        return error

    @property
    def events(self) -> list[Any]:
        """The data of the events, as JSON where it is JSON."""
        found = []
        for block in self.body.decode().split("\n\n"):
            for line in block.splitlines():
                if line.startswith("data: "):
                    data = line[len("data: ") :]
                    found.append(data if data == "[DONE]" else json.loads(data))
        return found


def send(
    method: str,
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send a request; return the whole response."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    with closing(connection):
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request(method, path, body, dict(headers or {}))
        with connection.getresponse() as response:
            fields = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, fields, response.read())


def post(url: str, value: Any, **headers: str) -> Reply:
    """Send JSON."""
    return send("POST", url, json.dumps(value).encode(), {**_JSON, **headers})


def get(url: str, **headers: str) -> Reply:
    return send("GET", url, None, headers)


def request_bytes(path: str, value: Any) -> bytes:
    """The bytes of a POST request."""
    body = json.dumps(value).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def connect(url: str) -> socket.socket:
    """Open a connection to a server."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)
