"""Put load on a server: many streams, slow readers, half-open connections, clients that leave.

    python tools/load.py                                all parts, on the demo model
    python tools/load.py streams --clients 256 --seconds 60
    python tools/load.py slow half-open -m model.gguf
    python tools/load.py leave --disconnects 1000

The first three run `llama-cffi serve` as a process of its own. The model has 32-bit weights and
cache, so an answer does not depend on those that are generated with it: every one must be the text
that its request gets alone. `leave` runs the server in this process, where it can count steps.
Bad requests are another program: `python -m tools.fuzz requests`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

EXACT = ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
PARTS = ("streams", "slow", "half-open", "leave")
N_PARALLEL, N_WAITING, N_CTX = 8, 128, 512
RSS_MARGIN_MIB = 24
_LONG_S = 120.0  # nothing takes longer, unless it hangs
_NO_LINGER = struct.pack("ii", 1, 0)  # close sends RST
_SYSTEM = "You are a friendly assistant who answers in few words and is never rude. "


class Request(NamedTuple):
    """A request of a stream.

    Attributes:
        path: The route.
        body: The JSON.
        read: Returns text and finish reason from the data of its events; raises LookupError when
            the stream is not complete.
    """

    path: str
    body: dict[str, Any]
    read: Callable[[list[Any]], tuple[str, str]]


def _openai(events: list[Any]) -> tuple[str, str]:
    if events[-1] != "[DONE]":
        raise LookupError("the last event is not [DONE]")
    choices = [event["choices"][0] for event in events[:-1]]
    texts = [c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices]
    return "".join(texts), choices[-1]["finish_reason"]


def _native(events: list[Any]) -> tuple[str, str]:
    if not events[-1]["stop"]:
        raise LookupError("the last event has no stop")
    return "".join(event["content"] for event in events), events[-1]["stop_type"]


def _messages(events: list[Any]) -> tuple[str, str]:
    if events[-1]["type"] != "message_stop":
        raise LookupError("the last event is not message_stop")
    texts = [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"]
    return "".join(texts), events[-2]["delta"]["stop_reason"]


def _responses(events: list[Any]) -> tuple[str, str]:
    if events[-1]["type"] not in ("response.completed", "response.incomplete"):
        raise LookupError("the last event does not complete the response")
    texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    return "".join(texts), events[-1]["response"]["status"]


def requests(n: int, max_tokens: int = 48) -> list[Request]:
    """Return *n* different requests, in the streams of all APIs in turn."""
    found = []
    for i in range(n):
        text = f"What is {i % 40} + {i % 7 + 1}?"
        if i % 3 == 0:
            text = _SYSTEM * (1 + i % 4) + text
        limit = 1 + (7 * i + max_tokens // 2) % max_tokens
        chat = {"messages": [{"role": "user", "content": text}]}
        more: dict[str, Any] = {"temperature": 0, "stream": True}
        endless = {"ignore_eos": True} if i % 2 else {}
        found.append(
            [
                Request("/v1/chat/completions", {**chat, **more, **endless, "max_tokens": limit},
                        _openai),
                Request("/v1/completions", {"prompt": text, **more, **endless, "max_tokens": limit},
                        _openai),
                Request("/completion", {"prompt": text, **more, **endless, "n_predict": limit},
                        _native),
                Request("/v1/messages", {**chat, **more, "max_tokens": limit}, _messages),
                Request("/v1/responses", {"input": text, **more, "store": False,
                                          "max_output_tokens": limit}, _responses),
            ][i % 5]
        )  # fmt: skip
    return found


# The client


class Reply(NamedTuple):
    """A response: its status and its body."""

    status: int
    body: bytes

    @property
    def events(self) -> list[Any]:
        """The data of the events, as JSON where it is JSON."""
        found = []
        for line in self.body.split(b"\n"):
            if line.startswith(b"data: "):
                data = line[6:]
                found.append("[DONE]" if data == b"[DONE]" else json.loads(data))
        return found


class Connection:
    """One keep-alive connection to a server, which is opened again when it was closed.

    Args:
        url: The server.
        buffer: Bytes of the receive buffer of the system; None: its default.
    """

    def __init__(self, url: str, buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self._address, self._buffer = (parts.hostname, parts.port), buffer
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return both streams of the connection."""
        if self._streams is None:
            connection = socket.socket()
            if self._buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, self._address)
            limit = 2**16 if self._buffer is None else self._buffer
            self._streams = await asyncio.open_connection(sock=connection, limit=limit)
        return self._streams

    async def ask(
        self, request: Request, pause: Callable[[], Awaitable[None]] | None = None
    ) -> Reply:
        """Send a request; return the response.

        Args:
            request: The request.
            pause: Called before each few bytes of the body are read; None: read on.

        Raises:
            asyncio.IncompleteReadError: The connection was closed before the end.
        """
        reader, writer = await self.open()
        writer.write(request_bytes(request))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length: " in head:
            size = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            body = await reader.readexactly(size)
        else:
            body = await self._chunks(reader, pause)
        if b"connection: close" in head:
            await self.close()
        return Reply(int(head.split()[1]), body)

    async def _chunks(
        self, reader: asyncio.StreamReader, pause: Callable[[], Awaitable[None]] | None
    ) -> bytes:
        parts = []
        while size := int(await reader.readline(), 16):
            for at in range(0, size, size if pause is None else 16):
                if pause is not None:
                    await pause()
                step = size if pause is None else min(16, size - at)
                parts.append(await reader.readexactly(step))
            await reader.readexactly(2)
        await reader.readexactly(2)
        return b"".join(parts)

    async def close(self, *, reset: bool = False) -> None:
        """Close it; with RST instead of FIN if *reset*."""
        if self._streams is not None:
            (_, writer), self._streams = self._streams, None
            if reset:
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                writer.transport.abort()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def request_bytes(request: Request) -> bytes:
    """Return a request as it is sent."""
    body = json.dumps(request.body).encode()
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def get(url: str, path: str) -> str:
    """Return the body of a GET request, on a connection of its own."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n".encode())
    data = await asyncio.wait_for(reader.read(), _LONG_S)
    writer.close()
    await writer.wait_closed()
    head, _, body = data.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), data
    return body


async def metric(url: str, name: str) -> float:
    """Return a value of /metrics."""
    found = re.search(rf"^llamacpp:{name} (\S+)$", await get(url, "/metrics"), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def n_busy(url: str) -> int:
    """Return the number of requests that run or wait."""
    return int(await metric(url, "requests_processing") + await metric(url, "requests_deferred"))


async def until_free(url: str) -> None:
    """Wait until no request runs or waits.

    Raises:
        AssertionError: One remains.
    """
    end = time.monotonic() + _LONG_S
    while n := await n_busy(url):
        assert time.monotonic() < end, f"{n} requests still run or wait"
        await asyncio.sleep(0.02)
    assert json.loads(await get(url, "/health")) == {"status": "ok"}


# Parts


class Tally:
    """What happened in a part.

    Attributes:
        counts: How often what happened.
        wrong: What must not happen.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def check(self, request: Request, reply: Reply, alone: tuple[str, str]) -> None:
        """Count a response, and note what is wrong with it."""
        self.counts[str(reply.status)] += 1
        if reply.status == 429:
            return
        what = f"{request.path} {json.dumps(request.body)[:200]}"
        if reply.status != 200:
            self.wrong.append(f"{what}: {reply.status} {reply.body[:200]!r}")
            return
        try:
            found = request.read(reply.events)
        except (LookupError, KeyError, TypeError, ValueError) as error:
            self.wrong.append(f"{what}: incomplete: {error!r} {reply.body[-300:]!r}")
            return
        if found != alone:
            self.wrong.append(f"{what}: {found!r}, but {alone!r} alone")
        elif not found[1]:
            self.wrong.append(f"{what}: no finish reason")


