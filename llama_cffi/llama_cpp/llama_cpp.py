"""llama.cpp's constants, and the few C functions that programs use besides `Llama`.

Constants are those of the loaded build; reading one loads the library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from ..binding import Model, Vocab, get_library

__all__ = [
    "llama_backend_free",
    "llama_backend_init",
    "llama_log_callback",
    "llama_log_set",
    "llama_max_devices",
    "llama_model_get_vocab",
    "llama_print_system_info",
    "llama_supports_gpu_offload",
    "llama_supports_mlock",
    "llama_supports_mmap",
    "llama_supports_rpc",
    "llama_time_us",
    "llama_token_get_attr",
    "llama_token_to_piece",
    "llama_vocab_bos",
    "llama_vocab_eos",
    "llama_vocab_n_tokens",
]

F = TypeVar("F", bound=Callable[..., object])
_LogFunction = Callable[[int, bytes, object], object]
_native = logging.getLogger("llama_cffi.native")
_PREFIXES = ("LLAMA_", "GGML_", "GGUF_")
# What to use in place of the C functions that are used most.
_INSTEAD = {
    "llama_batch": "llama_cffi.Batch",
    "llama_decode": "llama_cffi.Context.decode, or Llama.eval",
    "llama_encode": "llama_cffi.Context.encode",
    "llama_get_logits": "Llama.scores, or llama_cffi.Context.logits",
    "llama_get_embeddings": "Llama.embed, or llama_cffi.Embedder",
    "llama_get_memory": "Llama.kv_cache_seq_rm and its like, or llama_cffi.Context.memory",
    "llama_memory": "Llama.kv_cache_seq_rm and its like, or llama_cffi.Context.memory",
    "llama_kv": "Llama.kv_cache_seq_rm and its like, or llama_cffi.Context.memory",
    "llama_sampler": "llama_cffi.SamplerChain",
    "llama_adapter_lora": "Llama.load_lora, or llama_cffi.LoraAdapter",
    "llama_state": "Llama.save_state, or llama_cffi.Context.save_state",
    "llama_model_quantize": "llama_cffi.quantize",
    "llama_model_load": "llama_cffi.Model",
    "llama_load_model": "llama_cffi.Model",
    "llama_tokenize": "Llama.tokenize, or llama_cffi.Model.vocab",
    "llama_model": "llama_cffi.Model",
    "llama_vocab": "llama_cffi.Model.vocab",
    "llama_token": "llama_cffi.Model.vocab",
    "llama_context": "llama_cffi.Context",
    "llama_numa": "the command numactl",
    "json_schema_to_gbnf": "LlamaGrammar.from_json_schema",
}


def __getattr__(name: str) -> int:
    if name.isupper() and name.startswith(_PREFIXES):
        library = get_library()
        value = getattr(library.lib, name, None)
        if not isinstance(value, int):
            tag = library.build.tag or library.path.name
            raise AttributeError(f"the loaded build of llama.cpp ({tag}) has no constant {name}")
        return value
    raise AttributeError(f"{__name__} has no {name!r}{_advice(name)}")


def _advice(name: str) -> str:
    if not name.startswith(("llama_", "ggml_", "gguf_", "mtmd_", "json_schema_to")):
        return ""
    known = [key for key in _INSTEAD if name.startswith(key)]
    use = f"use {_INSTEAD[max(known, key=len)]}; " if known else ""
    return (
        f": C functions with ctypes pointers are not supported; {use}"
        "llama_cffi.get_library().lib is the C library through cffi"
    )


def llama_backend_init() -> None:
    """Load the library; every other call does so, too."""
    get_library()


def llama_backend_free() -> None:
    """Do nothing: the library stays loaded until the process ends."""


def llama_supports_gpu_offload() -> bool:
    """Return whether layers can go to a GPU. C: llama_supports_gpu_offload."""
    return bool(get_library().lib.llama_supports_gpu_offload())


def llama_supports_mmap() -> bool:
    """Return whether model files can be memory-mapped. C: llama_supports_mmap."""
    return bool(get_library().lib.llama_supports_mmap())


def llama_supports_mlock() -> bool:
    """Return whether the weights can be locked in RAM. C: llama_supports_mlock."""
    return bool(get_library().lib.llama_supports_mlock())


def llama_supports_rpc() -> bool:
    """Return whether RPC backends are supported; False before b4529. C: llama_supports_rpc."""
    supports = getattr(get_library().lib, "llama_supports_rpc", None)
    return bool(supports is not None and supports())


def llama_max_devices() -> int:
    """Return the maximum number of devices. C: llama_max_devices."""
    return int(get_library().lib.llama_max_devices())


def llama_time_us() -> int:
    """Return a clock in microseconds, from an arbitrary start. C: llama_time_us."""
    return int(get_library().lib.llama_time_us())


def llama_print_system_info() -> bytes:
    """Return the features of the loaded build. C: llama_print_system_info."""
    library = get_library()
    return bytes(library.ffi.string(library.lib.llama_print_system_info()))


def llama_model_get_vocab(model: Model) -> Vocab:
    """Return the vocabulary of `Llama.model`."""
    return model.vocab


def llama_vocab_n_tokens(vocab: Vocab) -> int:
    """Return the number of tokens."""
    return vocab.n_tokens


def llama_vocab_bos(vocab: Vocab) -> int:
    """Return the beginning-of-sequence token; -1: none."""
    return -1 if vocab.bos is None else vocab.bos


def llama_vocab_eos(vocab: Vocab) -> int:
    """Return the end-of-sequence token; -1: none."""
    return -1 if vocab.eos is None else vocab.eos


def llama_token_get_attr(vocab: Vocab, token: int) -> int:
    """Return the attributes of a token, flags of LLAMA_TOKEN_ATTR_*."""
    return sum(__getattr__(f"LLAMA_TOKEN_ATTR_{name.upper()}") for name in vocab.attr(token))


class _Buffer(Protocol):
    """A ctypes array of c_char."""

    def __setitem__(self, part: slice, data: bytes, /) -> None: ...


def llama_token_to_piece(
    vocab: Vocab, token: int, buf: _Buffer, length: int, lstrip: int, special: bool
) -> int:
    """Write the bytes of a token to *buf*, a ctypes array; return their number.

    As in C, when *length* is too small nothing is written and the number is negative.
    """
    piece = vocab.token_to_piece(token, bool(special))
    skip = min(lstrip, len(piece) - len(piece.lstrip(b" ")))
    piece = piece[skip:]
    if len(piece) > length:
        return -len(piece)
    buf[: len(piece)] = piece
    return len(piece)


def llama_log_callback(function: F) -> F:
    """Return *function* unchanged; llama-cpp-python's is a decorator."""
    return function


class _Handler(logging.Handler):
    def __init__(self, function: _LogFunction, data: object) -> None:
        super().__init__()
        self._function, self._data = function, data

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10, 1), 4)  # ggml: 1 debug, 2 info, 3 warning, 4 error
        self._function(level, f"{record.getMessage()}\n".encode(), self._data)


def llama_log_set(function: _LogFunction | None, data: object = None) -> None:
    """Call *function* with level, text and *data* for every message of C; None: stop that.

    It becomes a handler of the logger `llama_cffi.native`; nothing is printed either way.
    """
    for handler in [h for h in _native.handlers if isinstance(h, _Handler)]:
        _native.removeHandler(handler)
    if function is not None:
        _native.addHandler(_Handler(function, data))
