"""The only room that knows cffi: every C object of llama.cpp wrapped once.

Everything above speaks Python values. `get_library()` gives the loaded build; its `.lib` and
`.ffi` are the raw C API for whatever is not wrapped.
"""

from .context.abort_flag import AbortFlag
from .context.adapters import LoraAdapter, load_control_vector
from .context.batch import Batch
from .context.context import Context
from .context.memory import Memory
from .context.perf import Perf
from .loading.library import Device, Library, get_library
from .model.model import Model
from .model.vocab import Vocab
from .native_object import NativeObject
from .sampling.candidates import Candidates
from .sampling.chain import SamplerChain
from .sampling.custom_sampler import CustomSampler
from .sampling.grammar import Grammar

__all__ = [
    "AbortFlag",
    "Batch",
    "Candidates",
    "Context",
    "CustomSampler",
    "Device",
    "Grammar",
    "Library",
    "LoraAdapter",
    "Memory",
    "Model",
    "NativeObject",
    "Perf",
    "SamplerChain",
    "Vocab",
    "get_library",
    "load_control_vector",
]