async def answers(url: str, given: Sequence[Request]) -> list[tuple[str, str]]:
    """Ask each request alone; return texts and finish reasons."""
    connection = Connection(url)
    found = []
    for request in given:
        reply = await connection.ask(request)
        assert reply.status == 200, reply
        found.append(request.read(reply.events))
    await connection.close()
    return found


async def streams(
    url: str,
    n_clients: int,
    seconds: float,
    advance: Callable[[], object] = lambda: None,
    tick: Callable[[float], object] = lambda seconds: None,
    n_requests: int = 60,
) -> Tally:
    """Let clients ask for streams until the time is over.

    Args:
        url: The server.
        n_clients: Number of clients.
        seconds: The time.
        advance: Called after each response.
        tick: Called each second with the seconds so far.
        n_requests: Number of different requests.
    """
    tally, given = Tally(), requests(n_requests)
    alone = await answers(url, given)
    start = time.monotonic()

    async def client(seed: int) -> None:
        rng, connection = random.Random(seed), Connection(url)
        while time.monotonic() - start < seconds:
            i = rng.randrange(len(given))
            try:
                reply = await asyncio.wait_for(connection.ask(given[i]), _LONG_S)
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                tally.wrong.append(f"{given[i].path}: {error!r}")
                await connection.close()
                continue
            tally.check(given[i], reply, alone[i])
            advance()
            if reply.status == 429:
                await asyncio.sleep(rng.random())  # sooner than Retry-After says
        await connection.close()

    async def clock() -> None:
        while True:
            await asyncio.sleep(1)
            tick(time.monotonic() - start)

    ticking = asyncio.ensure_future(clock())
    await asyncio.gather(*map(client, range(n_clients)))
    ticking.cancel()
    await asyncio.wait([ticking])
    await until_free(url)
    return tally


