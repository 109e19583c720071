"""The memory of a context by formulae, from the header of a model, and the memory of this machine.

llama.cpp clears a new cache, so one that is too large does not fail: the system kills the
process. Old builds end it themselves (an uncaught std::bad_alloc).

Caches and outputs are sums of tensors. The compute buffer is as large as the most that is alive at
one point of the graph: the masks, and the largest of attention, feed-forward and logits. Sizes
and which tensors are alive were measured on builds from b3889 to v0.5.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...gguf.reader import GgufSummary
from ...system_memory import system_memory
from ..compat import MemoryLayout
from ..loading.library import Library

__all__ = [
    "CACHE_TYPES",
    "ContextSizes",
    "context_bytes",
    "context_sizes",
    "memory_bytes",
]

# Cache types that llama.cpp's own programs offer -> bytes per element.
CACHE_TYPES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
_FLOAT = 4
_MAX_LAYERS = 4096
_BYTES_PER_CELL = 32  # C's bookkeeping, without the tensors
_PARTIAL = ("attention.kv_lora_rank", "ssm.state_size")
# Architectures whose last of so many layers has full attention and the others a window; for a
# negative number it is the first. C has these numbers in its source.
_WINDOW_PERIODS = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "smallthinker": -4,
}


@dataclass(frozen=True)
class ContextSizes:
    """Bytes of a context.

    Attributes:
        kv: The KV cache of each layer.
        recurrent: The recurrent states of each layer.
        compute: The compute buffer.
        output: Logits and embeddings.
    """

    kv: tuple[int, ...]
    recurrent: tuple[int, ...]
    compute: int
    output: int

    @property
    def cache(self) -> int:
        """KV cache and recurrent states."""
        return sum(self.kv) + sum(self.recurrent)


def context_sizes(
    gguf: GgufSummary,
    *,
    n_ctx: int,
    n_seq_max: int = 1,
    n_batch: int = 2048,
    n_ubatch: int = 512,
    type_k: str | None = None,
    type_v: str | None = None,
    flash_attn: bool | None = None,
    kv_unified: bool | None = None,
    swa_full: bool | None = None,
    embeddings: bool | None = None,
    layout: MemoryLayout | None = None,
) -> ContextSizes:
    """Return the sizes of a context by formulae.

    Args:
        gguf: The header of the model.
        n_ctx: Tokens in the cache, of all sequences together.
        n_seq_max: See `ContextParams`, as the others.
        n_batch: See `ContextParams`.
        n_ubatch: See `ContextParams`.
        type_k: See `ContextParams`.
        type_v: See `ContextParams`.
        flash_attn: See `ContextParams`; None: the build's default.
        kv_unified: See `ContextParams`.
        swa_full: See `ContextParams`.
        embeddings: See `ContextParams`.
        layout: The build's; None: those of the newest known.
    """
    shape, layout = _Shape(gguf), layout or MemoryLayout()
    flash = layout.flash_attn if flash_attn is None else flash_attn
    flash = flash or type_v not in (None, "f32", "f16", "bf16")
    streams = 1 if kv_unified or not layout.streams else n_seq_max
    n_batch = min(n_ctx, n_batch)
    n_tokens = min(n_batch, n_ubatch)
    pad = layout.pads_to if flash else layout.pads_to_plain
    cells = _padded(-(-n_ctx // streams), pad)
    window_cells = cells
    if layout.windows and swa_full is False and shape.window:
        most = shape.window * (n_seq_max // streams) + n_tokens
        window_cells = min(cells, _padded(most, pad))
    bytes_k, bytes_v = (CACHE_TYPES[name or "f16"] for name in (type_k, type_v))
    kv = [
        int((cells if full else window_cells) * streams * (k * bytes_k + v * bytes_v))
        for full, k, v in zip(shape.is_full, shape.keys, shape.values, strict=True)
    ]
    states = tuple(_FLOAT * n_seq_max * size for size in shape.states)
    n_outputs = min(n_batch, n_seq_max)
    width = shape.n_vocab if shape.causal else 0
    if embeddings or not shape.causal:
        width, n_outputs = width + shape.n_embd, n_batch if embeddings else n_outputs
    graph = _Graph(shape, layout, flash, n_tokens, streams, n_seq_max, cells, window_cells)
    return ContextSizes(tuple(kv), states, graph.peak_bytes(), _FLOAT * width * n_outputs)


def context_bytes(
    gguf: GgufSummary,
    n_ctx: int,
    n_ubatch: int,
    type_k: str | None = None,
    type_v: str | None = None,
) -> int:
    """Return the bytes that a context takes at least: cache, cells and attention mask.

    Layers that do not keep every position (latent attention, recurrent), and all with a sliding
    window, count as a tenth of a full cache.

    Args:
        gguf: The header of the model.
        n_ctx: Tokens in the cache.
        n_ubatch: Tokens computed together.
        type_k: See `ContextParams`.
        type_v: See `ContextParams`.
    """
    shape = _Shape(gguf)
    bytes_k, bytes_v = (CACHE_TYPES[name or "f16"] for name in (type_k, type_v))
    per_token = int(sum(shape.keys) * bytes_k + sum(shape.values) * bytes_v)
    if shape.window or any(shape.number(key) for key in _PARTIAL):
        per_token //= 10
    return n_ctx * (per_token + _BYTES_PER_CELL + min(n_ubatch, n_ctx) * 2)


def memory_bytes(library: Library) -> int:
    """Return the memory of this machine and its devices, within the limits of its container."""
    devices = library.devices if library.has("ggml_backend_dev_get_props") else []
    on_devices = sum(d.memory_total_bytes for d in devices if d.type == "gpu")
    ram = system_memory()
    if ram is not None:
        return ram.total_bytes + on_devices
    return (sum(d.memory_total_bytes for d in devices if d.type == "cpu") or 2**63) + on_devices


class _Shape:
    """The numbers of a model that decide about the memory of its contexts; missing ones are 0."""

    def __init__(self, gguf: GgufSummary) -> None:
        self._gguf = gguf
        self._prefix = gguf.architecture
        self.n_embd = self.number("embedding_length")
        n_layer = self.number("block_count") - self.number("nextn_predict_layers")
        self.n_layer = min(max(0, n_layer), _MAX_LAYERS)  # a damaged file may have any number
        self.causal = gguf.values.get(f"{self._prefix}.attention.causal") is not False
        tokens = gguf.arrays.get("tokenizer.ggml.tokens")
        self.n_vocab = tokens.count if tokens else self.number("vocab_size")
        self.norms_twice = any(".post_ffw_norm." in tensor.name for tensor in gguf.tensors)
        self.window = self.number("attention.sliding_window")
        if self._prefix == "phi3":  # C does not use it
            self.window = 0

    def number(self, key: str) -> int:
        """Return a number of the architecture; of an array its largest."""
        name = f"{self._prefix}.{key}"
        if name in self._gguf.arrays:
            return max((int(n) for n in self._gguf.arrays[name].items), default=0)
        return self._gguf.number(key)

    def per_layer(self, key: str, default: Sequence[int]) -> list[int]:
        """Return a number of each layer."""
        name = f"{self._prefix}.{key}"
        items = self._gguf.arrays[name].items if name in self._gguf.arrays else ()
        if len(items) >= self.n_layer:
            return [int(n) for n in items[: self.n_layer]]
        value = self._gguf.values.get(name)
        return [value] * self.n_layer if isinstance(value, int) else list(default)

    @cached_property
    def heads(self) -> list[int]:
        """Heads of each layer."""
        return self.per_layer("attention.head_count", [0] * self.n_layer)

    @cached_property
    def head(self) -> int:
        """Width of a head, unless the file has it."""
        most = max(self.heads, default=0)
        return self.n_embd // most if most else 0

    @cached_property
    def key_heads(self) -> list[int]:
        """Heads of keys and values that each layer caches."""
        found = self.per_layer("attention.head_count_kv", self.heads)
        if not self.causal:
            return [0] * self.n_layer  # no cache, except in the oldest builds
        if interval := self.number("full_attention_interval"):
            return [n if (i + 1) % interval == 0 else 0 for i, n in enumerate(found)]
        return found

    @cached_property
    def keys(self) -> list[int]:
        """Elements that a token's keys take in each layer."""
        if rank := self._latent:
            return [rank + self.number("rope.dimension_count")] * self.n_layer
        width = self.number("attention.key_length") or self.head
        return [n * width for n in self.key_heads]

    @cached_property
    def values(self) -> list[int]:
        """Elements that a token's values take in each layer."""
        if self._latent:
            return [0] * self.n_layer
        width = self.number("attention.value_length") or self.head
        return [n * width for n in self.key_heads]

    @property
    def _latent(self) -> int:
        """Rank of latent attention that is cached as such; 0: whole keys and values are."""
        is_new = f"{self._prefix}.attention.key_length_mla" in self._gguf.values
        return self.number("attention.kv_lora_rank") if is_new else 0

    @cached_property
    def is_full(self) -> list[bool]:
        """Whether each layer attends to all positions."""
        if not self.window:
            return [True] * self.n_layer
        name = f"{self._prefix}.attention.sliding_window_pattern"
        items = self._gguf.arrays[name].items if name in self._gguf.arrays else ()
        if len(items) >= self.n_layer:
            return [not windowed for windowed in items[: self.n_layer]]
        period = self.number("attention.sliding_window_pattern")
        period = period or _WINDOW_PERIODS.get(self._prefix, 0)
        if not period:  # all have a window
            return [False] * self.n_layer
        last = 0 if period < 0 else period - 1
        return [i % abs(period) == last for i in range(self.n_layer)]

    @cached_property
    def states(self) -> list[int]:
        """Elements of the recurrent state of a sequence in each layer."""
        if short := self.number("shortconv.l_cache"):
            size = self.n_embd * (short - 1)
        elif inner := self.number("ssm.inner_size"):
            n_state, n_group = self.number("ssm.state_size"), self.number("ssm.group_count")
            size = (self.number("ssm.conv_kernel") - 1) * (inner + 2 * n_group * n_state)
            size += n_state * inner
        elif wkv := self.number("wkv.head_size"):
            shifts = 1 if self.number("token_shift_count") == 1 else 2
            size = self.n_embd * (shifts + wkv)
        else:
            return [0] * self.n_layer
        if self._prefix == "falcon-h1":  # each layer has both
            return [size] * self.n_layer
        return [0 if n else size for n in self.key_heads]

    @cached_property
    def n_inner(self) -> int:
        """Width of the recurrent layers."""
        return self.number("ssm.inner_size") or (self.number("shortconv.l_cache") and self.n_embd)


