"""Fetching pictures and sounds by https, so that no address of a private network is reached.

A server that fetches what its clients name can be made to call the services beside it (server-side
request forgery). So names are resolved once, every address that is not public is refused, and the
connection goes to the very address that was checked. Redirects are checked the same way.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import FetchError, ValidationError
from .policy import MediaPolicy

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Fetched", "Resolver", "fetch", "is_public"]

# Host and port to numeric addresses.
Resolver: TypeAlias = Callable[[str, int], Sequence[str]]

_CHUNK = 2**16
_REDIRECTS = (301, 302, 303, 307, 308)
_OK = 200
_SHOWN = 100
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
        data: The bytes.
        content_type: Their media type, as the server says.
    """

    data: bytes
    content_type: str


def fetch(
    url: str,
    policy: MediaPolicy,
    kind: str,
    max_bytes: int,
    *,
    resolve: Resolver | None = None,
    context: ssl.SSLContext | None = None,
) -> Fetched:
    """Fetch a picture or a sound.

    Args:
        url: The address.
        policy: Which hosts are allowed, and the limits of time and redirects.
        kind: `image` or `audio`: the media type that the answer must have.
        max_bytes: Most bytes.
        resolve: Resolves names; None: the system's resolver.
        context: Verifies certificates; None: with the system's authorities.

    Raises:
        ValidationError: The address is not allowed.
        FetchError: The host does not answer, or with something else.
    """
    ends = time.monotonic() + policy.timeout_s
    for _ in range(policy.max_redirects + 1):
        place = _checked(url, policy)
        addresses = _public_addresses(place, resolve or _resolve, ends)
        connection = _Connection(place, addresses, context or ssl.create_default_context(), ends)
        try:
            connection.request("GET", _target(place), headers={"Accept": f"{kind}/*"})
            response = connection.getresponse()
            to = response.headers.get("Location")
            if response.status not in _REDIRECTS or not to:
                return _read(response, _name(place), kind, max_bytes)
            url = urljoin(url, to)
        except FetchError:
            raise
        except TimeoutError:
            raise FetchError(
                f"{_name(place)} is too slow: no answer within {policy.timeout_s:g} s (timeout_s "
                "of the MediaPolicy)"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise FetchError(f"cannot fetch from {_name(place)}: {e or type(e).__name__}") from None
        finally:
            connection.close()
    raise FetchError(f"more than {policy.max_redirects} redirects; give the last address")


def _checked(url: str, policy: MediaPolicy) -> SplitResult:
    """Return the parts of an address that may be fetched."""
    try:
        place = urlsplit(url)
        port, host = place.port, place.hostname
    except ValueError:
        raise ValidationError(f"{url[:_SHOWN]!r} is no valid address") from None
    if place.scheme != "https":
        raise ValidationError(
            f"only https addresses are fetched, not {place.scheme or 'those without a scheme'}"
        )
    if place.username is not None or place.password is not None:
        raise ValidationError("an address must not contain a user name or password")
    if not host or any(c.isspace() or not c.isprintable() for c in url):
        raise ValidationError(f"{url[:_SHOWN]!r} is no valid address")
    if port == 0:
        raise ValidationError("an address cannot have port 0")
    if isinstance(policy.urls, tuple) and host.lower().rstrip(".") not in map(
        str.lower, policy.urls
    ):
        raise ValidationError(
            f"{host!r} is not among the hosts that are allowed: {', '.join(policy.urls)}"
        )
    if policy.urls is False:
        raise ValidationError("addresses are not fetched here")
    return place


def _resolve(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _public_addresses(place: SplitResult, resolve: Resolver, ends: float) -> list[str]:
    """Resolve the host once; return its addresses, if all of them are public."""
    host = place.hostname or ""
    found: list[Sequence[str] | Exception] = []

    def look_up() -> None:
        try:
            found.append(resolve(host, _port(place)))
        except Exception as e:
            found.append(e)

    # The system's resolver takes no time limit.
    thread = threading.Thread(target=look_up, name="llama-cffi resolver", daemon=True)
    thread.start()
    thread.join(max(0.0, ends - time.monotonic()))
    if not found:
        raise FetchError(f"cannot find the host {host!r} in time")
    addresses = found[0]
    if isinstance(addresses, (OSError, UnicodeError)):
        raise FetchError(f"cannot find the host {host!r}: {addresses}")
    if isinstance(addresses, Exception):
        raise addresses
    if not addresses:
        raise FetchError(f"the host {host!r} has no address")
    if not all(map(is_public, addresses)):
        raise ValidationError(
            f"{host!r} is not on the public internet; such addresses are not fetched"
        )
    return list(addresses)


def is_public(address: str) -> bool:
    """Whether everybody reaches an IP address, and it leads to no other one.

    Of IPv6, that is global unicast without 6to4 and Teredo, which embed IPv4 addresses; and NAT64
    of a public IPv4 address, through which networks without IPv4 reach the rest.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        if found not in _GLOBAL_UNICAST or found.sixtofour or found.teredo or found.scope_id:
            return False
    return found.is_global and not (found.is_multicast or found.is_reserved)


class _Connection(http.client.HTTPSConnection):
    """Connects to one of given addresses, with the name of the host for TLS."""

    def __init__(
        self, place: SplitResult, addresses: Sequence[str], context: ssl.SSLContext, ends: float
    ) -> None:
        super().__init__(place.hostname or "", _port(place), context=context)
        self._addresses, self._tls, self._ends = addresses, context, ends

    def connect(self) -> None:
        """Connect to the first of the checked addresses that answers."""
        sock = self._connected()
        sock.settimeout(_left(self._ends))
        self.sock = self._tls.wrap_socket(sock, server_hostname=self.host)
        self.sock.settimeout(_left(self._ends))

    def _connected(self) -> socket.socket:
        *others, last = self._addresses
        for i, address in enumerate(others):
            left = _left(self._ends) / (len(others) + 1 - i)
            with suppress(OSError):
                return socket.create_connection((address, self.port), timeout=left)
        return socket.create_connection((last, self.port), timeout=_left(self._ends))

    def getresponse(self) -> http.client.HTTPResponse:
        """Return the response; reading it ends with the time, however slowly bytes arrive."""
        raw = _TimedReader(self.sock, self._ends)
        response = http.client.HTTPResponse(raw, method="GET")  # type: ignore[arg-type]
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        return response


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the time is over."""

    def __init__(self, sock: socket.socket, ends: float) -> None:
        self._sock, self._ends = sock, ends

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the file that an HTTP response reads."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        """Read what is there into a buffer."""
        self._sock.settimeout(_left(self._ends))
        return self._sock.recv_into(buffer)


def _left(ends: float) -> float:
    """Return the seconds that are left."""
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read(response: http.client.HTTPResponse, name: str, kind: str, max_bytes: int) -> Fetched:
    if response.status != _OK:
        raise FetchError(f"{name} answered with {response.status}, not with {kind} data")
    content_type = response.headers.get_content_type().lower()
    if not content_type.startswith(f"{kind}/"):
        raise FetchError(f"{name} sent {content_type[:_SHOWN]}, not {kind} data")
    length = response.length  # None: unknown
    if length is not None and length > max_bytes:
        raise FetchError(f"{name} has {length:,} bytes; at most {max_bytes:,} are fetched")
    data = bytearray()
    while chunk := response.read1(_CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise FetchError(f"{name} has more than {max_bytes:,} bytes, which are not fetched")
    if length is not None and len(data) < length:
        raise FetchError(f"{name} sent {len(data):,} of {length:,} bytes")
    return Fetched(bytes(data), content_type)


def _port(place: SplitResult) -> int:
    return place.port or 443


def _target(place: SplitResult) -> str:
    path = place.path or "/"
    target = f"{path}?{place.query}" if place.query else path
    return "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in target)


def _name(place: SplitResult) -> str:
    return place.hostname or "the host"
