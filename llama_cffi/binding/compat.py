"""One Python function for each C call whose name, arguments or struct fields moved between builds.

Code above never asks which build it runs on: it calls these, or a C function that is the same in
every class. Each entry names the build of the change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from .library import Library

__all__ = [
    "call",
    "chat_apply_template",
    "chat_template",
    "context_params",
    "has_tokens",
    "init_context",
    "kv_unified",
    "load_model",
    "max_experts",
    "max_sequences",
    "memory_call",
    "model_params",
    "rope_scaling_types",
    "sampler_penalties",
    "tensor_types",
    "vocab_of",
]

# Today's name -> the older ones. Same arguments, or the same after `vocab_of` gave the handle.
_RENAMED = {
    "llama_model_load_from_file": ("llama_load_model_from_file",),  # b4435
    "llama_model_free": ("llama_free_model",),  # b4435
    "llama_init_from_model": ("llama_new_context_with_model",),  # b4529
    "llama_model_n_ctx_train": ("llama_n_ctx_train",),  # b4529
    "llama_model_n_embd": ("llama_n_embd",),
    "llama_model_n_layer": ("llama_n_layer",),
    "llama_model_n_head": ("llama_n_head",),
    "llama_vocab_n_tokens": ("llama_n_vocab",),  # b4529, with the handle: model -> vocab
    "llama_vocab_get_text": ("llama_token_get_text",),
    "llama_vocab_get_score": ("llama_token_get_score",),
    "llama_vocab_get_attr": ("llama_token_get_attr",),
    "llama_vocab_is_eog": ("llama_token_is_eog",),
    "llama_vocab_is_control": ("llama_token_is_control",),
    "llama_vocab_bos": ("llama_token_bos",),
    "llama_vocab_eos": ("llama_token_eos",),
    "llama_vocab_eot": ("llama_token_eot",),
    "llama_vocab_sep": ("llama_token_sep",),
    "llama_vocab_nl": ("llama_token_nl",),
    "llama_vocab_pad": ("llama_token_pad",),
    "llama_vocab_get_add_bos": ("llama_add_bos_token",),
    "llama_vocab_get_add_eos": ("llama_add_eos_token",),
    "llama_vocab_fim_pre": ("llama_token_fim_pre", "llama_token_prefix"),  # b3995, b3889
    "llama_vocab_fim_suf": ("llama_token_fim_suf", "llama_token_suffix"),
    "llama_vocab_fim_mid": ("llama_token_fim_mid", "llama_token_middle"),
}


def call(library: Library, name: str) -> Any:
    """Return the C function *name* under whatever name this build has it."""
    for candidate in (name, *_RENAMED.get(name, ())):
        if library.has(candidate):
            return getattr(library.lib, candidate)
    raise AttributeError(f"{library!r} has no {name}")


def vocab_of(library: Library, model: Any) -> Any:
    """Return the handle that vocabulary calls take: the model itself before b4529."""
    if library.has("llama_model_get_vocab"):
        return library.lib.llama_model_get_vocab(model)
    return model


def has_tokens(library: Library, vocab: Any) -> bool:
    """Whether the vocabulary has text: C aborts when it is used without. C: llama_vocab_type."""
    return bool(library.lib.llama_vocab_type(vocab) != 0)  # LLAMA_VOCAB_TYPE_NONE


def _assign(params: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is not None:
            setattr(params, name, value)


def _fields(library: Library, params: Any) -> set[str]:
    return {name for name, _ in library.ffi.typeof(params).fields}


def model_params(library: Library, *, use_mmap: bool, use_mlock: bool, **values: Any) -> Any:
    """Build `llama_model_params` from the build's defaults; None leaves a default.

    `use_mmap` and `use_mlock` became one `load_mode` at b10361.
    """
    params = library.lib.llama_model_default_params()
    if "use_mmap" in _fields(library, params):
        values |= {"use_mmap": use_mmap, "use_mlock": use_mlock}
    else:
        modes = library.ffi.typeof("enum llama_load_mode").relements
        wanted = {
            (True, True): ("LLAMA_LOAD_MODE_MMAP_MLOCK", "LLAMA_LOAD_MODE_MLOCK"),
            (True, False): ("LLAMA_LOAD_MODE_MMAP",),
            (False, True): ("LLAMA_LOAD_MODE_MLOCK",),
            (False, False): ("LLAMA_LOAD_MODE_NONE",),
        }[use_mmap, use_mlock]
        values["load_mode"] = next(modes[name] for name in wanted if name in modes)
    _assign(params, values)
    return params


def load_model(library: Library, path: bytes, params: Any) -> Any:
    """Load a model; NULL when it failed. C: llama_model_load_from_file."""
    return call(library, "llama_model_load_from_file")(path, params)


def context_params(
    library: Library,
    *,
    flash_attn: bool | None = None,
    kv_unified: bool | None = None,
    **values: Any,
) -> Any:
    """Build `llama_context_params` from the build's defaults; None leaves a default.

    `flash_attn` is an enum since b6431 (None: the build's own choice); `kv_unified` exists since
    b6122, before it every cache was unified.
    """
    params = library.lib.llama_context_default_params()
    fields = _fields(library, params)
    if flash_attn is not None:
        values["flash_attn" if "flash_attn" in fields else "flash_attn_type"] = int(flash_attn)
    if "kv_unified" in fields:
        values["kv_unified"] = kv_unified
    _assign(params, values)
    return params


def init_context(library: Library, model: Any, params: Any) -> Any:
    """Create a context; NULL when it failed. C: llama_init_from_model."""
    return call(library, "llama_init_from_model")(model, params)


def memory_call(library: Library, context: Any, verb: str) -> Any:
    """Return `verb(*args)` over the context's memory, whatever the build calls it.

    `kv_cache_*` on the context (until b4980), `kv_self_*` (until b6122), then `memory_*` on the
    handle of `llama_get_memory` (since b5640).
    """
    lib = library.lib
    if library.has(f"llama_memory_{verb}"):
        function = getattr(lib, f"llama_memory_{verb}")
        memory = lib.llama_get_memory(context)
        return lambda *args: function(memory, *args)
    for prefix in ("llama_kv_self_", "llama_kv_cache_"):
        if library.has(prefix + verb):
            function = getattr(lib, prefix + verb)
            if verb == "clear":  # took no `data` flag then
                return lambda _data=True: function(context)
            return lambda *args: function(context, *args)
    raise AttributeError(f"{library!r} has no memory operation {verb!r}")


def chat_template(library: Library, model: Any) -> str | None:
    """Return the model's own chat template. C: llama_model_chat_template, before b4529 metadata."""
    ffi, lib = library.ffi, library.lib
    if library.has("llama_model_chat_template"):
        arguments = len(ffi.typeof(lib.llama_model_chat_template).args)
        # The second argument, a name, came after the function itself.
        text = lib.llama_model_chat_template(model, *([ffi.NULL] * (arguments - 1)))
        return ffi.string(text).decode("utf-8", "replace") if text else None
    key = b"tokenizer.chat_template"
    length = lib.llama_model_meta_val_str(model, key, ffi.NULL, 0)
    if length < 0:
        return None
    buffer = ffi.new("char[]", length + 1)
    lib.llama_model_meta_val_str(model, key, buffer, length + 1)
    return str(ffi.string(buffer).decode("utf-8", "replace"))


def chat_apply_template(
    library: Library, model: Any, template: str, messages: Sequence[tuple[str, str]], add_ass: bool
) -> str | None:
    """Render with llama.cpp's built-in templates; None when it does not know this one.

    C: llama_chat_apply_template, which took the model as first argument until b4529.
    """
    ffi, lib = library.ffi, library.lib
    keep = [(ffi.new("char[]", r.encode()), ffi.new("char[]", c.encode())) for r, c in messages]
    chat = ffi.new("llama_chat_message[]", [{"role": r, "content": c} for r, c in keep])
    takes_model = len(ffi.typeof(lib.llama_chat_apply_template).args) == 7
    first = (model, template.encode()) if takes_model else (template.encode(),)
    length = lib.llama_chat_apply_template(*first, chat, len(keep), add_ass, ffi.NULL, 0)
    if length < 0:
        return None
    buffer = ffi.new("char[]", length + 1)
    lib.llama_chat_apply_template(*first, chat, len(keep), add_ass, buffer, length + 1)
    return bytes(ffi.buffer(buffer, length)).decode("utf-8")


def sampler_penalties(
    library: Library, model: Any, last_n: int, repeat: float, frequency: float, presence: float
) -> Any:
    """Create the penalties sampler.

    C: llama_sampler_init_penalties: 9 arguments until b4435, then 4, 5 with n_vocab since b10361.
    """
    lib = library.lib
    count = len(library.ffi.typeof(lib.llama_sampler_init_penalties).args)
    numbers = (last_n, repeat, frequency, presence)
    if count == 4:
        return lib.llama_sampler_init_penalties(*numbers)
    vocab = vocab_of(library, model)
    n_vocab = call(library, "llama_vocab_n_tokens")(vocab)
    if count == 5:
        return lib.llama_sampler_init_penalties(n_vocab, *numbers)
    eos, newline = lib.llama_token_eos(model), lib.llama_token_nl(model)
    return lib.llama_sampler_init_penalties(n_vocab, eos, newline, *numbers, True, False)


def max_sequences(library: Library) -> int:
    """Return the most sequences of a context. C: llama_max_parallel_sequences, b6122."""
    if library.has("llama_max_parallel_sequences"):
        return int(library.lib.llama_max_parallel_sequences())
    return 64  # LLAMA_MAX_SEQ; older builds have no limit of their own


def kv_unified(library: Library, params: Any) -> bool:
    """Whether the sequences of a context share one cache."""
    return "kv_unified" not in _fields(library, params) or bool(params.kv_unified)


def rope_scaling_types(library: Library) -> list[str]:
    """Return the names that `rope.scaling.type` may have."""
    names: Mapping[str, int] = library.ffi.typeof("enum llama_rope_scaling_type").relements
    prefix = "LLAMA_ROPE_SCALING_TYPE_"
    found = sorted((v, n) for n, v in names.items() if v >= 0 and "MAX" not in n)
    return [name.removeprefix(prefix).lower() for _, name in found]


def tensor_types(library: Library) -> dict[int, str]:
    """Return the tensor types of the build, by number."""
    names: Mapping[int, str] = library.ffi.typeof("enum ggml_type").elements
    return {
        number: name.removeprefix("GGML_TYPE_")
        for number, name in names.items()
        if name != "GGML_TYPE_COUNT"
    }


def max_experts(library: Library) -> int:
    """Return LLAMA_MAX_EXPERTS, which no function tells: measured by loading models."""
    with contextlib.suppress(library.ffi.error):
        library.ffi.typeof("enum llama_lazy_mode")  # v0.4.0
        return 1024
    if library.has("llama_model_n_embd_inp"):  # b7324
        return 512
    if library.has("llama_model_is_diffusion"):  # b6122
        return 384
    return 256 if library.has("llama_model_load_from_file") else 160  # b4435
