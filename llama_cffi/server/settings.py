"""The settings of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from ..validation import as_list, check_bool, check_float, check_int, check_str

__all__ = ["ServerOptions", "Settings"]

_MAX_S = 1e6


class ServerOptions(TypedDict, total=False):
    """The fields of `Settings` as arguments."""

    aliases: Sequence[str]
    api_keys: Sequence[str]
    cors_origins: Sequence[str]
    max_waiting: int
    max_body_bytes: int
    max_json_depth: int
    body_timeout_s: float
    send_timeout_s: float
    ping_s: float
    metrics: bool
    slots: bool


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Attributes:
        aliases: Names of the first model; the first of them is in the responses. None given: its
            file's name.
        api_keys: Keys of which clients must send one; empty: everybody is served.
        cors_origins: Web pages of these origins may call the server; `*`: all, `localhost`: those
            of this machine, on any port.
        max_waiting: Most requests of a model that wait for others; further ones get status 429.
        max_body_bytes: Size limit of a request's body.
        max_json_depth: Most levels of nesting in a request's JSON.
        body_timeout_s: Seconds in which a request's headers, and its body, must arrive.
        send_timeout_s: Seconds after which a client that reads nothing is disconnected.
        ping_s: Seconds without an event after which a stream gets a comment, which keeps proxies
            and clients from giving up.
        metrics: Whether `/metrics` is there, for Prometheus.
        slots: Whether `/slots` is there.

    Raises:
        ValidationError: A value is out of range.
    """

    aliases: Sequence[str] = ()
    api_keys: Sequence[str] = ()
    cors_origins: Sequence[str] = ()
    max_waiting: int = 256
    max_body_bytes: int = 64 * 2**20
    max_json_depth: int = 100
    body_timeout_s: float = 60.0
    send_timeout_s: float = 60.0
    ping_s: float = 15.0
    metrics: bool = False
    slots: bool = False

    def __post_init__(self) -> None:
        for name in ("aliases", "api_keys", "cors_origins"):
            values = as_list(name, getattr(self, name))
            for value in values:
                check_str(name, value)
            object.__setattr__(self, name, tuple(v for v in values if v))
        check_bool("metrics", self.metrics)
        check_bool("slots", self.slots)
        check_int("max_waiting", self.max_waiting, 0, 1000)
        check_int("max_body_bytes", self.max_body_bytes, 1)
        check_int("max_json_depth", self.max_json_depth, 1, 200)
        for name in ("body_timeout_s", "send_timeout_s", "ping_s"):
            check_float(name, getattr(self, name), 0, _MAX_S, above=True)
