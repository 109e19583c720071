"""The low-level API: every C object of llama.cpp as one Python class.

This is the only package that uses cffi; everything above works with Python values.
`get_library()` returns the loaded build, whose `.lib` and `.ffi` are the raw C API.

C is called in a few unusual ways. Each is explained where it is used:

- The build is identified before anything is declared: its default-params functions are called
  with a prefilled buffer as the hidden result pointer, and the written bytes are compared with
  every known class. `loading/probe.py`, `loading/abi.py`
- A C function serves as a callback where Python must not run: `ggml_is_scalar` polls the abort
  flag without the GIL (`context/abort_flag.py`), `ggml_op_name` swallows log lines at exit
  (`_redirect_logs` in `loading/library.py`), `llama_sampler_get_seed` is the apply function of
  samplers that have none (`sampling/custom_sampler.py`).
- The log callback joins lines, passes them to `logging`, and keeps a Ctrl-C that arrives inside
  it. `loading/logs.py`
- Python exceptions pass C frames in an `ExceptionRelay`. `callbacks.py`
- A C object is freed once its owner and all objects below it are gone, in any order of garbage
  collection; `hold()` defers that during a call. `native_object.py`
- A forked child loses every C object without a call to C, and C's functions raise.
  `native_object.py`, `_after_fork_in_child` in `loading/library.py`
- Each context has a persistent thread pool attached. `context/threadpool.py`
- After positions were shifted or adapters changed, the next llama_decode ignores the abort flag,
  or is preceded by one with a different graph. `context/decode_call.py`
- Tokenizing long runs of characters happens in a thread with a large stack, for C's recursive
  regexes. `model/deep_stack.py`
- Buffers of structs that C fills, and interfaces that it reads, are larger than declared, since a
  newer build may have more fields. `devices` in `loading/library.py`, `sampling/custom_sampler.py`
- Quantizing runs in a child process, because C cannot be interrupted there. `model/quantize.py`
- numpy preselects candidates, so that C does not sort the vocabulary. `sampling/topk_preselect.py`
- What C would abort on is checked before the call. `model/preflight.py`, `model/tensor_rules.py`,
  `context/params.py`, `context/batch_checks.py`
- Unusual models are first tried in a child process. `model/trial.py`
- whisper.cpp's library and objects follow the same rules. `whisper/`
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
from .multimodal import MediaChunk, Projector
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
    "MediaChunk",
    "Memory",
    "Model",
    "NativeObject",
    "Perf",
    "Projector",
    "SamplerChain",
    "Vocab",
    "get_library",
    "load_control_vector",
]
