"""A model: its weights, its vocabulary and what they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ...errors import ModelLoadError, TemplateError, ValidationError
from ...gguf.reader import GgufSummary, read_gguf
from ...progress import Progress, reporting
from ...validation import INT32_MAX, check_int, checked_arguments
from .. import compat
from ..callbacks import ExceptionRelay
from ..loading.library import Library, library_for
from ..memory_limits import check_bytes, check_ggml_contexts
from ..native_object import NativeObject, in_call
from .files import AnyPath, Override, open_files
from .placement import devices_for_c, overrides_for_c, shares_for_c, split_mode_for_c
from .preflight import check_model, check_mtp
from .trial import try_model
from .vocab import Vocab, encode

__all__ = ["Model"]

# Metadata keys that only recurrent and hybrid models have.
_STATE_KEYS = ("ssm.state_size", "shortconv.l_cache")
_LAYER = re.compile(r"blk\.(\d+)\.")
_ALL_LAYERS = 999  # a negative count means "all" only since b6122


class Model(NativeObject):
    """A loaded GGUF model. Contexts are made from it and close with it.

    A few properties are read from the file when they are first used, where the build does not
    report them. They raise ModelLoadError if the file has been removed or changed meanwhile.

    Args:
        path: The GGUF file; of a split model the first part (the others are found by llama.cpp's
            naming, `NAME-00001-of-00003.gguf`) or a list of all parts.
        vocab_only: Load the vocabulary and the metadata without the weights.
        n_gpu_layers: Layers to keep on the GPU; -1 = all.
        split_mode: How to use several GPUs: `none`, `layer`, `row`; None = the build's default.
        main_gpu: Index of the GPU for `split_mode="none"`.
        tensor_split: Share of the model for each GPU, in any unit; None = by free memory.
        devices: Names from `library.devices` to use beside the CPU; `[]` = only the CPU,
            None = all GPUs.
        n_cpu_moe: Layers, from the first on, whose experts stay on the CPU, as llama-cli's
            --n-cpu-moe; without effect on models without experts.
        override_tensors: Where single tensors are kept, as llama-cli's --override-tensor: a
            pattern that a tensor's name contains -> the name of a device, such as
            `{r"ffn_.*_exps": "CPU"}`. The first pattern that matches counts.
        use_mmap: Map the file into memory instead of reading it.
        use_mlock: Keep the weights in RAM.
        check_tensors: Validate the tensor data while loading (slow).
        kv_overrides: Metadata that replaces the file's, such as
            `{"tokenizer.ggml.add_bos_token": False}`; `metadata` still reports the file's.
        load_mtp: Also load the multi-token prediction head, for `MtpHead`.
        check: What is done before the model is loaded, since C crashes on some that it cannot run.
            `rules` checks the header. `child` also loads the model in a child process once and
            computes a few tokens; a result is kept for each file and build. `auto` does that for
            files up to 64 MiB about which the rules do not decide. None = `LLAMA_CFFI_CHECK`, or
            `auto`.
        progress: True shows a bar on stderr. A function is called with 0.0 to 1.0 while loading
            and stops the load by returning False. An exception in it, or Ctrl-C, stops the load
            and reaches the caller.
        library: The build to load with; None = `get_library()`, with its errors.

    Attributes:
        path: The first file.
        paths: All files.
        files: The same with their checked headers.
        gguf: The parsed header.
        vocab: The vocabulary.
        has_mtp: Whether the multi-token prediction head is loaded.
        offloads: Whether layers may be on a device other than the CPU.

    Raises:
        ModelLoadError: A file is missing or damaged, or the build does not support its
            architecture, or crashes on it.
        ValidationError: An argument is out of range or not supported by the build.
        OutOfMemoryError: A limit leaves too little memory to this process.
    C: llama_model_load_from_file, llama_model_load_from_splits
    """

    _no_alloc: bool | None = None  # True only where contexts are measured

    @checked_arguments()
    def __init__(
        self,
        path: AnyPath | Sequence[AnyPath],
        *,
        vocab_only: bool = False,
        n_gpu_layers: int = -1,
        split_mode: str | None = None,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        devices: Sequence[str] | None = None,
        n_cpu_moe: int = 0,
        override_tensors: Mapping[str, str] | None = None,
        use_mmap: bool = True,
        use_mlock: bool = False,
        check_tensors: bool = False,
        kv_overrides: Mapping[str, Override] | None = None,
        load_mtp: bool = False,
        check: str | None = None,
        progress: Progress = None,
        library: Library | None = None,
    ) -> None:
        self.files = open_files(path, kv_overrides)
        self._fingerprint: str | None = None
        self.paths = self.files.paths
        self.path = self.paths[0]
        self.gguf: GgufSummary = self.files.summary
        self.library = library or library_for(self.gguf)
        check_model(self.path, self.gguf, self.library)
        if self.files.listed and not self.library.has("llama_model_load_from_splits"):
            raise ValidationError(
                f"this build cannot load a list of parts ({compat.newer_build(self.library)}); "
                "name them as llama.cpp does and pass the first"
            )
        self.vocab_only = bool(vocab_only)
        if load_mtp:
            check_mtp(self.path, self.gguf, self.library)
        try_model(
            self.files,
            self.library,
            check,
            vocab_only=self.vocab_only,
            overrides=kv_overrides,
        )
        self.has_mtp = bool(load_mtp) and not self.vocab_only
        n_gpu_layers = check_int("n_gpu_layers", n_gpu_layers, -INT32_MAX)
        main_gpu = check_int("main_gpu", main_gpu, 0)
        ffi, relay = self.library.ffi, ExceptionRelay()
        # C reads these while it loads and keeps none of them.
        params = compat.model_params(
            self.library,
            use_mmap=bool(use_mmap),
            use_mlock=bool(use_mlock),
            vocab_only=self.vocab_only,
            n_gpu_layers=_ALL_LAYERS if n_gpu_layers < 0 else n_gpu_layers,
            split_mode=(None if split_mode is None else split_mode_for_c(self.library, split_mode)),
            main_gpu=main_gpu,
            check_tensors=bool(check_tensors),
            tensor_split=(shares := shares_for_c(self.library, tensor_split)),
            devices=(chosen := devices_for_c(self.library, devices)),
            tensor_buft_overrides=(
                placed := overrides_for_c(
                    self.library, self.gguf.tensors, override_tensors, n_cpu_moe, devices
                )
            ),
            load_mtp=True if load_mtp else None,
            no_alloc=self._no_alloc,
            kv_overrides=(
                overrides := compat.kv_overrides(self.library, kv_overrides)
                if kv_overrides
                else None
            ),
        )
        self.offloads = n_gpu_layers != 0 and any(
            d.type not in ("cpu", "accel")
            for d in self.library.devices
            if devices is None or d.name in devices
        )
        ptr, free = ffi.NULL, compat.c_function(self.library, "llama_model_free")
        check_bytes(self.files.load_bytes(use_mmap), f"loading {self.path.name}")
        check_ggml_contexts(self.library, "a model")
        names = [os.fsencode(part) for part in self.paths]
        try:
            with (
                in_call(),
                relay,
                reporting(progress, self.path.name) as report,
                self.library.logs.capture() as lines,
            ):
                # Set even without *progress*: this is where Python notices Ctrl-C.
                params.progress_callback = callback = relay.guard(
                    ffi,
                    "llama_progress_callback",
                    lambda done, _: not self.library.logs.interrupted and report(done),
                    False,
                )
                ptr = compat.load_model(self.library, names, params, self.files.listed)
            self.library.logs.raise_interrupt()
        except BaseException:
            if ptr:
                free(ptr)
            raise
        del callback, shares, chosen, placed, overrides
        if not ptr:
            raise ModelLoadError(self._load_error(lines))
        super().__init__(ptr, free, n_ggml_contexts=1 + self.offloads)
        self.vocab = Vocab(self)

    @property
    def description(self) -> str:
        """Architecture, size and quantization in words. C: llama_model_desc."""
        buffer = self.library.ffi.new("char[256]")
        self.library.lib.llama_model_desc(self.ptr, buffer, 256)
        return str(self.library.ffi.string(buffer).decode("utf-8", "replace"))

    @property
    def n_ctx_train(self) -> int:
        """Context length that the model was trained with. C: llama_model_n_ctx_train."""
        return int(compat.c_function(self.library, "llama_model_n_ctx_train")(self.ptr))

    @property
    def n_embd(self) -> int:
        """Width of the hidden state. C: llama_model_n_embd."""
        return int(compat.c_function(self.library, "llama_model_n_embd")(self.ptr))

    @property
    def n_layer(self) -> int:
        """Number of layers. C: llama_model_n_layer."""
        return int(compat.c_function(self.library, "llama_model_n_layer")(self.ptr))

    @property
    def n_head(self) -> int:
        """Number of attention heads in the first layer. C: llama_model_n_head.

        Raises:
            ValidationError: The model was loaded with `vocab_only`.
        """
        self._need_layers("n_head")
        return int(compat.c_function(self.library, "llama_model_n_head")(self.ptr))

    @property
    def n_head_kv(self) -> int:
        """Number of key and value heads in the first layer. C: llama_model_n_head_kv.

        Raises:
            ValidationError: The model was loaded with `vocab_only`.
        """
        self._need_layers("n_head_kv")
        known = compat.model_number(self.library, "n_head_kv", self.ptr)
        return known if known is not None else self._hparam("attention.head_count_kv", self.n_head)

    @property
    def n_swa(self) -> int:
        """Tokens in the sliding window, 0 without one. C: llama_model_n_swa."""
        known = compat.model_number(self.library, "n_swa", self.ptr)
        return known if known is not None else self._hparam("attention.sliding_window", 0)

    @property
    def n_embd_inp(self) -> int:
        """Width of the embeddings that `decode` takes. C: llama_model_n_embd_inp."""
        known = compat.model_number(self.library, "n_embd_inp", self.ptr)
        return known if known is not None else self.n_embd

    @property
    def n_embd_out(self) -> int:
        """Width of the embeddings that a context returns. C: llama_model_n_embd_out."""
        return compat.embedding_width(self.library, self.ptr)

    @property
    def rope_freq_scale_train(self) -> float:
        """RoPE frequency scale used in training. C: llama_model_rope_freq_scale_train."""
        return float(compat.c_function(self.library, "llama_model_rope_freq_scale_train")(self.ptr))

    @property
    def has_encoder(self) -> bool:
        """Whether `Context.encode` can run it. C: llama_model_has_encoder."""
        return bool(self.library.lib.llama_model_has_encoder(self.ptr))

    @property
    def has_decoder(self) -> bool:
        """Whether `Context.decode` can run it. C: llama_model_has_decoder."""
        return bool(self.library.lib.llama_model_has_decoder(self.ptr))

    @property
    def decoder_start_token(self) -> int | None:
        """Token that starts the decoder after the encoder. C: llama_model_decoder_start_token."""
        token = int(self.library.lib.llama_model_decoder_start_token(self.ptr))
        return token if token >= 0 else None

    @property
    def is_recurrent(self) -> bool:
        """Whether it keeps one state instead of a KV cache. C: llama_model_is_recurrent."""
        return bool(self.library.lib.llama_model_is_recurrent(self.ptr))

    @property
    def is_hybrid(self) -> bool:
        """Whether it mixes recurrent and attention layers. C: llama_model_is_hybrid, b6845."""
        known = compat.model_number(self.library, "is_hybrid", self.ptr)
        if known is None:
            keys = (f"{self.gguf.architecture}.{key}" for key in _STATE_KEYS)
            return not self.is_recurrent and any(key in self.gguf.values for key in keys)
        return bool(known)

    @cached_property
    def keeps_states(self) -> bool:
        """Whether any layer keeps one state per sequence, as in Mamba, RWKV and hybrids.

        Such a sequence can only be continued at its end.
        """
        return self.is_recurrent or self.is_hybrid

    @property
    def is_diffusion(self) -> bool:
        """Whether it is a diffusion model. C: llama_model_is_diffusion; False before b6122."""
        return bool(compat.model_number(self.library, "is_diffusion", self.ptr))

    @property
    def n_cls_out(self) -> int:
        """Number of scores that `rank` pooling returns. C: llama_model_n_cls_out."""
        return compat.n_classes(self.library, self.ptr)

    @property
    def classifier_labels(self) -> tuple[str, ...]:
        """Names of the scores of `rank` pooling; empty if the model has none."""
        key = f"{self.gguf.architecture}.classifier.output_labels"
        if key not in self.gguf.arrays:
            return ()
        labels = read_gguf(self.path).metadata[key]
        return tuple(map(str, labels)) if isinstance(labels, list) else ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the headers and a sample of the weights, equal for every copy of the model.

        Computed once, from the header of each file and at most 400 KiB of its data. A fine-tune
        with the same header has another fingerprint.
        """
        if self._fingerprint is None:
            self._fingerprint = self.files.fingerprint()
        return self._fingerprint

    @property
    def n_params(self) -> int:
        """Number of parameters. C: llama_model_n_params."""
        return int(self.library.lib.llama_model_n_params(self.ptr))

    @property
    def size_bytes(self) -> int:
        """Size of all tensors in bytes. C: llama_model_size."""
        return int(self.library.lib.llama_model_size(self.ptr))

    @cached_property
    def layer_bytes(self) -> tuple[int, ...]:
        """Size of the weights of each layer in the file, in bytes, with a multi-token head last.

        `n_gpu_layers=n` puts the last n layers on the GPU, and more than there are also the output.
        """
        sizes: dict[int, int] = {}
        for tensor in self.gguf.tensors:
            if match := _LAYER.match(tensor.name):
                layer = int(match[1])
                sizes[layer] = sizes.get(layer, 0) + (tensor.size_bytes or 0)
        return tuple(size for _, size in sorted(sizes.items()))

    @property
    def metadata(self) -> dict[str, str]:
        """The GGUF's scalar metadata as strings. C: llama_model_meta_val_str_by_index."""
        lib, ptr = self.library.lib, self.ptr
        return {
            self._string(lib.llama_model_meta_key_by_index, ptr, i): self._string(
                lib.llama_model_meta_val_str_by_index, ptr, i
            )
            for i in range(lib.llama_model_meta_count(ptr))
        }

    @property
    def chat_template(self) -> str | None:
        """The model's chat template (Jinja); None if it has none."""
        return compat.chat_template(self.library, self.ptr)

    @property
    def builtin_chat_templates(self) -> tuple[str, ...]:
        """Names of llama.cpp's built-in chat templates; only `chatml` where a build lists none.

        C: llama_chat_builtin_templates
        """
        if not self.library.has("llama_chat_builtin_templates"):
            return ("chatml",)
        ffi, lib = self.library.ffi, self.library.lib
        n = lib.llama_chat_builtin_templates(ffi.NULL, 0)
        names = ffi.new("const char *[]", n)
        lib.llama_chat_builtin_templates(names, n)
        return tuple(ffi.string(name).decode() for name in names)

    def apply_chat_template(
        self,
        messages: Sequence[tuple[str, str] | Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
    ) -> str:
        """Render messages with the template that llama.cpp has built in for this model.

        llama.cpp recognizes a short list of templates, does not run Jinja and ignores tools.
        `llama_cffi.chat` renders with the model's own Jinja template.

        Args:
            messages: (role, content) pairs, or dicts with `role` and `content`, both str. C gets
                nothing else of a message. OpenAI's role `developer` is `system`.
            add_generation_prompt: End with the start of an assistant message.
            template: Name of a built-in template, such as `chatml`; None = the model's own.

        Raises:
            TemplateError: The model has no template, or llama.cpp does not know it.
            ValidationError: A message is neither a pair nor a dict, has tool calls or parts, or has
                a role or content that is not a valid string for C.
        C: llama_chat_apply_template
        """
        pairs = _pairs(messages)
        name, template = template, template or self.chat_template
        if template is None:
            raise TemplateError(f"{self.path.name} has no chat template; pass a rendered prompt")
        text = compat.chat_apply_template(
            self.library, self.ptr, template, pairs, add_generation_prompt
        )
        if text is None and name is not None:
            raise TemplateError(
                f"llama.cpp has no built-in chat template {name!r} for these messages"
            )
        if text is None:
            raise TemplateError(
                f"llama.cpp has no built-in version of the template of {self.path.name}; "
                "pass a rendered prompt"
            )
        return text

    def _string(self, function: Any, *args: Any) -> str:
        """Call a C function that fills (buffer, size) and returns the length it needs."""
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
            raise ValidationError(
                f"{name} is unknown: {self.path.name} was loaded with vocab_only, without layers"
            )

    def _hparam(self, key: str, default: int) -> int:
        """Return a number of the metadata; of an array its first item."""
        name = f"{self.gguf.architecture}.{key}"
        if name not in self.gguf.arrays:
            return int(self.gguf.values.get(name, default))
        items = read_gguf(self.path).metadata[name]
        return int(items[0] if isinstance(items, list) else items)

    def _load_error(self, lines: Sequence[str]) -> str:
        """Turn what C logged into a message with advice."""
        reason = "; ".join(dict.fromkeys(line.split(": ", 1)[-1] for line in lines[-4:]))
        build = self.library.name
        message = f"cannot load {self.path}: {reason or 'llama.cpp gave no reason'}"
        if "unknown model architecture" in reason or "unknown pre-tokenizer" in reason:
            return (
                f"{message}. The loaded build ({build}) does not know '{self.gguf.architecture}'; "
                "a newer one may: LLAMA_CFFI_BUILD=latest, or llama-cffi libs fetch latest"
            )
        return f"{message} (build {build}, GGUF v{self.gguf.version}, '{self.gguf.architecture}')"

    def __repr__(self) -> str:
        size = sum(tensor.size_bytes or 0 for tensor in self.gguf.tensors) / 1e6
        loaded = ", vocabulary only" if self.vocab_only else ""
        closed = ", closed" if self.closed else ""
        return f"<Model {self.path.name} {self.gguf.architecture}, {size:,.1f} MB{loaded}{closed}>"


def _pairs(messages: object) -> list[tuple[str, str]]:
    """Return the role and content of each message, checked for C."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValidationError(
            f"messages must be a list of (role, content) pairs or dicts, got {messages!r}"
        )
    pairs = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if isinstance(message, Mapping):
            if message.get("tool_calls") or message.get("function_call"):
                raise ValidationError(
                    f"{where} has tool calls, which llama.cpp's built-in templates cannot show; "
                    "use ChatRenderer"
                )
            pair: Sequence[object] = (message.get("role"), message.get("content"))
        elif isinstance(message, (tuple, list)) and len(message) == 2:
            pair = message
        else:
            raise ValidationError(
                f'{where} must be a pair such as ("user", "Hi"), or '
                f'{{"role": "user", "content": "Hi"}}, got {message!r}'
            )
        for name, text in zip(("role", "content"), pair, strict=True):
            if not isinstance(text, str):
                raise ValidationError(
                    f"the {name} of {where} must be a str, got {text!r}"
                    + ("; ChatRenderer takes parts" if isinstance(text, list) else "")
                )
            if b"\0" in encode(text):  # encode refuses lone surrogates
                raise ValidationError(f"{where} contains NUL, which C strings cannot hold")
        role, content = map(str, pair)
        pairs.append(("system" if role == "developer" else role, content))
    return pairs
