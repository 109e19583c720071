"""A drop-in for llama-cpp-python's module `llama_cpp`.

    import llama_cffi.llama_cpp as llama_cpp

or, for libraries that import `llama_cpp` themselves, before they do:

    import sys, llama_cffi.llama_cpp
    sys.modules["llama_cpp"] = llama_cffi.llama_cpp

Constants and C functions (`llama_supports_mmap()`, ...) load the C library on first use.
"""

from __future__ import annotations

import sys

from . import (
    llama,
    llama_cache,
    llama_chat_format,
    llama_cpp,
    llama_grammar,
    llama_speculative,
    llama_tokenizer,
    llama_types,
)
from .alias import Alias
from .llama import (
    Llama,
    LlamaGrammar,
    LlamaState,
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from .llama_cache import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from .llama_cpp import (
    llama_backend_free,
    llama_backend_init,
    llama_log_callback,
    llama_log_set,
    llama_max_devices,
    llama_model_get_vocab,
    llama_print_system_info,
    llama_supports_gpu_offload,
    llama_supports_mlock,
    llama_supports_mmap,
    llama_supports_rpc,
    llama_time_us,
    llama_token_get_attr,
    llama_token_to_piece,
    llama_vocab_bos,
    llama_vocab_eos,
    llama_vocab_n_tokens,
    llama_vocab_p,
)
from .llama_speculative import LlamaDraftModel
from .llama_tokenizer import BaseLlamaTokenizer, LlamaHFTokenizer, LlamaTokenizer
from .llama_types import *  # noqa: F403  # as llama-cpp-python does

__version__ = "0.3.36"  # llama-cpp-python's, of this interface

__all__ = [
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaHFTokenizer",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "__version__",
    "llama",
    "llama_backend_free",
    "llama_backend_init",
    "llama_cache",
    "llama_chat_format",
    "llama_grammar",
    "llama_log_callback",
    "llama_log_set",
    "llama_max_devices",
    "llama_model_get_vocab",
    "llama_print_system_info",
    "llama_speculative",
    "llama_supports_gpu_offload",
    "llama_supports_mlock",
    "llama_supports_mmap",
    "llama_supports_rpc",
    "llama_time_us",
    "llama_token_get_attr",
    "llama_token_to_piece",
    "llama_tokenizer",
    "llama_types",
    "llama_vocab_bos",
    "llama_vocab_eos",
    "llama_vocab_n_tokens",
    "llama_vocab_p",
]
__all__ += llama_types.__all__

sys.meta_path.insert(0, Alias())  # before the finder of files


def __getattr__(name: str) -> int:
    return llama_cpp.__getattr__(name)