async def slow(
    url: str,
    n_readers: int,
    seconds: float,
    advance: Callable[[], object] = lambda: None,
    max_tokens: int = 200,
) -> Tally:
    """Let clients read few bytes a second, and others as fast as they can, meanwhile.

    After the time the slow ones read on at full speed: their answers must be complete.
    """
    tally, end = Tally(), time.monotonic() + seconds
    prompt = {"prompt": "Hello", "temperature": 0, "stream": True, "ignore_eos": True}
    long = Request("/v1/completions", {**prompt, "logprobs": 10, "max_tokens": max_tokens}, _openai)
    (alone,) = await answers(url, [long])

    async def pause() -> None:
        if time.monotonic() < end:
            await asyncio.sleep(1)

    async def reader() -> None:
        connection = Connection(url, buffer=2048)
        tally.check(long, await connection.ask(long, pause), alone)
        await connection.close()
        advance()

    async def others() -> None:
        given = requests(10)
        expected = await answers(url, given)
        connection = Connection(url)
        while True:
            for request, right in zip(given, expected, strict=True):
                tally.check(request, await connection.ask(request), right)
                advance()
            if time.monotonic() >= end:
                break
        await connection.close()

    readers = [asyncio.ensure_future(reader()) for _ in range(n_readers)]
    await asyncio.gather(others(), *readers)
    await until_free(url)
    return tally


_HALVES = {
    "nothing": 0.0,
    "half a line": 0.03,
    "half the headers": 0.2,
    "half the body": 0.8,
    "all, and vanish": 1.0,
    "all, and read nothing": 1.0,
}


