"""One-line answers: `complete` and `ask`, with the model of the last call."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

from ..errors import ValidationError
from ..generation.aliases import ALIASES
from ..generation.options import OPTION_NAMES, TextOptions
from ..validation import checked_arguments
from .chat_completions import OPTION_NAMES as CHAT_OPTION_NAMES
from .unified import UnifiedLLM

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .chat_completions import Message, MoreChatCompletionOptions

__all__ = ["ask", "complete"]

_Settings = tuple[str, int | None, int]  # model, n_ctx, n_gpu_layers


class _LastModel:
    """The model of the last call, kept for the next one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settings: _Settings | None = None
        self._llm: UnifiedLLM | None = None

    def get(
        self, model_path: str | os.PathLike[str], n_ctx: int | None, n_gpu_layers: int
    ) -> UnifiedLLM:
        """Return the model, loaded if the last call had another one."""
        if not isinstance(model_path, (str, os.PathLike)):
            raise ValidationError(
                f"model_path={model_path!r} must be a path or hf:owner/repo; for a loaded Model "
                "use Llama or UnifiedLLM"
            )
        settings = os.fspath(model_path), n_ctx, n_gpu_layers
        with self._lock:
            llm = self._llm
            if llm is None or settings != self._settings or llm.llm.model.closed:
                # Not closed: another thread, or a stream, may still use it. Its memory is freed
                # with the last reference.
                llm = self._llm = None
                llm = UnifiedLLM(settings[0], n_ctx=n_ctx, n_gpu_layers=n_gpu_layers)
                self._settings, self._llm = settings, llm
            return llm


_last = _LastModel()


@overload
def complete(
    prompt: str,
    model_path: str | os.PathLike[str],
    max_tokens: int | None = 256,
    *,
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    stream: Literal[False] = False,
    **options: Unpack[TextOptions],
) -> str: ...


@overload
def complete(
    prompt: str,
    model_path: str | os.PathLike[str],
    max_tokens: int | None = 256,
    *,
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    stream: Literal[True],
    **options: Unpack[TextOptions],
) -> Iterator[str]: ...


@checked_arguments(OPTION_NAMES, ALIASES)
def complete(
    prompt: str,
    model_path: str | os.PathLike[str],
    max_tokens: int | None = 256,
    *,
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    stream: bool = False,
    **options: Unpack[TextOptions],
) -> str | Iterator[str]:
    """Continue *prompt*, without a chat template; `Llama.generate` in one line.

    The model stays in memory for the next call of `complete` or `ask` with the same model and
    settings, until a call with others or `shutdown()`.

    Args:
        prompt: The text.
        model_path: A GGUF file, or `hf:owner/repo:file`.
        max_tokens: See `Llama.generate`, also for the errors.
        n_ctx: Context size: tokens of prompt and answer together; see `LlamaConfig`.
        n_gpu_layers: Layers on the GPU; -1: all.
        stream: Return an iterator of text.
        **options: See `TextOptions`.

    Raises:
        ModelLoadError: The model cannot be loaded.
        FetchError: The model, or a build of llama.cpp, cannot be fetched.
        ValidationError: An argument is out of range.
    """
    llm = _last.get(model_path, n_ctx, n_gpu_layers).llm
    pieces = llm.generate_stream(prompt, max_tokens, **options)
    if stream:
        return pieces
    return "".join(pieces)


@overload
def ask(
    prompt: str | Sequence[Message],
    model_path: str | os.PathLike[str],
    max_tokens: int | None = 512,
    *,
    system_prompt: str = "",
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    stream: Literal[False] = False,
    **options: Unpack[MoreChatCompletionOptions],
) -> str: ...


@overload
def ask(
    prompt: str | Sequence[Message],
    model_path: str | os.PathLike[str],
    max_tokens: int | None = 512,
    *,
    system_prompt: str = "",
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    stream: Literal[True],
    **options: Unpack[MoreChatCompletionOptions],
) -> Iterator[str]: ...


@checked_arguments(CHAT_OPTION_NAMES, ALIASES)
def ask(
    prompt: str | Sequence[Message],
    model_path: str | os.PathLike[str],
    max_tokens: int | None = 512,
    *,
    system_prompt: str = "",
    n_ctx: int | None = None,
    n_gpu_layers: int = -1,
    stream: bool = False,
    **options: Unpack[MoreChatCompletionOptions],
) -> str | Iterator[str]:
    """Answer a message or a conversation; `UnifiedLLM.generate` in one line.

    The model stays in memory as with `complete`.

    Args:
        prompt: The user's message, or messages in OpenAI's format.
        model_path: A GGUF file, or `hf:owner/repo:file`.
        max_tokens: See `UnifiedLLM.generate`, also for the errors.
        system_prompt: The system message, if any.
        n_ctx: Context size: tokens of conversation and answer together; see
            `LlamaConfig`.
        n_gpu_layers: Layers on the GPU; -1: all.
        stream: Return an iterator of text.
        **options: See `MoreChatCompletionOptions`; they override the recommended sampling.

    Raises:
        ModelLoadError: The model cannot be loaded.
        FetchError: The model, or a build of llama.cpp, cannot be fetched.
        ValidationError: An argument is out of range.
    """
    llm = _last.get(model_path, n_ctx, n_gpu_layers)
    if stream:
        return llm.generate(prompt, system_prompt, max_tokens, stream=True, **options)
    return llm.generate(prompt, system_prompt, max_tokens, **options)
