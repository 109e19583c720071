"""A model: weights and vocabulary read from a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelLoadError, TemplateError, ValidationError
from . import compat
from .callbacks import Relay
from .checks import INT32_MAX, integer
from .gguf import GgufSummary, check_gguf
from .handle import Handle
from .library import Library, get_library
from .model_check import check_model
from .vocab import Vocab, encode

__all__ = ["Model"]

_ALL_LAYERS = 999  # a negative count means "all" only since b6122


class Model(Handle):
    """A loaded GGUF model. Contexts are made from it and close with it.

    Args:
        path: The GGUF file; of a split model the first part.
        vocab_only: Load the vocabulary and metadata, no weights.
        n_gpu_layers: Layers to keep on the GPU; -1 = all.
        split_mode: How to use several GPUs: `none`, `layer`, `row`; None = the build's default.
        main_gpu: Index of the GPU for `split_mode="none"`.
        use_mmap: Map the file instead of reading it.
        use_mlock: Keep the weights in RAM.
        check_tensors: Validate the tensor data while loading (slow).
        progress: Called with 0.0 to 1.0 while loading; returning False stops the load, and an
            exception it raises stops the load and reaches the caller.
        library: The build to load with; None = `get_library()`.

    Raises:
        ModelLoadError: The file is missing, damaged, or of an architecture that the build
            does not know.
    C: llama_model_load_from_file
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        vocab_only: bool = False,
        n_gpu_layers: int = -1,
        split_mode: str | None = None,
        main_gpu: int = 0,
        use_mmap: bool = True,
        use_mlock: bool = False,
        check_tensors: bool = False,
        progress: Callable[[float], bool | None] | None = None,
        library: Library | None = None,
    ) -> None:
        self.path = Path(os.fsdecode(path)).expanduser()
        self.gguf: GgufSummary = check_gguf(self.path)
        self.library = library or get_library()
        check_model(self.path, self.gguf, self.library)
        self.vocab_only = bool(vocab_only)
        n_gpu_layers = integer("n_gpu_layers", n_gpu_layers, -INT32_MAX)
        main_gpu = integer("main_gpu", main_gpu, 0)
        ffi = self.library.ffi
        relay = Relay()
        callback = ffi.NULL
        if progress is not None:
            callback = relay.guard(
                ffi, "llama_progress_callback", lambda p, _: progress(p) is not False, False
            )
        params = compat.model_params(
            self.library,
            use_mmap=bool(use_mmap),
            use_mlock=bool(use_mlock),
            vocab_only=self.vocab_only,
            n_gpu_layers=_ALL_LAYERS if n_gpu_layers < 0 else n_gpu_layers,
            split_mode=None if split_mode is None else _split_mode(self.library, split_mode),
            main_gpu=main_gpu,
            check_tensors=check_tensors,
            progress_callback=callback if progress is not None else None,
        )
        ptr, free = ffi.NULL, compat.call(self.library, "llama_model_free")
        try:
            with relay, self.library.logs.capture() as lines:
                ptr = compat.load_model(self.library, os.fsencode(self.path), params)
            self.library.logs.raise_interrupt()
        except BaseException:
            if ptr:
                free(ptr)
            raise
        if not ptr:
            raise ModelLoadError(self._why(lines))
        super().__init__(ptr, free)
        self.vocab = Vocab(self)

    @property
    def description(self) -> str:
        """Type and quantization in words. C: llama_model_desc."""
        buffer = self.library.ffi.new("char[256]")
        self.library.lib.llama_model_desc(self.ptr, buffer, 256)
        return str(self.library.ffi.string(buffer).decode("utf-8", "replace"))

    @property
    def n_ctx_train(self) -> int:
        """Context length that the model was trained with. C: llama_model_n_ctx_train."""
        return int(compat.call(self.library, "llama_model_n_ctx_train")(self.ptr))

    @property
    def n_embd(self) -> int:
        """Width of the embeddings. C: llama_model_n_embd."""
        return int(compat.call(self.library, "llama_model_n_embd")(self.ptr))

    @property
    def n_layer(self) -> int:
        """Number of layers. C: llama_model_n_layer."""
        return int(compat.call(self.library, "llama_model_n_layer")(self.ptr))

    @property
    def n_params(self) -> int:
        """Number of parameters. C: llama_model_n_params."""
        return int(self.library.lib.llama_model_n_params(self.ptr))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors. C: llama_model_size."""
        return int(self.library.lib.llama_model_size(self.ptr))

    @property
    def metadata(self) -> dict[str, str]:
        """The GGUF's scalar metadata as text. C: llama_model_meta_val_str_by_index."""
        lib, ptr = self.library.lib, self.ptr
        return {
            self._text(lib.llama_model_meta_key_by_index, ptr, i): self._text(
                lib.llama_model_meta_val_str_by_index, ptr, i
            )
            for i in range(lib.llama_model_meta_count(ptr))
        }

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template (Jinja), None when it has none."""
        return compat.chat_template(self.library, self.ptr)

    def apply_chat_template(
        self, messages: Sequence[tuple[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Render messages with llama.cpp's built-in version of the model's template.

        Args:
            messages: (role, content) pairs.
            add_generation_prompt: End with the start of an assistant message.

        Raises:
            TemplateError: The model has no template, or one llama.cpp does not know.
        C: llama_chat_apply_template
        """
        template = self.chat_template
        if template is None:
            raise TemplateError(f"{self.path.name} has no chat template; pass a finished prompt")
        for role, content in messages:
            if "\0" in role or "\0" in content:
                raise ValidationError("a message has a NUL character, which C strings cannot hold")
            for part in (role, content):
                encode(part)  # refuses lone surrogates
        text = compat.chat_apply_template(
            self.library, self.ptr, template, messages, add_generation_prompt
        )
        if text is None:
            raise TemplateError(
                f"llama.cpp has no built-in version of the template of {self.path.name}; "
                "pass a finished prompt"
            )
        return text

    def _text(self, function: Any, *args: Any) -> str:
        """Call a C function that fills (buffer, size) and returns the length it wants."""
        ffi = self.library.ffi
        size = 512
        while True:
            buffer = ffi.new("char[]", size)
            n = function(*args, buffer, size)
            if n < size:
                return str(ffi.string(buffer).decode("utf-8", "replace"))
            size = n + 1

    def _why(self, lines: Sequence[str]) -> str:
        """Turn what C logged into a sentence with advice."""
        said = "; ".join(dict.fromkeys(line.split(": ", 1)[-1] for line in lines[-4:]))
        build = self.library.build.tag or self.library.path.name
        message = f"cannot load {self.path}: {said or 'llama.cpp gave no reason'}"
        if "unknown model architecture" in said or "unknown pre-tokenizer" in said:
            return (
                f"{message}. The loaded build ({build}) does not know '{self.gguf.architecture}'; "
                "a newer one may: LLAMA_CFFI_BUILD=latest, or llama-cffi libs fetch latest"
            )
        return f"{message} (build {build}, GGUF v{self.gguf.version}, '{self.gguf.architecture}')"

    def __repr__(self) -> str:
        return f"<Model {self.path.name}{' closed' if self.closed else ''}>"


def _split_mode(library: Library, name: str) -> int:
    modes: dict[str, int] = library.ffi.typeof("enum llama_split_mode").relements
    key = f"LLAMA_SPLIT_MODE_{name.upper()}"
    if key not in modes:
        known = ", ".join(m.removeprefix("LLAMA_SPLIT_MODE_").lower() for m in modes)
        raise ValidationError(f"split_mode={name!r} is not one of {known}")
    return modes[key]
