"""What C's log tells about the memory of a model and its context."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["MemoryLines", "is_about_memory", "parse_lines"]

_MIB = 2**20
_BUFFER = re.compile(r": +(\S+) +(KV|RS|output|compute) buffer size = +([\d.]+) MiB")
_LAYER = re.compile(r"layer +(\d+) assigned to device (\S+?),? ")
_OVERRIDE = re.compile(r"tensor (\S+) \(.*\) buffer type overridden to (\S+)")
_CACHED = re.compile(r"(\w+)[:,] layer +\d+: dev = (\S+)")
# llama_kv_cache: size = 2.00 MiB ( 2048 cells, 2 layers, 2/2 seqs), K (f16): 1.00 MiB, ...
_CACHE = re.compile(r"(\w+): size = +([\d.]+) MiB \( *\d+ cells")
_PART = re.compile(r"\(\w+\): +([\d.]+) MiB")
_NOT_REPACKED = re.compile(
    r"tensor '(.*)' \(\w+\) \(and (\d+) others\) cannot be used with preferred buffer type (\S+),"
)
_LAYOUTS = ("REPACK", "AMX")  # buffer types of the CPU with a layout of their own
_ALL = (_BUFFER, _LAYER, _OVERRIDE, _CACHED, _CACHE, _NOT_REPACKED)


@dataclass(frozen=True)
class MemoryLines:
    """Sizes in bytes and places, as C logged them.

    Attributes:
        buffers: (kind, buffer type) -> bytes; the kinds are `output`, `compute`, and `KV` and
            `RS` where they are allocated.
        caches: (kind, device) -> bytes of the caches, also of those that are not allocated.
        layers: Layer -> device; one more than the layers is the output.
        overrides: Tensor -> buffer type, for those that are placed on their own.
        n_not_repacked: Tensors whose layout is kept, on the CPU.
    """

    buffers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    caches: Mapping[tuple[str, str], int] = field(default_factory=dict)
    layers: Mapping[int, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    n_not_repacked: int | None = None


def is_about_memory(line: str) -> bool:
    """Whether `parse_lines` reads *line*."""
    return any(pattern.search(line) for pattern in _ALL)


def parse_lines(lines: Iterable[str]) -> MemoryLines:
    """Return what the lines of one load and one context tell; others are left out."""
    buffers: dict[tuple[str, str], int] = {}
    caches: dict[tuple[str, str], int] = {}
    layers: dict[int, str] = {}
    overrides: dict[str, str] = {}
    not_repacked: int | None = None
    devices: list[str] = []  # of the layers of the cache whose size follows
    for line in lines:
        if found := _BUFFER.search(line):
            key = found[2], found[1]
            buffers[key] = buffers.get(key, 0) + _bytes(found[3])
        elif found := _LAYER.search(line):
            layers[int(found[1])] = found[2]
        elif found := _OVERRIDE.search(line):
            overrides[found[1]] = found[2]
        elif found := _CACHED.search(line):
            devices.append(found[2])
        elif found := _CACHE.search(line):
            kind = "RS" if "recurrent" in found[1] else "KV"
            parts = [_bytes(part) for part in _PART.findall(line)]
            size = max(_bytes(found[2]), sum(parts))
            for device in devices or ["CPU"]:
                key = kind, device
                caches[key] = caches.get(key, 0) + size // max(1, len(devices))
            devices = []
        elif (found := _NOT_REPACKED.search(line)) and found[3].endswith(_LAYOUTS):
            not_repacked = (not_repacked or 0) + 1 + int(found[2])
    return MemoryLines(buffers, caches, layers, overrides, not_repacked)


def _bytes(mib: str) -> int:
    return round(float(mib) * _MIB)
