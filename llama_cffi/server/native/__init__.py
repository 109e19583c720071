"""llama-server's own routes: completions, infill, embeddings, LoRA adapters and slots."""

from __future__ import annotations

from starlette.routing import BaseRoute

from . import completion, embedding, infill, lora, slots

__all__ = ["routes"]


def routes() -> list[BaseRoute]:
    """Return the routes of this package; with /v1 some of these paths are OpenAI's."""
    modules = (completion, infill, embedding, lora, slots)
    return [route for module in modules for route in module.routes()]