async def half_open(
    url: str, n: int, advance: Callable[[], object] = lambda: None, max_tokens: int = 200
) -> Tally:
    """Open connections that send a part of a request and then nothing, or vanish without FIN.

    A good request must be answered in the meantime. Afterwards all are closed.
    """
    tally = Tally()
    given = requests(10)
    expected = await answers(url, given)
    long = Request(
        "/v1/completions",
        {
            "prompt": "Hello",
            "stream": True,
            "ignore_eos": True,
            "max_tokens": max_tokens,
            "logprobs": 10,
        },
        _openai,
    )
    connections = []
    for i in range(n):
        what = [*_HALVES][i % len(_HALVES)]
        connection = Connection(url, buffer=2048)
        _, writer = await connection.open()
        data = request_bytes(long)
        writer.write(data[: int(len(data) * _HALVES[what])])
        await writer.drain()
        if what == "all, and vanish":
            await asyncio.sleep(0.05)
            if not vanish(writer.get_extra_info("socket")):
                what = "all, and RST"
            await connection.close(reset=True)
        else:
            connections.append(connection)
        tally.counts[what] += 1
        advance()
    good = Connection(url)
    for request, right in zip(given, expected, strict=True):
        tally.check(request, await asyncio.wait_for(good.ask(request), _LONG_S), right)
    await good.close()
    await until_free(url)  # the answers end although nobody reads them
    for connection in connections:
        await connection.close(reset=True)
    return tally


_TCP_REPAIR = 19


def vanish(connection: socket.socket) -> bool:
    """Let the system forget a connection without a word; return whether it may (Linux, root)."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except OSError:
        return False
    return True


MOMENTS = ("body", "sent", "queue", "head", "event", "events")


class Leaving(NamedTuple):
    """What `leave` found.

    Attributes:
        tally: Disconnects by the state that the request was in, and what was wrong.
        noticed: Steps from closing the connection until the server cancelled.
        freed: Steps from there until the request had ended.
    """

    tally: Tally
    noticed: list[int]
    freed: list[int]


async def leave(
    server: Any, n: int, advance: Callable[[], object] = lambda: None, n_clients: int = 16
) -> Leaving:
    """Disconnect *n* times, at random moments of a request, from a server in this process.

    Args:
        server: An `HttpServer` with one model and an `InferenceEngine`.
        n: How often.
        advance: Called after each.
        n_clients: Number of clients at a time: those that do not fit wait in the queue.
    """
    tally, noticed, freed = Tally(), list[int](), list[int]()
    (model,) = server._state.models
    engine = model.llm.engine
    closed: dict[int, int] = {}  # local port -> step
    left = iter(range(n))

    def n_steps() -> int:
        return int(engine._core.metrics._n_steps)

    with _watched(engine, n_steps, closed, tally, noticed, freed):

        async def client(seed: int) -> None:
            rng = random.Random(seed)
            for _ in left:
                await _leave_once(server.url, rng, n_steps, closed, tally)
                advance()

        await asyncio.gather(*map(client, range(n_clients)))
        end = time.monotonic() + _LONG_S
        while engine.active_requests or server._state.calls or model.n_requests:
            assert time.monotonic() < end, (engine.active_requests, server._state.calls)
            await asyncio.sleep(0.01)
    if freed and max(freed) > 1:
        tally.wrong.append(f"a request ended {max(freed)} steps after it was cancelled")
    return Leaving(tally, noticed, freed)


@contextmanager
def _watched(
    engine: Any,
    n_steps: Callable[[], int],
    closed: dict[int, int],
    tally: Tally,
    noticed: list[int],
    freed: list[int],
) -> Iterator[None]:
    """Record the steps of every disconnect while the block runs."""
    from llama_cffi.scheduler import RequestHandle
    from llama_cffi.server.call import Call

    cancel_call, cancel_handle = Call.cancel, RequestHandle._cancel
    seen: set[Any] = set()

    def of_call(call: Call) -> None:
        client = call.scope["client"]  # None: it had left before it was accepted
        step = client and closed.pop(client[1], None)
        if step is not None:
            noticed.append(n_steps() - step)
        cancel_call(call)

    def of_handle(handle: Any, reason: str) -> None:
        if not handle.done and handle not in seen:
            seen.add(handle)
            tally.counts[f"in state {handle.request.state.value}"] += 1
            step = n_steps()
            handle.future.add_done_callback(lambda _: freed.append(n_steps() - step))
        cancel_handle(handle, reason)

    Call.cancel, RequestHandle._cancel = of_call, of_handle  # type: ignore[method-assign]
    try:
        yield
    finally:
        Call.cancel, RequestHandle._cancel = (  # type: ignore[method-assign]
            cancel_call, cancel_handle,
        )  # fmt: skip


async def _leave_once(
    url: str, rng: random.Random, n_steps: Callable[[], int], closed: dict[int, int], tally: Tally
) -> None:
    moment = rng.choice(MOMENTS)
    text = f"{rng.random()} {_SYSTEM * rng.choice([0, 1, 4])}"
    body = {"prompt": text, "max_tokens": 200, "ignore_eos": True, "stream": rng.random() < 0.7}
    path = rng.choice(["/v1/completions", "/completion", "/v1/chat/completions"])
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    data = request_bytes(Request(path, body, _openai))
    connection = Connection(url)
    reader, writer = await connection.open()
    writer.write(data[: rng.randrange(len(data))] if moment == "body" else data)
    with suppress(asyncio.TimeoutError):
        if moment == "queue":
            await asyncio.sleep(rng.random() * 0.05)
        elif moment in ("head", "event", "events"):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), rng.random() * 0.5)
        if moment in ("event", "events") and body["stream"]:
            for _ in range(1 if moment == "event" else rng.randrange(2, 60)):
                await asyncio.wait_for(reader.readuntil(b"\n\n"), 1)
    tally.counts[f"at {moment}"] += 1
    port = writer.get_extra_info("sockname")[1]
    closed[port] = n_steps()
    await connection.close(reset=rng.random() < 0.5)


# The server


class Server:
    """`llama-cffi serve` as a process.

    Args:
        model: The model.
    """

    def __init__(self, model: Path) -> None:
        command = [
            sys.executable, "-m", "llama_cffi", "serve", "-m", str(model), "--port", "0",
            "--metrics", "-np", str(N_PARALLEL), "-c", str(N_CTX), "--max-waiting", str(N_WAITING),
            *EXACT,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("listening on "):
                self.url = line.split()[-1]
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(self.lines))
        self._reader = threading.Thread(
            target=self.lines.extend, args=[self.process.stderr], daemon=True
        )
        self._reader.start()

    @property
    def rss_mib(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    @property
    def n_files(self) -> int:
        """Number of open files and sockets."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self) -> int:
        """End it with SIGTERM; return its exit code."""
        self.process.terminate()
        code = self.process.wait(_LONG_S)
        self._reader.join(10)
        return code


