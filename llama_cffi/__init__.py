"""llama_cffi: local language models through any prebuilt llama.cpp, without a compiler.

Importing this package loads no library, no numpy and no template engine: public names are
resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.config import LlamaConfig
    from .api.llama import Llama, print_system_info, shutdown
    from .api.pool import LlamaPool
    from .api.unified import UnifiedLLM
    from .binding import (
        Batch,
        Candidates,
        Context,
        CustomSampler,
        Grammar,
        Library,
        LoraAdapter,
        Memory,
        Model,
        SamplerChain,
        Vocab,
        get_library,
        load_control_vector,
    )
    from .binding.loading.logs import disable_logging, reset_logging, set_log_level
    from .binding.model.quantize import quantize
    from .embeddings.embedder import Embedder, RerankResult, similarity
    from .embeddings.scorer import Score, Scorer
    from .engine.engine import Engine
    from .errors import (
        AbiMismatchError,
        CancelledError,
        ClosedError,
        ContextOverflowError,
        DeadlineExceededError,
        DecodeAbortedError,
        EngineDeadError,
        FetchError,
        GenerationError,
        GrammarError,
        KvCacheFullError,
        LibraryLoadError,
        LibraryNotFoundError,
        LlamaError,
        ModelLoadError,
        QueueFullError,
        TemplateError,
        UnknownOptionError,
        ValidationError,
    )
    from .generation.sampling_params import SamplingParams
    from .generation.stats import GenerationStats
    from .gguf.reader import GgufFile, read_gguf
    from .grammars import Constraint, LlamaGrammar
    from .scheduler import (
        DraftModel,
        EngineStats,
        Handle,
        InferenceEngine,
        KVCache,
        MtpHead,
        PromptLookup,
        Request,
        RequestState,
        Scheduler,
    )

__version__ = "0.1.0"

_HOME = {
    "binding": (
        "Batch",
        "Candidates",
        "Context",
        "CustomSampler",
        "Grammar",
        "Library",
        "LoraAdapter",
        "Memory",
        "Model",
        "SamplerChain",
        "Vocab",
        "get_library",
        "load_control_vector",
    ),
    "gguf.reader": ("GgufFile", "read_gguf"),
    "binding.loading.logs": ("disable_logging", "reset_logging", "set_log_level"),
    "binding.model.quantize": ("quantize",),
    "embeddings.embedder": ("Embedder", "RerankResult", "similarity"),
    "api.config": ("LlamaConfig",),
    "engine": ("Engine",),
    "api.llama": ("Llama", "print_system_info", "shutdown"),
    "api.pool": ("LlamaPool",),
    "generation.sampling_params": ("SamplingParams",),
    "scheduler": (
        "DraftModel",
        "EngineStats",
        "Handle",
        "InferenceEngine",
        "KVCache",
        "MtpHead",
        "PromptLookup",
        "Request",
        "RequestState",
        "Scheduler",
    ),
    "embeddings.scorer": ("Score", "Scorer"),
    "generation.stats": ("GenerationStats",),
    "grammars": ("Constraint", "LlamaGrammar"),
    "api.unified": ("UnifiedLLM",),
    "errors": (
        "AbiMismatchError",
        "CancelledError",
        "ClosedError",
        "ContextOverflowError",
        "DeadlineExceededError",
        "DecodeAbortedError",
        "EngineDeadError",
        "FetchError",
        "GenerationError",
        "GrammarError",
        "KvCacheFullError",
        "LibraryLoadError",
        "LibraryNotFoundError",
        "LlamaError",
        "ModelLoadError",
        "QueueFullError",
        "TemplateError",
        "UnknownOptionError",
        "ValidationError",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [  # noqa: RUF022  (sorted as the rooms are: low level, engine, embeddings, scores, errors)
    "Batch",
    "Candidates",
    "Context",
    "CustomSampler",
    "GgufFile",
    "Grammar",
    "Library",
    "LoraAdapter",
    "Memory",
    "Model",
    "SamplerChain",
    "Vocab",
    "get_library",
    "load_control_vector",
    "quantize",
    "read_gguf",
    "Llama",
    "LlamaConfig",
    "LlamaPool",
    "UnifiedLLM",
    "disable_logging",
    "print_system_info",
    "reset_logging",
    "set_log_level",
    "shutdown",
    "Constraint",
    "Engine",
    "GenerationStats",
    "LlamaGrammar",
    "SamplingParams",
    "Embedder",
    "RerankResult",
    "similarity",
    "DraftModel",
    "EngineStats",
    "Handle",
    "InferenceEngine",
    "KVCache",
    "MtpHead",
    "PromptLookup",
    "Request",
    "RequestState",
    "Scheduler",
    "Score",
    "Scorer",
    "AbiMismatchError",
    "CancelledError",
    "ClosedError",
    "ContextOverflowError",
    "DeadlineExceededError",
    "DecodeAbortedError",
    "EngineDeadError",
    "FetchError",
    "GenerationError",
    "GrammarError",
    "KvCacheFullError",
    "LibraryLoadError",
    "LibraryNotFoundError",
    "LlamaError",
    "ModelLoadError",
    "QueueFullError",
    "TemplateError",
    "UnknownOptionError",
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
