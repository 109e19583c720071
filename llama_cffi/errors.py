"""The exception tree. Every message says what was wrong, with numbers, and what to do next.

LlamaError
├── LibraryNotFoundError (FileNotFoundError)   no libllama where one was asked for
├── LibraryLoadError (OSError)                 a libllama is there but cannot be loaded here
├── FetchError (OSError)                       a download, its verification or the store failed
├── AbiMismatchError (RuntimeError)            no declarations are proven to fit this build
├── ModelLoadError (RuntimeError)              a GGUF cannot be opened, or not by this build
├── ValidationError (ValueError)               an argument that C must never see
│   ├── UnknownOptionError (TypeError)         an option that does not exist
│   ├── ClosedError (RuntimeError)             the object was closed
│   ├── ContextOverflowError                   more tokens than the context holds
│   ├── GrammarError
│   └── TemplateError
├── OutOfMemoryError (MemoryError)             more memory than there is, or than a limit leaves
├── QueueFullError (RuntimeError)              too many requests are waiting already
└── GenerationError (RuntimeError)             decoding failed after it began
    ├── KvCacheFullError                       no free slot, even for the smallest batch
    ├── EngineDeadError                        the engine's thread has stopped on an error
    └── DecodeAbortedError                     stopped from outside, e.g. by Ctrl-C
        ├── CancelledError                     by `cancel()` or `close()`
        └── DeadlineExceededError (TimeoutError)
"""

from __future__ import annotations

__all__ = [
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
    """An argument is out of range, or of a kind that C must never see."""


class UnknownOptionError(ValidationError, TypeError):
    """There is no option of this name; the message suggests the nearest one."""


class ClosedError(ValidationError, RuntimeError):
    """The object was closed before this call, or during it."""


class ContextOverflowError(ValidationError):
    """The request has more tokens than fit into the context.

    Attributes:
        n_tokens: Number of tokens of the prompt, or of the input; None: see the message.
        n_ctx: Number of tokens that fit; None: see the message.
    """

    def __init__(
        self, message: str, *, n_tokens: int | None = None, n_ctx: int | None = None
    ) -> None:
        super().__init__(message)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class GrammarError(ValidationError):
    """A grammar does not parse, or is one that the native parser cannot survive."""


class TemplateError(ValidationError):
    """A chat template does not compile or refuses these messages."""


class OutOfMemoryError(LlamaError, MemoryError):
    """What was asked for needs more memory than there is, or than a limit of the process leaves."""


class QueueFullError(LlamaError, RuntimeError):
    """Too many requests are waiting already; try again later."""


class GenerationError(LlamaError, RuntimeError):
    """Decoding failed after it began."""


class KvCacheFullError(GenerationError):
    """The KV cache has no free slot, not even for the smallest batch."""


class EngineDeadError(GenerationError):
    """The engine's thread has stopped on an error, which is the cause of this one."""


class DecodeAbortedError(GenerationError):
    """Decoding was stopped from outside: cancelled, past its deadline, or by Ctrl-C.

    Attributes:
        reason: `cancel`, `deadline`, `close`, or None where only C knows.
        text: The text generated until then.
    """

    def __init__(self, message: str, *, reason: str | None = None, text: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.text = text


class CancelledError(DecodeAbortedError):
    """The generation was cancelled: by `cancel()`, or because its engine was closed."""


class DeadlineExceededError(DecodeAbortedError, TimeoutError):
    """The generation did not end before its deadline."""
