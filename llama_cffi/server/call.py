"""One request: it owns its answers, and ends them when the client leaves or the server stops."""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from starlette.datastructures import Headers, QueryParams
from starlette.types import Message, Receive, Scope, Send

from ..errors import CancelledError
from ..generation.cancellation import CancelScope
from ..generation.request_scope import RequestScope
from ..validation import INT32_MAX
from .api_keys import ApiKey, KeyRing, as_keys
from .body import ClientLeftError, Kind, Object, parse_json, read_body
from .errors import INVALID, ApiError, as_api_error, invalid, openai_error
from .form import parse_form
from .models import Models, ServedModel
from .request_log import RequestLog
from .response_store import ResponseStore
from .settings import Settings
from .sse import dumps, event, send_events
from .stream_store import RecordedStream, StreamStore, until_left

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
    "new_id",
    "send_error",
    "stopping",
]

_TRUE = ("true", "1")
_NO_CONTENT = 204
_NAME, _MAX_NAME = "x-conversation-id", 200


@dataclass(frozen=True)
class Protocol:
    """What differs between the APIs of OpenAI, Anthropic and llama-server.

    Attributes:
        error_body: Returns the body of an error of the request with an id.
        error_event: Returns the last event of a stream that failed.
        end: The last event of a stream.
        id_header: The header of the request's id.
    """

    error_body: Callable[[ApiError, str], object]
    error_event: Callable[[ApiError, str], bytes]
    end: bytes = b""
    id_header: str = "x-request-id"


OPENAI = Protocol(
    lambda error, _: openai_error(error),
    lambda error, _: event(openai_error(error)),
    b"data: [DONE]\n\n",
)


@dataclass(frozen=True)
class Json:
    """A response with a JSON body."""

    value: object
    status: int = 200


