"""llama_cffi: local language models through any prebuilt llama.cpp, without a compiler.

Importing this package loads no library, no numpy and no template engine: public names are
resolved on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .api.chat_completions import (
        ChatCompletionOptions,
    )
    from .api.config import (
        LlamaConfig,
        LlamaOptions,
    )
    from .api.llama import (
        CompletionOptions,
        Llama,
        print_system_info,
        shutdown,
    )
    from .api.map import (
        MapInterruptedError,
        MapResult,
    )
    from .api.pool import (
        LlamaPool,
    )
    from .api.response_cache import (
        ResponseCache,
        ResponseCacheInfo,
    )
    from .api.shortcuts import (
        ask,
        complete,
    )
    from .api.transcription import (
        Transcription,
        TranscriptionSegment,
    )
    from .api.types import (
        ChatCompletionMessageToolCall,
        CompletionUsage,
        CreateChatCompletionResponse,
        CreateChatCompletionStreamResponse,
        CreateCompletionResponse,
        CreateCompletionStreamResponse,
        CreateEmbeddingResponse,
    )
    from .api.unified import (
        UnifiedLLM,
    )
    from .binding import (
        Batch,
        Candidates,
        Context,
        CustomSampler,
        Device,
        Grammar,
        Library,
        LoraAdapter,
        Memory,
        Model,
        Projector,
        SamplerChain,
        Vocab,
        get_library,
        load_control_vector,
    )
    from .binding.context.params import (
        estimate_context_bytes,
    )
    from .binding.loading.logs import (
        disable_logging,
        reset_logging,
        set_log_level,
    )
    from .binding.model.quantize import (
        quantize,
    )
    from .chat.families import (
        Family,
    )
    from .chat.template import (
        ChatTemplate,
    )
    from .decisions import (
        Answer,
        ChoiceAnswer,
        ChoiceQuestion,
        Decision,
        DecisionOptions,
        Option,
        PredicateAnswer,
        PredicateQuestion,
        Question,
        ScoreAnswer,
        ScoreQuestion,
    )
    from .embeddings.embedder import (
        Embedder,
        RerankResult,
        similarity,
    )
    from .embeddings.scorer import (
        Score,
        Scorer,
    )
    from .engine import (
        Engine,
        EngineOptions,
    )
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
        OutOfMemoryError,
        QueueFullError,
        TemplateError,
        UnknownOptionError,
        ValidationError,
    )
    from .generation.chat_renderer import (
        ChatOptions,
        ChatRenderer,
        RenderedChat,
    )
    from .generation.logprobs import (
        Logprob,
    )
    from .generation.options import (
        GenerationOptions,
    )
    from .generation.prompt_progress import (
        PromptProgress,
    )
    from .generation.sampling_params import (
        SamplingOptions,
        SamplingParams,
    )
    from .generation.sequence import (
        Step,
    )
    from .generation.stats import (
        GenerationStats,
    )
    from .gguf.reader import (
        GgufFile,
        read_gguf,
    )
    from .gguf.writer import (
        copy_gguf,
    )
    from .grammars import (
        Constraint,
        LlamaGrammar,
    )
    from .media import (
        Audio,
        Image,
        MediaPolicy,
        load_audio,
        load_image,
    )
    from .memory_plan import (
        DevicePlan,
        MemoryPlan,
        PlanOptions,
        plan,
    )
    from .notebook.extension import (
        load_ipython_extension,
        unload_ipython_extension,
    )
    from .scheduler import (
        CacheStats,
        Drafter,
        DraftModel,
        EngineStats,
        Handle,
        InferenceEngine,
        KVCache,
        MtpHead,
        NgramCache,
        PromptLookup,
        Request,
        RequestHandle,
        RequestState,
        RequestStep,
        Scheduler,
        StepStats,
        SubmitOptions,
    )
    from .tuning import (
        TunedSettings,
        TuneResult,
        TuneStep,
        tune,
    )

# Module -> the public names that come from it.
_HOME = {
    "api.chat_completions": ("ChatCompletionOptions",),
    "api.config": (
        "LlamaConfig",
        "LlamaOptions",
    ),
    "api.llama": (
        "CompletionOptions",
        "Llama",
        "print_system_info",
        "shutdown",
    ),
    "api.map": (
        "MapInterruptedError",
        "MapResult",
    ),
    "api.pool": ("LlamaPool",),
    "api.response_cache": (
        "ResponseCache",
        "ResponseCacheInfo",
    ),
    "api.shortcuts": (
        "ask",
        "complete",
    ),
    "api.transcription": (
        "Transcription",
        "TranscriptionSegment",
    ),
    "api.types": (
        "ChatCompletionMessageToolCall",
        "CompletionUsage",
        "CreateChatCompletionResponse",
        "CreateChatCompletionStreamResponse",
        "CreateCompletionResponse",
        "CreateCompletionStreamResponse",
        "CreateEmbeddingResponse",
    ),
    "api.unified": ("UnifiedLLM",),
    "binding": (
        "Batch",
        "Candidates",
        "Context",
        "CustomSampler",
        "Device",
        "Grammar",
        "Library",
        "LoraAdapter",
        "Memory",
        "Model",
        "Projector",
        "SamplerChain",
        "Vocab",
        "get_library",
        "load_control_vector",
    ),
    "binding.loading.logs": (
        "disable_logging",
        "reset_logging",
        "set_log_level",
    ),
    "binding.context.params": ("estimate_context_bytes",),
    "binding.model.quantize": ("quantize",),
    "chat.families": ("Family",),
    "chat.template": ("ChatTemplate",),
    "decisions": (
        "Answer",
        "ChoiceAnswer",
        "ChoiceQuestion",
        "Decision",
        "DecisionOptions",
        "Option",
        "PredicateAnswer",
        "PredicateQuestion",
        "Question",
        "ScoreAnswer",
        "ScoreQuestion",
    ),
    "embeddings.embedder": (
        "Embedder",
        "RerankResult",
        "similarity",
    ),
    "embeddings.scorer": (
        "Score",
        "Scorer",
    ),
    "engine": (
        "Engine",
        "EngineOptions",
    ),
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
        "OutOfMemoryError",
        "QueueFullError",
        "TemplateError",
        "UnknownOptionError",
        "ValidationError",
    ),
    "generation.chat_renderer": (
        "ChatOptions",
        "ChatRenderer",
        "RenderedChat",
    ),
    "generation.logprobs": ("Logprob",),
    "generation.options": ("GenerationOptions",),
    "generation.sampling_params": (
        "SamplingOptions",
        "SamplingParams",
    ),
    "generation.prompt_progress": ("PromptProgress",),
    "generation.sequence": ("Step",),
    "generation.stats": ("GenerationStats",),
    "gguf.reader": (
        "GgufFile",
        "read_gguf",
    ),
    "gguf.writer": ("copy_gguf",),
    "grammars": (
        "Constraint",
        "LlamaGrammar",
    ),
    "media": (
        "Audio",
        "Image",
        "MediaPolicy",
        "load_audio",
        "load_image",
    ),
    "memory_plan": (
        "DevicePlan",
        "MemoryPlan",
        "PlanOptions",
        "plan",
    ),
    "notebook.extension": (
        "load_ipython_extension",
        "unload_ipython_extension",
    ),
    "scheduler": (
        "CacheStats",
        "DraftModel",
        "Drafter",
        "EngineStats",
        "Handle",
        "InferenceEngine",
        "KVCache",
        "MtpHead",
        "NgramCache",
        "PromptLookup",
        "Request",
        "RequestHandle",
        "RequestState",
        "RequestStep",
        "Scheduler",
        "StepStats",
        "SubmitOptions",
    ),
    "tuning": (
        "TuneResult",
        "TuneStep",
        "TunedSettings",
        "tune",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AbiMismatchError",
    "Answer",
    "Audio",
    "Batch",
    "CacheStats",
    "CancelledError",
    "Candidates",
    "ChatCompletionMessageToolCall",
    "ChatCompletionOptions",
    "ChatOptions",
    "ChatRenderer",
    "ChatTemplate",
    "ChoiceAnswer",
    "ChoiceQuestion",
    "ClosedError",
    "CompletionOptions",
    "CompletionUsage",
    "Constraint",
    "Context",
    "ContextOverflowError",
    "CreateChatCompletionResponse",
    "CreateChatCompletionStreamResponse",
    "CreateCompletionResponse",
    "CreateCompletionStreamResponse",
    "CreateEmbeddingResponse",
    "CustomSampler",
    "DeadlineExceededError",
    "Decision",
    "DecisionOptions",
    "DecodeAbortedError",
    "Device",
    "DevicePlan",
    "DraftModel",
    "Drafter",
    "Embedder",
    "Engine",
    "EngineDeadError",
    "EngineOptions",
    "EngineStats",
    "Family",
    "FetchError",
    "GenerationError",
    "GenerationOptions",
    "GenerationStats",
    "GgufFile",
    "Grammar",
    "GrammarError",
    "Handle",
    "Image",
    "InferenceEngine",
    "KVCache",
    "KvCacheFullError",
    "Library",
    "LibraryLoadError",
    "LibraryNotFoundError",
    "Llama",
    "LlamaConfig",
    "LlamaError",
    "LlamaGrammar",
    "LlamaOptions",
    "LlamaPool",
    "Logprob",
    "LoraAdapter",
    "MapInterruptedError",
    "MapResult",
    "MediaPolicy",
    "Memory",
    "MemoryPlan",
    "Model",
    "ModelLoadError",
    "MtpHead",
    "NgramCache",
    "Option",
    "OutOfMemoryError",
    "PlanOptions",
    "PredicateAnswer",
    "PredicateQuestion",
    "Projector",
    "PromptLookup",
    "PromptProgress",
    "Question",
    "QueueFullError",
    "RenderedChat",
    "Request",
    "RequestHandle",
    "RequestState",
    "RequestStep",
    "RerankResult",
    "ResponseCache",
    "ResponseCacheInfo",
    "SamplerChain",
    "SamplingOptions",
    "SamplingParams",
    "Scheduler",
    "Score",
    "ScoreAnswer",
    "ScoreQuestion",
    "Scorer",
    "Step",
    "StepStats",
    "SubmitOptions",
    "TemplateError",
    "Transcription",
    "TranscriptionSegment",
    "TuneResult",
    "TuneStep",
    "TunedSettings",
    "UnifiedLLM",
    "UnknownOptionError",
    "ValidationError",
    "Vocab",
    "__version__",
    "ask",
    "complete",
    "copy_gguf",
    "disable_logging",
    "estimate_context_bytes",
    "get_library",
    "load_audio",
    "load_control_vector",
    "load_image",
    "load_ipython_extension",
    "plan",
    "print_system_info",
    "quantize",
    "read_gguf",
    "reset_logging",
    "set_log_level",
    "shutdown",
    "similarity",
    "tune",
    "unload_ipython_extension",
]


# In a checkout, `cdefs` and `libs_fetch` lie beside this package, not in it (pyproject.toml).
_parent = os.path.dirname(__path__[0])
if os.path.isfile(os.path.join(_parent, "cdefs", "__init__.py")):
    __path__.append(_parent)


def __getattr__(name: str) -> object:
    module = _MODULE_OF.get(name)
    if module is None:
        import difflib

        near = difflib.get_close_matches(name, __all__, 1)
        hint = f"; did you mean {near[0]!r}?" if near and not name.startswith("_") else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
