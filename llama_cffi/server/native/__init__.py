"""llama-server's own routes: completions, infill, embeddings and slots."""

from __future__ import annotations

from starlette.routing import BaseRoute

from . import completion, embedding, infill, slots

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this package; with /v1 some of these paths are OpenAI's."""
    modules = (completion, infill, embedding, slots)
    return [route for module in modules for route in module.routes()]