@dataclass(frozen=True)
class Stream:
    """A response of events: those of OpenAI's APIs are JSON values, see `sse.event` for others.

    Attributes:
        events: The events.
        has_pings: Whether the comments that keep the connection alive are among them.
    """

    events: AsyncGenerator[bytes, None]
    has_pings: bool = False


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
        streams: The streams that clients have named.
        reasoning_ends: What ends the reasoning of running chats, by the id of the response.
        keys: The API keys.
        is_draining: Whether new work is refused.
    """

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings, self.models = settings, models
        self.calls: set[Call] = set()
        self.responses, self.streams = ResponseStore(), StreamStore()
        self.reasoning_ends: dict[str, threading.Event] = {}
        self.is_draining = False
        self.keys = KeyRing(as_keys(settings.api_keys))
        self._n_of: Counter[str | None] = Counter()

    def drain(self) -> None:
        """Refuse new work; what runs goes on."""
        self.is_draining = True

    def cancel_all(self) -> None:
        """End all answers and loads; their clients get an error."""
        self.models.residency.stop()
        for call in [*self.calls]:
            call.cancel()

    def admit(self, client: str | None, n: int) -> None:
        """Count *n* more answers for *client*.

        Raises:
            ApiError: It has too many.
        """
        limit = self.settings.max_per_client
        if limit is not None and self._n_of[client] + n > limit:
            raise ApiError(
                429 if n <= limit else 400,
                f"this client has {self._n_of[client]} answers that run or wait, and asks for {n} "
                f"more; it may have {limit} (--max-per-client)",
                "rate_limit_error" if n <= limit else INVALID, code="rate_limit_exceeded",
            )  # fmt: skip
        self._n_of[client] += n

    def leave(self, client: str | None, n: int) -> None:
        """Take back `admit`."""
        self._n_of[client] -= n
        if not self._n_of[client]:
            del self._n_of[client]


class Call:
    """One request, from its first byte to the last one of its answer.

    Attributes:
        state: What all requests share.
        scope: ASGI's.
        body: The JSON of the request.
        id: Its id.
        log: What the log tells of it.
        requests: What its generations have in common.
        recorded: Its stream, if the client has named it.
    """

    def __init__(self, state: ServerState, scope: Scope) -> None:
        self.state, self.scope = state, scope
        self.body: Object = {}
        self.id = new_id()
        self.answers = CancelScope()
        self.log = RequestLog(self.id, scope["method"], scope["path"])
        self.requests = RequestScope()
        self.recorded: RecordedStream | None = None
        self._key: ApiKey | None = None
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
    def owner(self) -> str | None:
        """The name of the key, which alone can find what the request leaves; None: it has none."""
        return None if self._key is None else self._key.name

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
            self.log.model = self._model.name
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

    def check_key(self) -> None:
        """Refuse the request if it has no valid key.

        Raises:
            ApiError: The key is missing or wrong.
        """
        self._key = self.state.keys.find(self.headers)
        self.log.key = self.owner

    def schedule(self) -> None:
        """Determine client, priority and deadline of the generations; the body has been read.

        Raises:
            ApiError: `priority` is wrong.
        """
        most = 0 if self._key is None else self._key.priority
        asked = self.body.get("priority")
        asked = most if asked is None else asked
        if isinstance(asked, bool) or not isinstance(asked, int) or abs(asked) > INT32_MAX:
            raise invalid("priority", f"priority must be an integer of 32 bits, got {asked!r:.60}")
        peer = self.scope.get("client")
        address = None if peer is None else str(peer[0])
        client = address if self._key is None else self._key.name
        limit_s = self.state.settings.max_request_s
        self.requests = RequestScope(client, min(asked, most), limit_s)

    def record(self) -> None:
        """Record the answer if it is a stream and the client has named it.

        Raises:
            ApiError: The name is wrong, or too many streams are recorded.
        """
        name = self.headers.get(_NAME)
        if name is None or self.body.get("stream") is not True:
            return
        if not 0 < len(name) <= _MAX_NAME:
            message = f"X-Conversation-Id must have 1 to {_MAX_NAME} characters, got {len(name)}"
            raise invalid("X-Conversation-Id", message)
        self.recorded = self.state.streams.begin(self.owner, name)

    def admit(self, model: ServedModel, n: int = 1) -> None:
        """Count *n* answers by *model* until the end of the request.

        Raises:
            ApiError: The client has too many.
            QueueFullError: Too many requests are waiting already.
        """
        self._leave()
        model.admit(n)
        self._admitted = model, n
        try:
            self.state.admit(self.requests.client, n)
        except ApiError:
            self._admitted = None
            model.leave(n)
            raise

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
            self.state.leave(self.requests.client, n)


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


class Endpoint:
    """Answers requests: an ASGI app around a handler.

    The handler validates, renders, tokenizes and submits before it returns, so that what is wrong
    with a request is told by the status. A stream's headers go out when it has returned.

    Args:
        handler: Returns the answer.
        protocol: The form of errors and streams.
        reads_body: Whether the request has a body.
        form: The fields of a body that is a form with files; None: it is JSON.
        list_field: The field that a body is which is a list; None: it must be an object.
        is_public: Whether it is answered without a key, and while the server drains.
        needs_model: Whether the model that the body names is loaded first, and kept meanwhile;
            without a body, a handler calls `Call.hold_model` itself.
        may_be_empty: Whether a body without a byte counts as an object without fields.

    Attributes:
        protocol: The form of errors and streams.
    """

    def __init__(
        self,
        handler: Handler,
        protocol: Protocol = OPENAI,
        *,
        reads_body: bool = True,
        form: Mapping[str, Kind] | None = None,
        list_field: str | None = None,
        is_public: bool = False,
        needs_model: bool = True,
        may_be_empty: bool = False,
    ) -> None:
        self._may_be_empty = may_be_empty
        self._handler, self.protocol, self._list_field = handler, protocol, list_field
        self._reads_body, self._is_public, self._form = reads_body, is_public, form
        self._needs_model = needs_model and reads_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        state: ServerState = scope["app"].state.server
        call = Call(state, scope)
        state.calls.add(call)
        if state.settings.log_requests:
            send = _watched(send, call.log)
        try:
            if await self._read(call, receive, send):
                if call.recorded is None:
                    await self._run(call, receive, send)
                else:
                    await self._record(call, call.recorded, receive, send)
        except ClientLeftError:
            call.log.left = True
        finally:
            call.release()
            state.calls.discard(call)
            if state.settings.log_requests:
                call.log.write(call.requests.stats)

    async def handle(self, call: Call) -> Answer:
        """Return the answer to a request whose body is there.

        Raises:
            Exception: What is wrong with it; see `as_api_error`.
        """
        if self._needs_model:
            await call.hold_model()
        return await self._handler(call)

    async def _read(self, call: Call, receive: Receive, send: Send) -> bool:
        """Check the request and read its body; return whether it can be answered."""
        state = call.state
        try:
            if not self._is_public:
                call.check_key()
                if state.is_draining:
                    raise stopping()
            if self._reads_body:
                body = await self._body(call, receive)
                if self._form is not None:
                    kind = call.headers.get("content-type", "")
                    call.body = parse_form(body, kind, self._form)
                elif body or not self._may_be_empty:
                    call.body = parse_json(body, state.settings, self._list_field)
            call.schedule()
            call.record()
            return True
        except ApiError as error:
            await self._send_error(call, send, error)
            return False

    async def _body(self, call: Call, receive: Receive) -> bytes:
        """Read the body, until the server stops."""
        loop = asyncio.get_running_loop()
        is_form = self._form is not None
        reading = asyncio.ensure_future(
            read_body(call.scope, receive, call.state.settings, is_form=is_form)
        )

        def stop(_reason: str) -> None:
            if not reading.done():
                loop.call_soon_threadsafe(reading.cancel)

        call.answers.add(stop)
        try:
            return await reading
        except asyncio.CancelledError:
            if not call.state.is_draining:
                raise
            raise stopping() from None

    async def _record(
        self, call: Call, stream: RecordedStream, receive: Receive, send: Send
    ) -> None:
        """Answer, until the stream is stopped; the client reads it as one that comes back does."""
        try:
            await stream.serve(
                lambda receive, send: self._run(call, receive, send),
                lambda: self._send_events(call, send, Stream(stream.read(0), has_pings=True)),
                receive,
                send,
            )
        finally:
            call.state.streams.end(call.owner, stream)

    async def _run(self, call: Call, receive: Receive, send: Send) -> None:
        """Answer, until the client leaves."""
        with call.requests:  # which the task inherits
            answer = asyncio.ensure_future(self._answer(call, send))
        left = asyncio.ensure_future(until_left(receive))
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not answer.done():
                call.log.left = True
                call.cancel()  # first: the engine stops before this loop has time for the task
            for task in (answer, left):
                task.cancel()
            await asyncio.wait({answer, left})
        if answer.cancelled():  # also when the client read nothing for too long
            call.log.left = True
        else:
            answer.result()

    async def _answer(self, call: Call, send: Send) -> None:
        headers = {self.protocol.id_header: call.id}
        try:
            with call.answers:
                answer = await self.handle(call)
        except Exception as error:
            call.release()  # before the client can send the next request
            await self._send_error(call, send, self._told(call, error))
            return
        if isinstance(answer, Json):
            call.release()
            body = b"" if answer.status == _NO_CONTENT else dumps(answer.value)
            await _send(send, answer.status, body, headers)
            return
        if isinstance(answer, Text):
            headers["content-type"] = answer.media_type
            await _send(send, 200, answer.value.encode(), headers)
            return
        await self._send_events(call, send, answer)

    async def _send_events(self, call: Call, send: Send, answer: Stream) -> None:
        settings, protocol = call.state.settings, self.protocol
        await send_events(
            send,
            answer.events,
            lambda error: protocol.error_event(self._told(call, error), call.id),
            headers={protocol.id_header: call.id},
            ping_s=math.inf if answer.has_pings else settings.ping_s,
            send_timeout_s=settings.send_timeout_s,
        )

    def _told(self, call: Call, error: Exception) -> ApiError:
        is_end = isinstance(error, CancelledError) and call.state.is_draining
        call.log.error = told = stopping() if is_end else as_api_error(error, call.body)
        return told

    async def _send_error(self, call: Call, send: Send, error: ApiError) -> None:
        call.log.error = error
        await send_error(send, error, self.protocol, call.id)


async def send_error(send: Send, error: ApiError, protocol: Protocol, id: str) -> None:
    """Send the response to a request, with an id, that failed before its response had begun."""
    body = dumps(protocol.error_body(error, id))
    await _send(send, error.status, body, {**error.headers, protocol.id_header: id})


def new_id() -> str:
    """Return the id of a new request."""
    return f"req_{secrets.token_hex(12)}"


def _watched(send: Send, log: RequestLog) -> Send:
    """Return *send* for a request whose status is logged."""

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            log.status = message["status"]
        await send(message)

    return watched


def stopping() -> ApiError:
    """Return the error of a request that comes while the server drains."""
    return ApiError(503, "the server is shutting down", "unavailable_error")


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})
