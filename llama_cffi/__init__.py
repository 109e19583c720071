"""llama_cffi: local language models through any prebuilt llama.cpp, without a compiler.

Importing this package loads no library, no numpy and no template engine: public names are
resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .binding import (
        Batch,
        Context,
        Library,
        Memory,
        Model,
        SamplerChain,
        Vocab,
        get_library,
    )
    from .engine import Engine
    from .errors import (
        AbiMismatchError,
        ContextOverflowError,
        DecodeAbortedError,
        FetchError,
        GenerationError,
        GrammarError,
        KvCacheFullError,
        LibraryLoadError,
        LibraryNotFoundError,
        LlamaError,
        ModelLoadError,
        TemplateError,
        ValidationError,
    )
    from .sampling import SamplingParams

__version__ = "0.1.0"

_HOME = {
    "binding": (
        "Batch",
        "Context",
        "Library",
        "Memory",
        "Model",
        "SamplerChain",
        "Vocab",
        "get_library",
    ),
    "engine": ("Engine",),
    "sampling": ("SamplingParams",),
    "errors": (
        "AbiMismatchError",
        "ContextOverflowError",
        "DecodeAbortedError",
        "FetchError",
        "GenerationError",
        "GrammarError",
        "KvCacheFullError",
        "LibraryLoadError",
        "LibraryNotFoundError",
        "LlamaError",
        "ModelLoadError",
        "TemplateError",
        "ValidationError",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022  (sorted as the rooms are: low level, engine, errors)
    "Batch",
    "Context",
    "Library",
    "Memory",
    "Model",
    "SamplerChain",
    "Vocab",
    "get_library",
    "Engine",
    "SamplingParams",
    "AbiMismatchError",
    "ContextOverflowError",
    "DecodeAbortedError",
    "FetchError",
    "GenerationError",
    "GrammarError",
    "KvCacheFullError",
    "LibraryLoadError",
    "LibraryNotFoundError",
    "LlamaError",
    "ModelLoadError",
    "TemplateError",
    "ValidationError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
