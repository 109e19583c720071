"""Which device holds which tensor, as llama.cpp places them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations

from ..gguf.reader import GgufSummary, GgufTensor

__all__ = ["assign_layers", "repacked_bytes", "weights_by_device"]

_LAYER = re.compile(r"blk\.(\d+)\.")
_INPUTS = ("token_embd.", "token_types.", "position_embd.", "per_layer_token_embd.")
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
# Types whose layout CPU kernels may change.
# The last three: with AMX only.
_REPACKED = (
    "Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "Q8_0", "Q5_K", "Q6_K", "MXFP4", "Q4_1", "IQ4_XS", "F16",
)  # fmt: skip
HOST = "CPU"


def assign_layers(
    n_layer: int,
    n_gpu_layers: int,
    devices: Mapping[str, int],
    shares: Sequence[float] | None,
) -> list[str]:
    """Return the device of each layer and, last, of the output.

    Args:
        n_layer: Layers without the output.
        n_gpu_layers: How many are on GPUs, from the last on; the output counts as one.
        devices: GPU -> its free bytes.
        shares: Share of each GPU; None: by free bytes.
    """
    names = list(devices)
    if not names or n_gpu_layers <= 0:
        return [HOST] * (n_layer + 1)
    n_offloaded = min(n_gpu_layers, n_layer + 1)
    first = n_layer + 1 - n_offloaded
    weights = [float(share) for share in (shares or ())][: len(names)]
    weights += [0.0] * (len(names) - len(weights))
    if not any(weights):
        weights = [float(devices[name]) for name in names]
    whole = sum(weights) or 1.0
    bounds = list(accumulate(weight / whole for weight in weights))
    places = [HOST] * first
    for i in range(n_offloaded):
        part = i / n_offloaded
        at = next((k for k, bound in enumerate(bounds) if part < bound), len(names) - 1)
        places.append(names[at])
    return places


def weights_by_device(
    gguf: GgufSummary,
    layers: Sequence[str],
    overrides: Mapping[str, str],
    n_cpu_moe: int,
    *,
    loads_mtp: bool = False,
) -> Counter[str]:
    """Return device -> bytes of the weights.

    Args:
        gguf: The header, with the tensors of all parts.
        layers: The device of each layer and, last, of the output.
        overrides: Pattern in a tensor's name -> device.
        n_cpu_moe: Layers whose experts stay on the CPU.
        loads_mtp: Whether the multi-token prediction head is loaded.
    """
    patterns = [
        (compiled, device)
        for pattern, device in overrides.items()
        if (compiled := _compiled(pattern)) is not None
    ]
    if n_cpu_moe:
        which = "|".join(map(str, range(n_cpu_moe)))
        patterns.append((re.compile(rf"blk\.({which}){_EXPERTS}"), HOST))
    heads = gguf.values.get(f"{gguf.architecture}.nextn_predict_layers", 0)
    n_used = len(layers) - 1 - (0 if loads_mtp else int(heads))
    found: Counter[str] = Counter()
    for tensor in gguf.tensors:
        place = _place(tensor, layers, n_used)
        if place is None:
            continue
        for pattern, device in patterns:
            if pattern.search(tensor.name):
                place = device
                break
        found[place] += tensor.size_bytes or 0
    names = {tensor.name: tensor for tensor in gguf.tensors}
    embedding = names.get("token_embd.weight")
    if "output.weight" not in names and embedding is not None and layers[-1] != HOST:
        found[layers[-1]] += embedding.size_bytes or 0  # the output is a copy of it
    return found


def _compiled(pattern: object) -> re.Pattern[str] | None:
    """Return the pattern; None: loading the model tells what is wrong with it."""
    try:
        return re.compile(pattern) if isinstance(pattern, str) else None
    except re.error:
        return None


def _place(tensor: GgufTensor, layers: Sequence[str], n_used: int) -> str | None:
    """Return the device of a tensor; None: it is not loaded."""
    if match := _LAYER.match(tensor.name):
        layer = int(match[1])
        return layers[min(layer, len(layers) - 1)] if layer < n_used else None
    return HOST if tensor.name.startswith(_INPUTS) else layers[-1]


def repacked_bytes(
    gguf: GgufSummary, layers: Sequence[str], n_not_repacked: int | None
) -> tuple[int, int]:
    """Return the bytes of the weights that the CPU copies into another layout.

    And how many of these are a second copy: that of a tied output, where only the output can have
    the layout.

    Args:
        gguf: The header.
        layers: The device of each layer and, last, of the output.
        n_not_repacked: How many tensors keep theirs, as C logs; a tied output counts twice. None:
            C did not log it.
    """
    if n_not_repacked is None:
        return 0, 0
    n_used, kinds, on_host = len(layers) - 1, Counter[str](), 0
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors:
        if _place(tensor, layers, n_used) != HOST:
            continue
        on_host += 1
        name = tensor.type_name
        is_input = tensor.name.startswith(_INPUTS)
        if name in _REPACKED and len(tensor.shape) > 1 and not is_input:
            kinds[name] += 1
            sizes[name] += tensor.size_bytes or 0
    tensors = {tensor.name: tensor for tensor in gguf.tensors}
    tied = None if "output.weight" in tensors else tensors.get("token_embd.weight")
    on_host += "output.weight" not in tensors
    n_repacked = on_host - n_not_repacked
    present = [name for name in _REPACKED if kinds[name]]
    for copied in (None, tied) if tied is not None else (None,):
        for n in range(1, len(present) + 1):
            for chosen in combinations(present, n):
                is_copied = copied is not None and copied.type_name in chosen
                if sum(kinds[name] for name in chosen) + is_copied == n_repacked:
                    extra = (copied.size_bytes or 0) if copied is not None and is_copied else 0
                    return sum(sizes[name] for name in chosen) + extra, extra
    if n_repacked <= 0 or not present:
        return 0, 0
    share = min(n_repacked, sum(kinds.values())) / sum(kinds.values())
    return int(sum(sizes.values()) * share), 0