@contextmanager
def demo_f32() -> Iterator[Path]:
    """Provide the demo model with 32-bit weights."""
    from llama_cffi import demo, quantize

    with tempfile.TemporaryDirectory() as folder:
        yield quantize(demo.model_path(), Path(folder) / "f32.gguf", "F32", allow_requantize=True)


class Part(NamedTuple):
    """What a part has shown: rows of a table, and what was wrong."""

    name: str
    rows: list[tuple[str, str]]
    wrong: list[str]


def run_streams(model: Path, args: argparse.Namespace) -> Part:
    """Run `streams`, and watch the memory of the server."""
    from tqdm import tqdm

    server = Server(model)
    sizes: list[float] = []
    with tqdm(desc="streams", unit=" responses", disable=None) as bar:
        tally = asyncio.run(
            streams(
                server.url, args.clients, args.seconds, bar.update,
                lambda _: sizes.append(server.rss_mib),
            )
        )  # fmt: skip
    n_steps = asyncio.run(metric(server.url, "n_decode_total"))
    n_tokens = asyncio.run(metric(server.url, "tokens_predicted_total"))
    warm = sizes[len(sizes) // 4]  # a quarter of the time is the warm-up
    if max(sizes[-3:]) > warm + RSS_MARGIN_MIB:
        tally.wrong.append(f"RSS grew from {warm:.0f} to {sizes[-1]:.0f} MiB")
    memory = f"{warm:.1f} MiB after the warm-up, {sizes[-1]:.1f} at the end, most {max(sizes):.1f}"
    rows = [
        *_rows(tally),
        ("tokens", f"{n_tokens:,.0f} in {n_steps:,.0f} steps"),
        ("RSS", memory),
    ]
    return _stopped("streams", server, rows, tally.wrong)


def run_slow(model: Path, args: argparse.Namespace) -> Part:
    """Run `slow`."""
    from tqdm import tqdm

    server = Server(model)
    before = server.rss_mib
    with tqdm(desc="slow", unit=" responses", disable=None) as bar:
        tally = asyncio.run(slow(server.url, args.readers, args.seconds, bar.update))
    rows = [*_rows(tally), ("RSS", f"{before:.1f} MiB before, {server.rss_mib:.1f} at the end")]
    return _stopped("slow", server, rows, tally.wrong)


def run_half_open(model: Path, args: argparse.Namespace) -> Part:
    """Run `half-open`; afterwards no socket may be left."""
    from tqdm import tqdm

    server = Server(model)
    asyncio.run(answers(server.url, requests(5)))
    before = server.n_files
    with tqdm(total=args.connections, desc="half-open", disable=None) as bar:
        tally = asyncio.run(half_open(server.url, args.connections, bar.update))
    end = time.monotonic() + _LONG_S  # the limits of time are 60 s
    while server.n_files > before + 2 and time.monotonic() < end:
        time.sleep(0.5)
    rows = [*_rows(tally), ("open files", f"{before} before, {server.n_files} at the end")]
    if server.n_files > before + 2:
        tally.wrong.append(f"{server.n_files - before} sockets are left")
    return _stopped("half-open", server, rows, tally.wrong)


def run_leave(model: Path, args: argparse.Namespace) -> Part:
    """Run `leave` with a server in this process."""
    from tqdm import tqdm

    from llama_cffi import LlamaPool

    pool = LlamaPool(str(model), n_parallel=N_PARALLEL, n_ctx=N_CTX, n_batch=64)
    with (
        pool,
        pool.serve() as server,
        tqdm(total=args.disconnects, desc="leave", disable=None) as b,
    ):
        tally, noticed, freed = asyncio.run(leave(server, args.disconnects, b.update))
    rows = [
        *_rows(tally),
        ("steps from the disconnect to its notice", _spread(noticed)),
        ("steps from there to the free slot", _spread(freed)),
    ]
    return Part("leave", rows, tally.wrong)


def _rows(tally: Tally) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in sorted(tally.counts.items())]


