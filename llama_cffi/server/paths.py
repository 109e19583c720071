"""Paths with and without the prefix /v1, as llama-server has them."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from .call import Endpoint

__all__ = ["bare_post", "delete", "get", "post"]


def get(path: str, endpoint: Endpoint) -> list[BaseRoute]:
    """Return the routes of GET requests for `/v1` + *path* and *path*."""
    return [Route(prefix + path, endpoint, methods=["GET"]) for prefix in ("/v1", "")]


def post(path: str, endpoint: Endpoint, *, bare: bool = True) -> list[BaseRoute]:
    """Return the routes of POST requests for `/v1` + *path* and, if *bare*, *path*."""
    prefixes = ("/v1", "") if bare else ("/v1",)
    return [Route(prefix + path, endpoint, methods=["POST"]) for prefix in prefixes]


def delete(path: str, endpoint: Endpoint) -> list[BaseRoute]:
    """Return the routes of DELETE requests for `/v1` + *path* and *path*."""
    return [Route(prefix + path, endpoint, methods=["DELETE"]) for prefix in ("/v1", "")]


def bare_post(path: str, endpoint: Endpoint) -> BaseRoute:
    """Return the route of POST requests for *path*, which is another one than with `/v1`."""
    return Route(path, endpoint, methods=["POST"])
