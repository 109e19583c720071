"""A lower bound of the memory that a context takes, and the memory of this machine.

llama.cpp clears a new cache, so one that is too large does not fail: the system kills the
process. Old builds end it themselves (an uncaught std::bad_alloc).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..loading.library import Library

__all__ = ["context_bytes", "memory_bytes"]

_BYTES_PER_CELL = 32  # C's bookkeeping, without the tensors


def context_bytes(
    values: Mapping[str, object], n_ctx: int, n_ubatch: int, cache_bytes: float = 2
) -> int:
    """Return the bytes that a context takes at least: cache, cells and attention mask.

    Args:
        values: The model's metadata. Missing numbers count as 0, and a model that does not keep
            every position (sliding window, latent attention, recurrent) as a tenth.
        n_ctx: Tokens in the cache.
        n_ubatch: Tokens computed together.
        cache_bytes: Bytes per element of the cache; 2 = F16.
    """
    prefix = str(values.get("general.architecture", ""))

    def number(key: str) -> int:
        value = values.get(f"{prefix}.{key}")
        return value if isinstance(value, int) else 0

    heads = number("attention.head_count")
    heads_kv = number("attention.head_count_kv") or (
        0 if f"{prefix}.attention.head_count_kv" in values else heads
    )
    head = number("embedding_length") // heads if heads else 0
    key, value = (number(f"attention.{k}_length") or head for k in ("key", "value"))
    per_token = int(number("block_count") * heads_kv * (key + value) * cache_bytes)
    partial = ("attention.sliding_window", "attention.kv_lora_rank", "ssm.state_size")
    if values.get(f"{prefix}.attention.causal") is False:
        per_token = 0  # no cache, except in the oldest builds
    if any(number(k) for k in partial) or number("full_attention_interval"):
        per_token //= 10
    return n_ctx * (per_token + _BYTES_PER_CELL + min(n_ubatch, n_ctx) * 2)


def memory_bytes(library: Library) -> int:
    """Return the memory of this machine and its devices, within the limits of its container."""
    devices = library.devices if library.has("ggml_backend_dev_get_props") else []
    on_devices = sum(d.memory_total_bytes for d in devices if d.type == "gpu")
    if hasattr(os, "sysconf"):
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        host = sum(d.memory_total_bytes for d in devices if d.type == "cpu") or 2**63
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            host = min(host, int((Path("/sys/fs/cgroup") / limit).read_text()))
        except (OSError, ValueError):
            continue
    return host + on_devices
