"""The only room that knows cffi: every C object of llama.cpp wrapped once.

Everything above speaks Python values. `get_library()` gives the loaded build; its `.lib` and
`.ffi` are the raw C API for whatever is not wrapped.
"""

from .abort import AbortFlag
from .adapter import LoraAdapter, load_control_vector
from .batch import Batch
from .candidates import Candidates
from .context import Context
from .custom_sampler import CustomSampler
from .grammar import Grammar
from .handle import Handle
from .library import Device, Library, get_library
from .memory import Memory
from .model import Model
from .outputs import Perf
from .sampler import SamplerChain
from .vocab import Vocab

__all__ = [
    "AbortFlag",
    "Batch",
    "Candidates",
    "Context",
    "CustomSampler",
    "Device",
    "Grammar",
    "Handle",
    "Library",
    "LoraAdapter",
    "Memory",
    "Model",
    "Perf",
    "SamplerChain",
    "Vocab",
    "get_library",
    "load_control_vector",
]
