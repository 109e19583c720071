"""One request: it owns its answers, and ends them when the client leaves or the server stops."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from ..errors import CancelledError
from ..generation.cancellation import CancelScope
from .body import ClientLeftError, Object, parse_json, read_body
from .errors import ApiError, as_api_error, openai_error
from .models import Models, ServedModel
from .response_store import ResponseStore
from .settings import Settings
from .sse import dumps, event, send_events

__all__ = [
    "OPENAI",
    "Answer",
    "Call",
    "Endpoint",
    "Handler",
    "Json",
    "Protocol",
    "ServerState",
    "Stream",
    "Text",
]

_log = logging.getLogger("llama_cffi.server")
_TRUE = ("true", "1")


@dataclass(frozen=True)
class Protocol:
    """What differs between the APIs of OpenAI, Anthropic and llama-server.

    Attributes:
        error_body: Returns the body of an error.
        error_event: Returns the last event of a stream that failed.
        end: The last event of a stream.
        id_header: The header of the request's id.
    """

    error_body: Callable[[ApiError], object]
    error_event: Callable[[ApiError], bytes]
    end: bytes = b""
    id_header: str = "x-request-id"


OPENAI = Protocol(openai_error, lambda error: event(openai_error(error)), b"data: [DONE]\n\n")


@dataclass(frozen=True)
class Json:
    """A response with a JSON body."""

    value: object
    status: int = 200


@dataclass(frozen=True)
class Stream:
    """A response of events: those of OpenAI's APIs are JSON values, see `sse.event` for others."""

    events: AsyncGenerator[bytes, None]


@dataclass(frozen=True)
class Text:
    """A response of text."""

    value: str
    media_type: str


Answer: TypeAlias = Json | Stream | Text


