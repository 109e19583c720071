"""The exception tree. Every message says what was wrong, with numbers, and what to do next.

LlamaError
├── LibraryNotFoundError (FileNotFoundError)   no libllama where one was asked for
├── LibraryLoadError (OSError)                 a libllama is there but cannot be loaded here
├── FetchError (OSError)                       a download, its verification or the store failed
├── AbiMismatchError (RuntimeError)            no declarations are proven to fit this build
├── ModelLoadError (RuntimeError)              a GGUF cannot be opened, or not by this build
├── ValidationError (ValueError)               an argument that C must never see
│   ├── ContextOverflowError                   more tokens than the context holds
│   ├── GrammarError
│   └── TemplateError
├── QueueFullError (RuntimeError)              too many requests wait already
└── GenerationError (RuntimeError)             decoding failed after it began
    ├── KvCacheFullError                       no free slot, also for the smallest batch
    └── DecodeAbortedError                     stopped from outside (cancel, deadline, Ctrl-C)
"""

from __future__ import annotations

__all__ = [
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
    "QueueFullError",
    "TemplateError",
    "ValidationError",
]


class LlamaError(Exception):
    """Base of everything this package raises on purpose."""


class LibraryNotFoundError(LlamaError, FileNotFoundError):
    """No libllama lies where one was asked for."""


class LibraryLoadError(LlamaError, OSError):
    """A libllama was found but cannot be loaded on this machine or into this process."""


class FetchError(LlamaError, OSError):
    """A download, its verification, or writing it into the store failed."""


class AbiMismatchError(LlamaError, RuntimeError):
    """No declarations are proven to fit this build of llama.cpp, so nothing was called."""


class ModelLoadError(LlamaError, RuntimeError):
    """The model file cannot be opened, or not by the loaded build."""


class ValidationError(LlamaError, ValueError):
    """An argument is out of range, closed, or of a kind that C must never see."""


class ContextOverflowError(ValidationError):
    """The request holds more tokens than the context has room for."""


class GrammarError(ValidationError):
    """A grammar does not parse, or is one that the native parser cannot survive."""


class TemplateError(ValidationError):
    """A chat template does not compile or refuses these messages."""


class QueueFullError(LlamaError, RuntimeError):
    """Too many requests wait already; try again later."""


class GenerationError(LlamaError, RuntimeError):
    """Decoding failed after it began."""


class KvCacheFullError(GenerationError):
    """The KV cache has no free slot, not even for the smallest batch."""


class DecodeAbortedError(GenerationError):
    """Decoding was stopped from outside: cancel, deadline or Ctrl-C.

    Attributes:
        reason: `cancel`, `deadline`, or None where only C knows.
        text: What was generated until then.
    """

    def __init__(self, message: str, *, reason: str | None = None, text: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.text = text