@dataclass(frozen=True)
class _Graph:
    """The graph of one step, by what is alive at the same time."""

    shape: _Shape
    layout: MemoryLayout
    flash: bool
    n_tokens: int
    streams: int
    n_seq_max: int
    cells: int
    window_cells: int

    def peak_bytes(self) -> int:
        """Return the size of the compute buffer."""
        shape, hidden = self.shape, self._floats(self.shape.n_embd)
        mask, copy = self._masks()
        logits = self._floats(shape.n_vocab if shape.causal else 0)
        return max(
            logits + (2 if self.flash else 3) * hidden,  # the masks are free by then
            self._attention(mask, copy, hidden),
            self._feed_forward(mask, copy, hidden),
            mask + self._recurrent(hidden),
        )

    def _floats(self, width: int) -> int:
        return _FLOAT * width * self.n_tokens

    def _masks(self) -> tuple[int, int]:
        """Return the bytes of the masks, and of their copies for flash attention."""
        shape = self.shape
        if not any(shape.keys):
            cells = self.n_tokens if any(shape.heads) else 0
        else:
            cells = self.cells if any(shape.is_full) else 0
            if not all(shape.is_full):
                cells += self.window_cells
        mask = cells * self.n_tokens
        if self.flash and self.layout.half_masks:
            return 2 * mask, 0
        if self.flash:
            mask = cells * self.streams * _padded(-(-self.n_tokens // self.streams), 64)
        return _FLOAT * mask, 2 * mask if self.flash else 0

    def _attention(self, mask: int, copy: int, hidden: int) -> int:
        shape = self.shape
        if not any(shape.heads):
            return 0
        parts = self._heads()
        if self.flash:
            return mask + copy + (4 * hidden if copy else max(3 * hidden + parts, 5 * hidden))
        scores = self._floats(max(shape.heads) * (self.cells if any(shape.keys) else self.n_tokens))
        n_hidden = (4 if self.layout.half_masks else 3) + 2 * shape.norms_twice
        return mask + scores + parts + n_hidden * hidden

    def _heads(self) -> int:
        """Return the bytes of queries, keys and values."""
        shape = self.shape
        head = shape.number("attention.key_length") or shape.head
        heads, key_heads = (max(n, default=0) for n in (shape.heads, shape.key_heads))
        return self._floats((heads + 2 * key_heads) * head)

    def _feed_forward(self, mask: int, copy: int, hidden: int) -> int:
        shape = self.shape
        width = shape.number("feed_forward_length")
        if used := shape.number("expert_used_count"):
            width = used * (shape.number("expert_feed_forward_length") or width)
        wide = self._floats(width)
        parts = (3 if self.layout.streams else 2) * wide
        if not self.flash:
            return mask + parts + (2 + 2 * shape.norms_twice) * hidden + self._heads()
        if not copy:
            return mask + parts + (4 if wide >= 3 * hidden else 2) * hidden
        # Of the mask's place whole tensors can be used.
        return copy + (mask % wide if wide else mask) + parts + 3 * hidden

    def _recurrent(self, hidden: int) -> int:
        shape = self.shape
        if not any(shape.states):
            return 0
        states = _FLOAT * self.n_seq_max * max(shape.states)
        return states + hidden + 6 * self._floats(shape.n_inner)


def _padded(n: int, to: int) -> int:
    return -(-n // to) * to