class ServerState:
    """What all requests of an app share.

    Attributes:
        settings: The settings.
        models: The models.
        calls: The requests that are being answered.
        responses: What the Responses API stores.
        is_draining: Whether new work is refused.
    """

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings, self.models = settings, models
        self.calls: set[Call] = set()
        self.responses = ResponseStore()
        self.is_draining = False
        self._keys = [_digest(key) for key in settings.api_keys]

    def drain(self) -> None:
        """Refuse new work; what runs goes on."""
        self.is_draining = True

    def cancel_all(self) -> None:
        """End all answers and loads; their clients get an error."""
        self.models.residency.stop()
        for call in [*self.calls]:
            call.cancel()

    def check_key(self, headers: Headers) -> None:
        """Refuse a request without a valid key.

        Raises:
            ApiError: The key is missing or wrong.
        """
        if not self._keys:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [key.strip()] if scheme.lower() == "bearer" else []
        given += [headers["x-api-key"]] if "x-api-key" in headers else []
        # All are compared, in constant time.
        found = [hmac.compare_digest(_digest(k), known) for k in given for known in self._keys]
        if not any(found):
            what = "the API key is wrong" if given else "the API key is missing"
            raise ApiError(
                401, f"{what}; send it as Authorization: Bearer KEY or x-api-key: KEY",
                "authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip


class Call:
    """One request, from its first byte to the last one of its answer.

    Attributes:
        state: What all requests share.
        scope: ASGI's.
        body: The JSON of the request.
        id: Its id.
    """

    def __init__(self, state: ServerState, scope: Scope) -> None:
        self.state, self.scope = state, scope
        self.body: Object = {}
        self.id = f"req_{secrets.token_hex(12)}"
        self.answers = CancelScope()
        self._admitted: tuple[ServedModel, int] | None = None
        self._model: ServedModel | None = None
        self._is_held = False

    @cached_property
    def headers(self) -> Headers:
        """The request's headers."""
        return Headers(scope=self.scope)

    @property
    def path_params(self) -> dict[str, str]:
        """The variables in the path."""
        found: dict[str, str] = self.scope.get("path_params", {})
        return found

    def query(self, name: str) -> str | None:
        """Return a parameter of the URL; None: it has none of this name."""
        return QueryParams(self.scope["query_string"]).get(name)

    @property
    def model(self) -> ServedModel:
        """The model that the body names.

        Raises:
            ApiError: There is no such model.
        """
        if self._model is None:
            name = self.body.get("model")
            if name is not None and not isinstance(name, str):
                raise ApiError(400, f"model must be a string, got {name!r:.60}", param="model")
            self._model = self.state.models.find(name or None)
        return self._model

    async def hold_model(self) -> None:
        """Load the model unless it is loaded, and keep it until the end of the request.

        `?autoload=` in the URL overrides the server's setting.

        Raises:
            ApiError: There is no such model, or it may not be loaded.
            LlamaError: It cannot be loaded.
        """
        model, residency = self.model, self.state.models.residency
        if not residency.try_hold(model):
            asked = self.query("autoload")
            may_load = self.state.settings.models_autoload if asked is None else asked in _TRUE
            await residency.hold(model, may_load)
        self._is_held = True

    def admit(self, model: ServedModel, n: int = 1) -> None:
        """Count *n* answers by *model* until the end of the request.

        Raises:
            QueueFullError: Too many requests are waiting already.
        """
        self._leave()
        model.admit(n)
        self._admitted = model, n

    def cancel(self) -> None:
        """End the answers, started or not; calling it again does nothing."""
        self.answers.cancel()

    def release(self) -> None:
        """End the answers and give back what was admitted; calling it again does nothing."""
        self.cancel()
        self._leave()
        if self._is_held:
            self._is_held = False
            self.state.models.residency.release(self.model)

    def _leave(self) -> None:
        if self._admitted is not None:
            (model, n), self._admitted = self._admitted, None
            model.leave(n)


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


class Endpoint:
    """Answers requests: an ASGI app around a handler.

    The handler validates, renders, tokenizes and submits before it returns, so that what is wrong
    with a request is told by the status. A stream's headers go out when it has returned.

    Args:
        handler: Returns the answer.
        protocol: The form of errors and streams.
        reads_body: Whether the request has a JSON body.
        list_field: The field that a body is which is a list; None: it must be an object.
        is_public: Whether it is answered without a key, and while the server drains.
        needs_model: Whether the model that the body names is loaded first, and kept meanwhile;
            without a body, a handler calls `Call.hold_model` itself.
    """

    def __init__(
        self,
        handler: Handler,
        protocol: Protocol = OPENAI,
        *,
        reads_body: bool = True,
        list_field: str | None = None,
        is_public: bool = False,
        needs_model: bool = True,
    ) -> None:
        self._handler, self._protocol, self._list_field = handler, protocol, list_field
        self._reads_body, self._is_public = reads_body, is_public
        self._needs_model = needs_model and reads_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        state: ServerState = scope["app"].state.server
        call = Call(state, scope)
        state.calls.add(call)
        try:
            if await self._read(call, receive, send):
                await self._run(call, receive, send)
        except ClientLeftError:
            pass
        finally:
            call.release()
            state.calls.discard(call)

    async def _read(self, call: Call, receive: Receive, send: Send) -> bool:
        """Check the request and read its body; return whether it can be answered."""
        state = call.state
        try:
            if not self._is_public:
                state.check_key(call.headers)
                if state.is_draining:
                    raise _stopping()
            if self._reads_body:
                body = await read_body(call.scope, receive, state.settings)
                call.body = parse_json(body, state.settings, self._list_field)
            return True
        except ApiError as error:
            await self._send_error(call, send, error)
            return False

    async def _run(self, call: Call, receive: Receive, send: Send) -> None:
        """Answer, until the client leaves."""
        answer = asyncio.ensure_future(self._answer(call, send))
        left = asyncio.ensure_future(_until_left(receive))
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not answer.done():
                call.cancel()  # first: the engine stops before this loop has time for the task
            for task in (answer, left):
                task.cancel()
            await asyncio.wait({answer, left})
        if not answer.cancelled():
            answer.result()

    async def _answer(self, call: Call, send: Send) -> None:
        settings, protocol = call.state.settings, self._protocol
        headers = {protocol.id_header: call.id}
        try:
            with call.answers:
                if self._needs_model:
                    await call.hold_model()
                answer = await self._handler(call)
        except Exception as error:
            call.release()  # before the client can send the next request
            await self._send_error(call, send, self._told(call, error))
            return
        if isinstance(answer, Json):
            call.release()
            await _send(send, answer.status, dumps(answer.value), headers)
            return
        if isinstance(answer, Text):
            headers["content-type"] = answer.media_type
            await _send(send, 200, answer.value.encode(), headers)
            return
        await send_events(
            send,
            answer.events,
            lambda error: protocol.error_event(self._told(call, error)),
            headers=headers,
            ping_s=settings.ping_s,
            send_timeout_s=settings.send_timeout_s,
        )

    def _told(self, call: Call, error: Exception) -> ApiError:
        if isinstance(error, CancelledError) and call.state.is_draining:
            return _stopping()
        return as_api_error(error, call.body)

    async def _send_error(self, call: Call, send: Send, error: ApiError) -> None:
        body = dumps(self._protocol.error_body(error))
        await _send(send, error.status, body, {**error.headers, self._protocol.id_header: call.id})


def _stopping() -> ApiError:
    message, headers = "the server is shutting down", {"Retry-After": "5"}
    return ApiError(503, message, "unavailable_error", headers=headers)


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
