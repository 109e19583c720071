"""Fetching pictures and sounds by https, so that no address of a private network is reached.

A server that fetches what its clients name can be made to call the services beside it (server-side
request forgery). So names are resolved once, every address that is not public is refused, and the
connection goes to the very address that was checked. Redirects are checked the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import FetchError, ValidationError
from .policy import MediaPolicy

__all__ = ["Fetched", "Resolver", "fetch"]

# Host and port to numeric addresses.
Resolver: TypeAlias = Callable[[str, int], Sequence[str]]

_CHUNK = 2**16
_REDIRECTS = (301, 302, 303, 307, 308)
_OK = 200
_SHOWN = 100
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_MAX_HEADERS_S = 5.0


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
        address = _public_address(place, resolve or _resolve)
        connection = _Connection(place, address, context or ssl.create_default_context(), ends)
        try:
            connection.request("GET", _target(place), headers={"Accept": f"{kind}/*"})
            response = connection.getresponse()
            if response.status in _REDIRECTS and (to := response.headers.get("Location")):
                url = urljoin(url, to)
                continue
            return _read(response, _name(place), kind, max_bytes, ends)
        except (OSError, http.client.HTTPException) as e:
            if isinstance(e, FetchError):
                raise
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


def _public_address(place: SplitResult, resolve: Resolver) -> str:
    """Resolve the host once; return an address of it, if all of them are public."""
    host = place.hostname or ""
    try:
        addresses = list(resolve(host, _port(place)))
    except (OSError, UnicodeError) as e:
        raise FetchError(f"cannot find the host {host!r}: {e}") from None
    if not addresses:
        raise FetchError(f"the host {host!r} has no address")
    for address in addresses:
        if not is_public(address):
            raise ValidationError(
                f"{host!r} is not on the public internet; such addresses are not fetched"
            )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is reachable by everybody; also of what it embeds."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        embedded = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if any(found in network for network in _NAT64):
            embedded = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if embedded is not None:
            return found.is_global and is_public(str(embedded)) if not found.ipv4_mapped else False
        if int(found) < 2**32:  # ::a.b.c.d, long deprecated
            return False
    return found.is_global and not (
        found.is_multicast or found.is_reserved or found.is_unspecified or found.is_loopback
    )


class _Connection(http.client.HTTPSConnection):
    """Connects to a given address, with the name of the host for TLS."""

    def __init__(
        self, place: SplitResult, address: str, context: ssl.SSLContext, ends: float
    ) -> None:
        super().__init__(place.hostname or "", _port(place), context=context)
        self._address, self._tls, self._ends = address, context, ends

    def connect(self) -> None:
        """Connect to the address that was checked."""
        left = max(0.1, self._ends - time.monotonic())
        sock = socket.create_connection((self._address, self.port), timeout=left)
        sock.settimeout(min(left, _MAX_HEADERS_S))
        self.sock = self._tls.wrap_socket(sock, server_hostname=self.host)


def _read(
    response: http.client.HTTPResponse, name: str, kind: str, max_bytes: int, ends: float
) -> Fetched:
    if response.status != _OK:
        raise FetchError(f"{name} answered with {response.status}, not with {kind} data")
    content_type = response.headers.get_content_type().lower()
    if not content_type.startswith(f"{kind}/"):
        raise FetchError(f"{name} sent {content_type[:_SHOWN]}, not {kind} data")
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise FetchError(f"{name} has {int(length):,} bytes; at most {max_bytes:,} are fetched")
    data = bytearray()
    while chunk := response.read1(_CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise FetchError(f"{name} has more than {max_bytes:,} bytes, which are not fetched")
        if time.monotonic() > ends:
            raise FetchError(f"{name} is too slow: {len(data):,} bytes until the time was over")
    return Fetched(bytes(data), content_type)


def _port(place: SplitResult) -> int:
    return place.port or 443


def _target(place: SplitResult) -> str:
    path = place.path or "/"
    target = f"{path}?{place.query}" if place.query else path
    return "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in target)


def _name(place: SplitResult) -> str:
    return place.hostname or "the host"
