"""ModelEntry: a model of the server, and how it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..api.config import LlamaConfig
from ..api.llama import Llama
from ..api.pool import LlamaPool

__all__ = ["ModelEntry", "ModelInput"]

ModelInput: TypeAlias = "str | os.PathLike[str] | Llama | LlamaPool"


@dataclass(frozen=True)
class ModelEntry:
    """A model, and how it is loaded.

    Attributes:
        source: A GGUF file, `hf:owner/repo:file`, or an open `Llama` or `LlamaPool`.
        config: The settings of one that is loaded here.
        aliases: Its names; the first one is in responses.
        tags: Words for clients.
        preload: Whether it is loaded when the server starts.
        folder: The folder of models that it was found in; None: somebody named it.
    """

    source: ModelInput
    config: LlamaConfig
    aliases: tuple[str, ...]
    tags: tuple[str, ...] = ()
    preload: bool = False
    folder: Path | None = None

    @property
    def path(self) -> str:
        """The file, or its name on the hub."""
        llm = self.source.llm if isinstance(self.source, LlamaPool) else self.source
        return llm.model_path if isinstance(llm, Llama) else os.fspath(llm)

    @property
    def is_open(self) -> bool:
        """Whether it was loaded elsewhere."""
        return isinstance(self.source, (Llama, LlamaPool))
