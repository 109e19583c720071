"""llama.cpp's constants, and the few C functions that programs use besides `Llama`.

Constants are those of the loaded build; reading one loads the library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import NewType, Protocol, TypeVar
from weakref import WeakValueDictionary

from ..binding import Model, Vocab, get_library
from ..errors import LlamaError, ValidationError
from ._logger import logger

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
    "llama_vocab_p",
]

F = TypeVar("F", bound=Callable[..., object])
_LogFunction = Callable[[int, bytes, object], object]
_log = logging.getLogger(__name__)
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
            tag = library.name
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


llama_vocab_p = NewType("llama_vocab_p", int)
"""A vocabulary, as a number: plug-ins hand it back to the functions here and in `_lib`."""
_vocabs: WeakValueDictionary[int, Vocab] = WeakValueDictionary()


def llama_model_get_vocab(model: Model) -> llama_vocab_p:
    """Return the vocabulary of `Llama.model`, which has to stay open."""
    _vocabs[id(model.vocab)] = model.vocab
    return llama_vocab_p(id(model.vocab))


def _vocab(number: int) -> Vocab:
    try:
        return _vocabs[number]
    except (KeyError, TypeError):
        raise ValidationError(
            f"vocab={number!r} must come from llama_model_get_vocab(model) of a model that is "
            "still open"
        ) from None


def llama_vocab_n_tokens(vocab: llama_vocab_p) -> int:
    """Return the number of tokens."""
    return _vocab(vocab).n_tokens


def llama_vocab_bos(vocab: llama_vocab_p) -> int:
    """Return the beginning-of-sequence token; -1: none."""
    token = _vocab(vocab).bos
    return -1 if token is None else token


def llama_vocab_eos(vocab: llama_vocab_p) -> int:
    """Return the end-of-sequence token; -1: none."""
    token = _vocab(vocab).eos
    return -1 if token is None else token


def llama_token_get_attr(vocab: llama_vocab_p, token: int) -> int:
    """Return the attributes of a token, flags of LLAMA_TOKEN_ATTR_*."""
    names = _vocab(vocab).attr(token)
    return sum(__getattr__(f"LLAMA_TOKEN_ATTR_{name.upper()}") for name in names)


class _Text(Protocol):
    """A ctypes pointer to c_char."""

    def __getitem__(self, part: slice, /) -> bytes: ...


class _Tokens(Protocol):
    """A ctypes pointer to c_int32."""

    def __setitem__(self, index: int, token: int, /) -> None: ...


class _Buffer(Protocol):
    """A ctypes array of c_char."""

    def __setitem__(self, part: slice, data: bytes, /) -> None: ...


def llama_token_to_piece(
    vocab: llama_vocab_p, token: int, buf: _Buffer, length: int, lstrip: int, special: bool
) -> int:
    """Write the bytes of a token to *buf*, a ctypes array; return their number.

    As in C, when *length* is too small nothing is written and the number is negative.
    """
    piece = _vocab(vocab).token_to_piece(token, bool(special))
    skip = min(lstrip, len(piece) - len(piece.lstrip(b" ")))
    piece = piece[skip:]
    if len(piece) > length:
        return -len(piece)
    buf[: len(piece)] = piece
    return len(piece)


class _Library:
    """The functions of ctypes' library that plug-ins read as `llama_cpp.llama_cpp._lib`."""

    @cached_property
    def llama_tokenize(self) -> object:
        """C's `llama_tokenize` as a ctypes function, for plug-ins that need its address.

        It takes a `llama_vocab_p`. Unlike C's own it cannot read a vocabulary that was freed.
        """
        import ctypes

        arguments = (
            ctypes.c_size_t, ctypes.POINTER(ctypes.c_char), ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
        )  # fmt: skip

        def tokenize(
            vocab: int, text: _Text, length: int, tokens: _Tokens, n_max: int, *flags: bool
        ) -> int:
            try:
                found = _vocab(vocab).tokenize(text[:length], *flags)
            except LlamaError:  # C's callers cannot catch it
                _log.exception("llama_tokenize failed")
                return 0
            if len(found) > n_max:
                return -len(found)
            for i, token in enumerate(found):
                tokens[i] = token
            return len(found)

        return ctypes.CFUNCTYPE(ctypes.c_int32, *arguments)(tokenize)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"_lib has no {name!r}{_advice(name)}")


_lib = _Library()


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
    for handler in [h for h in logger.handlers if isinstance(h, _Handler)]:
        logger.removeHandler(handler)
    if function is not None:
        logger.addHandler(_Handler(function, data))