def _spread(values: list[int]) -> str:
    values = sorted(values)
    middle, high = values[len(values) // 2], values[int(len(values) * 0.99)]
    return f"median {middle}, 99 % {high}, most {values[-1]} ({len(values):,} requests)"


def _stopped(name: str, server: Server, rows: list[tuple[str, str]], wrong: list[str]) -> Part:
    if code := server.stop():
        wrong.append(f"the server ended with {code}")
    wrong += [f"the server said: {line.rstrip()}" for line in server.lines if "rror" in line]
    return Part(name, rows, wrong)


def main() -> int:
    """Run the parts that the command line names, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {' '.join(PARTS)}")
    parser.add_argument("-m", "--model", type=Path, help="default: the demo model as F32")
    parser.add_argument("--clients", type=int, default=256, help="of streams (%(default)s)")
    parser.add_argument("--readers", type=int, default=32, help="of slow (%(default)s)")
    parser.add_argument("--connections", type=int, default=240, help="of half-open (%(default)s)")
    parser.add_argument("--disconnects", type=int, default=1000, help="of leave (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of streams and slow (%(default)s)"
    )
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"no such part: {part}; there are {', '.join(PARTS)}")
    run = {
        "streams": run_streams, "slow": run_slow, "half-open": run_half_open, "leave": run_leave,
    }  # fmt: skip
    with demo_f32() as demo:
        done = [run[part](args.model or demo, args) for part in args.parts or PARTS]
    for part in done:
        print(f"\n{part.name}")
        for name, value in part.rows:
            print(f"  {name:40} {value}")
        for line in part.wrong[:20]:
            print(f"  WRONG: {line}")
        print(f"  {len(part.wrong)} wrong")
    return 1 if any(part.wrong for part in done) else 0


if __name__ == "__main__":
    sys.exit(main())
