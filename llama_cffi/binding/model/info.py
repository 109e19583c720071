"""What a loaded model says of itself."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import ValidationError
from ...gguf.reader import GgufSummary, read_gguf
from .. import compat
from ..loading.library import Library
from ..native_object import Handle
from .files import ModelFiles

__all__ = ["ModelFacts"]

# Only hybrids and recurrent models have them.
_STATES = ("ssm.state_size", "shortconv.l_cache")


class ModelFacts(Handle):
    """The properties of a model.

    Some are read from the file when they are first asked for: where the build cannot tell them, or
    of parts that C keeps to itself. They raise ModelLoadError if the file has gone since.
    """

    path: Path
    library: Library
    gguf: GgufSummary
    vocab_only: bool
    _files: ModelFiles
    _fingerprint: str | None = None

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
    def n_head(self) -> int:
        """Number of attention heads, of the first layer. C: llama_model_n_head.

        Raises:
            ValidationError: The model was loaded with `vocab_only`.
        """
        self._need_layers("n_head")
        return int(compat.call(self.library, "llama_model_n_head")(self.ptr))

    @property
    def n_head_kv(self) -> int:
        """Number of heads of keys and values, of the first layer. C: llama_model_n_head_kv.

        Raises:
            ValidationError: The model was loaded with `vocab_only`.
        """
        self._need_layers("n_head_kv")
        known = compat.model_number(self.library, "n_head_kv", self.ptr)
        return known if known is not None else self._of_file("attention.head_count_kv", self.n_head)

    @property
    def n_swa(self) -> int:
        """Tokens in the sliding window, 0 without one. C: llama_model_n_swa."""
        known = compat.model_number(self.library, "n_swa", self.ptr)
        return known if known is not None else self._of_file("attention.sliding_window", 0)

    @property
    def n_embd_inp(self) -> int:
        """Width of the embeddings that `decode` takes. C: llama_model_n_embd_inp."""
        known = compat.model_number(self.library, "n_embd_inp", self.ptr)
        return known if known is not None else self.n_embd

    @property
    def n_embd_out(self) -> int:
        """Width of the embeddings that a context gives. C: llama_model_n_embd_out."""
        return compat.embedding_width(self.library, self.ptr)

    @property
    def rope_freq_scale_train(self) -> float:
        """Scale of RoPE's frequencies in training. C: llama_model_rope_freq_scale_train."""
        return float(compat.call(self.library, "llama_model_rope_freq_scale_train")(self.ptr))

    @property
    def has_encoder(self) -> bool:
        """Whether it takes `Context.encode`. C: llama_model_has_encoder."""
        return bool(self.library.lib.llama_model_has_encoder(self.ptr))

    @property
    def has_decoder(self) -> bool:
        """Whether it takes `Context.decode`. C: llama_model_has_decoder."""
        return bool(self.library.lib.llama_model_has_decoder(self.ptr))

    @property
    def decoder_start_token(self) -> int | None:
        """First token of a decoder after an encoder. C: llama_model_decoder_start_token."""
        token = int(self.library.lib.llama_model_decoder_start_token(self.ptr))
        return token if token >= 0 else None

    @property
    def is_recurrent(self) -> bool:
        """Whether it keeps one state instead of a cache of tokens. C: llama_model_is_recurrent."""
        return bool(self.library.lib.llama_model_is_recurrent(self.ptr))

    @property
    def is_hybrid(self) -> bool:
        """Whether some layers are recurrent and some attend. C: llama_model_is_hybrid, b6845."""
        known = compat.model_number(self.library, "is_hybrid", self.ptr)
        if known is None:
            keys = (f"{self.gguf.architecture}.{key}" for key in _STATES)
            return not self.is_recurrent and any(key in self.gguf.values for key in keys)
        return bool(known)

    @cached_property
    def keeps_states(self) -> bool:
        """Whether any layer keeps one state of a whole sequence, as Mamba, RWKV and hybrids do.

        A sequence then goes on at its end or not at all.
        """
        return self.is_recurrent or self.is_hybrid

    @property
    def is_diffusion(self) -> bool:
        """Whether it fills masked text. C: llama_model_is_diffusion, b6122; none before."""
        return bool(compat.model_number(self.library, "is_diffusion", self.ptr))

    @property
    def n_cls_out(self) -> int:
        """Scores that `rank` pooling gives. C: llama_model_n_cls_out."""
        return compat.n_classes(self.library, self.ptr)

    @property
    def classifier_labels(self) -> tuple[str, ...]:
        """Names of those scores, where the model has some."""
        key = f"{self.gguf.architecture}.classifier.output_labels"
        if key not in self.gguf.arrays:
            return ()
        return tuple(map(str, read_gguf(self.path).metadata[key]))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the headers and a sample of the weights: the same for a copy anywhere.

        Found once, from at most 400 KiB beside the header of each file; another one for a
        fine-tune with the same header.
        """
        if self._fingerprint is None:
            self._fingerprint = self._files.fingerprint()
        return self._fingerprint

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

    def _need_layers(self, name: str) -> None:
        if self.vocab_only:
            raise ValidationError(f"{name}: {self.path.name} was loaded with vocab_only, no layers")

    def _of_file(self, key: str, default: int) -> int:
        """A number of the metadata; of an array its first item."""
        name = f"{self.gguf.architecture}.{key}"
        if name in self.gguf.arrays:
            return int(read_gguf(self.path).metadata[name][0])
        return int(self.gguf.values.get(name, default))
