"""The settings of the server."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from ..errors import ValidationError
from ..media import MediaPolicy
from ..validation import as_list, as_path, check_bool, check_float, check_int, check_str
from .api_keys import ApiKey, as_keys

__all__ = ["ServerOptions", "Settings"]

_MAX_S = 1e6
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


class ServerOptions(TypedDict, total=False):
    """The fields of `Settings` as arguments."""

    aliases: Sequence[str]
    api_keys: Sequence[str | ApiKey]
    cors_origins: Sequence[str]
    max_waiting: int
    max_per_client: int | None
    max_request_s: float | None
    max_body_bytes: int
    max_json_depth: int
    body_timeout_s: float
    send_timeout_s: float
    ping_s: float
    metrics: bool
    page: bool
    tags: Sequence[str]
    models_dir: str | os.PathLike[str] | None
    models_preset: str | os.PathLike[str] | None
    models_max: int
    models_memory: int
    models_autoload: bool
    preload: bool | None
    sleep_idle_s: float | None
    log_requests: bool
    api_prefix: str
    trusted_proxies: Sequence[str]
    ssl_key_file: str | os.PathLike[str] | None
    ssl_cert_file: str | os.PathLike[str] | None
    allow_delete: bool
    slots: bool
    slot_save_path: str | os.PathLike[str] | None
    media_urls: bool | Sequence[str]
    media_path: str | os.PathLike[str] | None


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Attributes:
        aliases: Names of the first model; the first of them is in the responses. None given: its
            file's name.
        api_keys: Keys of which clients must send one; empty: everybody is served. An `ApiKey` also
            has a name and a priority. Keys share the engine fairly; without keys, the addresses of
            clients do.
        cors_origins: Web pages of these origins may call the server; `*`: all, `localhost`: those
            of this machine, on any port.
        max_waiting: Most requests of a model that wait for others; further ones get status 429.
        max_per_client: Most answers of a client, which is a key's name, or without keys an address,
            that run or wait at the same time; further ones get status 429. None: no limit.
        max_request_s: Seconds after which generating ends with status 504; None: no limit.
        max_body_bytes: Size limit of a request's body.
        max_json_depth: Most levels of nesting in a request's JSON.
        body_timeout_s: Seconds in which a request's headers, and its body, must arrive.
        send_timeout_s: Seconds after which a client that reads nothing is disconnected.
        ping_s: Seconds without an event after which a stream gets a comment, which keeps proxies
            and clients from giving up.
        metrics: Whether `/metrics` is there, for Prometheus.
        page: Whether the page is there, at `/`.
        tags: Words about the first model, for clients.
        models_dir: A folder of GGUF files, each of which is a model.
        models_preset: A file of presets, INI or TOML, that names models and their settings.
        models_max: Most models in memory; another one makes the one go that has not been used for
            longest. 0: no limit. Those that the program has opened do not count.
        models_memory: Most bytes that the models take, by a lower bound: tensors and KV caches; 0:
            the memory of this machine.
        models_autoload: Whether a request loads its model; if not, `/models/load` does.
        preload: Whether all models are loaded at the start; None: only a single one.
        sleep_idle_s: Seconds without a request after which a model is freed until the next one;
            None: never.
        log_requests: Whether the end of each request is logged, as a line of JSON at level INFO of
            the logger `llama_cffi.server.requests`.
        api_prefix: A prefix of all paths, such as `/llm`.
        trusted_proxies: Addresses of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` count;
            `*`: all.
        ssl_key_file: The private key, PEM; with *ssl_cert_file* the server speaks HTTPS.
        ssl_cert_file: The certificate and those that it is signed by, PEM.
        allow_delete: Whether clients may delete models of *models_dir*, files and all.
        slots: Whether `/slots` is there.
        slot_save_path: A folder in which clients save the prompts of slots; None: they cannot.
        media_urls: Which https addresses of pictures and sounds the server fetches: those of these
            hosts; True: of every public host. Clients can send the data itself in any case.
        media_path: A folder from which clients name pictures and sounds, as paths or file: URLs;
            None: they cannot.

    Raises:
        ValidationError: A value is out of range.
    """

    aliases: Sequence[str] = ()
    api_keys: Sequence[str | ApiKey] = field(default=(), repr=False)
    cors_origins: Sequence[str] = ()
    max_waiting: int = 256
    max_per_client: int | None = None
    max_request_s: float | None = None
    max_body_bytes: int = 64 * 2**20
    max_json_depth: int = 100
    body_timeout_s: float = 60.0
    send_timeout_s: float = 60.0
    ping_s: float = 15.0
    metrics: bool = False
    page: bool = True
    tags: Sequence[str] = ()
    models_dir: str | os.PathLike[str] | None = None
    models_preset: str | os.PathLike[str] | None = None
    models_max: int = 4
    models_memory: int = 0
    models_autoload: bool = True
    preload: bool | None = None
    sleep_idle_s: float | None = None
    log_requests: bool = False
    api_prefix: str = ""
    trusted_proxies: Sequence[str] = ()
    ssl_key_file: str | os.PathLike[str] | None = None
    ssl_cert_file: str | os.PathLike[str] | None = None
    allow_delete: bool = False
    slots: bool = False
    slot_save_path: str | os.PathLike[str] | None = None
    media_urls: bool | Sequence[str] = False
    media_path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "api_keys", as_keys(as_list("api_keys", self.api_keys)))
        for name in ("aliases", "cors_origins", "tags", "trusted_proxies"):
            values = as_list(name, getattr(self, name))
            for value in values:
                check_str(name, value)
            object.__setattr__(self, name, tuple(v for v in values if v))
        for name in ("allow_delete", "log_requests", "metrics", "models_autoload", "page", "slots"):
            check_bool(name, getattr(self, name))
        if self.preload is not None:
            check_bool("preload", self.preload)
        for name in ("models_dir", "models_preset", "ssl_key_file", "ssl_cert_file"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_path(name, path))
        for name in ("slot_save_path", "media_path"):
            if (path := getattr(self, name)) is not None:
                folder = as_path(name, path)
                if not folder.is_dir():
                    raise ValidationError(f"{name}={str(folder)!r} is not a folder; make it")
                object.__setattr__(self, name, folder)
        if not isinstance(self.media_urls, bool):
            hosts = [
                check_str("media_urls", host) for host in as_list("media_urls", self.media_urls)
            ]
            object.__setattr__(self, "media_urls", tuple(filter(None, hosts)) or False)
        check_int("models_max", self.models_max, 0)
        check_int("models_memory", self.models_memory, 0, 2**62)
        if self.sleep_idle_s is not None:
            check_float("sleep_idle_s", self.sleep_idle_s, 0, _MAX_S, above=True)
        if self.max_per_client is not None:
            check_int("max_per_client", self.max_per_client, 1)
        if self.max_request_s is not None:
            check_float("max_request_s", self.max_request_s, 0, _MAX_S, above=True)
        prefix = check_str("api_prefix", self.api_prefix)
        if prefix and not _PREFIX.fullmatch(prefix):
            raise ValidationError(f"api_prefix={prefix!r} must be a path such as '/llm'")
        if (self.ssl_key_file is None) != (self.ssl_cert_file is None):
            raise ValidationError("ssl_key_file and ssl_cert_file: give both of them")
        check_int("max_waiting", self.max_waiting, 0, 1000)
        check_int("max_body_bytes", self.max_body_bytes, 1)
        check_int("max_json_depth", self.max_json_depth, 1, 200)
        for name in ("body_timeout_s", "send_timeout_s", "ping_s"):
            check_float(name, getattr(self, name), 0, _MAX_S, above=True)

    @property
    def media_policy(self) -> MediaPolicy:
        """What pictures and sounds of requests may be loaded from where."""
        urls = self.media_urls
        folder = self.media_path
        return MediaPolicy(
            urls=urls if isinstance(urls, bool) else tuple(urls),
            files=False if folder is None else Path(folder),
        )
