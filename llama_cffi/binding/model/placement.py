"""Placement: which devices hold which parts of a model, as C reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ValidationError
from ...gguf.reader import GgufTensor
from ...validation import check_choice, check_float, check_int
from .. import compat
from ..loading.library import Library

__all__ = ["devices_for_c", "overrides_for_c", "shares_for_c", "split_mode_for_c"]

_MAX_PATTERN = 256  # C compiles patterns by recursion
# The weights of the experts, as llama-cli's --cpu-moe selects them.
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_LAYER = re.compile(r"blk\.(\d+)\.")


def split_mode_for_c(library: Library, name: str) -> int:
    """Return the number of a split mode.

    Raises:
        ValidationError: The build has no mode of that name.
    """
    modes: dict[str, int] = library.ffi.typeof("enum llama_split_mode").relements
    known = {m.removeprefix("LLAMA_SPLIT_MODE_").lower(): value for m, value in modes.items()}
    return known[check_choice("split_mode", name, sorted(known, key=known.__getitem__))]


def shares_for_c(library: Library, tensor_split: Sequence[float] | None) -> Any:
    """Return `tensor_split` with one number per possible device; None: by free memory.

    Raises:
        ValidationError: There are too many shares, or none above 0.
    """
    if tensor_split is None:
        return None
    most = int(library.lib.llama_max_devices())
    shares = [check_float("tensor_split", share, 0, 1e30) for share in tensor_split]
    if len(shares) > most:
        raise ValidationError(f"tensor_split has {len(shares)} shares; this build takes {most}")
    if not any(shares):
        raise ValidationError("tensor_split must give at least one device a share above 0")
    return library.ffi.new("float[]", [*shares, *[0.0] * (most - len(shares))])


def devices_for_c(library: Library, names: Sequence[str] | None) -> Any:
    """Return the devices by their names; None: all.

    Raises:
        ValidationError: One does not exist or is given twice, or the build cannot choose.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise ValidationError(f"devices={names!r} must be a list of names, such as [{names!r}]")
    if not compat.supports_devices(library):
        raise ValidationError(
            f"this build cannot choose devices ({compat.newer_build(library)}); n_gpu_layers=0 "
            "uses only the CPU"
        )
    index = {d.name: i for i, d in enumerate(library.devices) if d.type != "cpu"}
    for name in names:
        if name not in index or list(names).count(name) > 1:
            known = ", ".join(index) or "none; the CPU is always used"
            raise ValidationError(f"devices={names!r}: {name!r} is not one of: {known}")
    return compat.device_list(library, [index[name] for name in names])


def overrides_for_c(
    library: Library,
    tensors: Sequence[GgufTensor],
    overrides: Mapping[str, str] | None,
    n_cpu_moe: int,
    devices: Sequence[str] | None,
) -> Any:
    """Return the buffer types of the tensors that are not placed by layer; None: no such tensor.

    Args:
        library: The build.
        tensors: The model's tensors.
        overrides: Pattern in a tensor's name -> device; the first that matches counts.
        n_cpu_moe: Layers whose experts stay on the CPU.
        devices: The devices of the model; None: all.

    Raises:
        ValidationError: A pattern matches no tensor, a device is not one of the model's, or the
            build cannot place single tensors.
    """
    n_cpu_moe = check_int("n_cpu_moe", n_cpu_moe, 0)
    if not overrides and not n_cpu_moe:
        return None
    if not compat.supports_tensor_overrides(library):
        raise ValidationError(
            f"this build cannot place single tensors ({compat.newer_build(library)}); leave out "
            "override_tensors and n_cpu_moe, or lower n_gpu_layers"
        )
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValidationError(f"override_tensors={overrides!r} must map patterns to devices")
    allowed = {
        d.name: i
        for i, d in enumerate(library.devices)
        if d.type == "cpu" or devices is None or d.name in devices
    }
    pairs: list[tuple[str, int]] = []
    for pattern, name in (overrides or {}).items():
        _check_pattern(pattern, tensors)
        if name not in allowed:
            raise ValidationError(
                f"override_tensors[{pattern!r}]={name!r} is not one of: {', '.join(allowed)}"
            )
        pairs.append((pattern, allowed[name]))
    found = (_LAYER.match(tensor.name) for tensor in tensors)
    layers = sorted({int(match[1]) for match in found if match is not None})
    if first := [str(layer) for layer in layers if layer < n_cpu_moe]:
        # One pattern: C compiles each of them anew for every tensor.
        cpu = next(i for i, d in enumerate(library.devices) if d.type == "cpu")
        pairs.append((rf"blk\.({'|'.join(first)}){_EXPERTS}", cpu))
    return compat.tensor_overrides(library, pairs)


def _check_pattern(pattern: object, tensors: Sequence[GgufTensor]) -> None:
    """Refuse a pattern that C cannot compile, or that has no effect."""
    where = f"override_tensors: {pattern!r}"
    if not isinstance(pattern, str) or not pattern or len(pattern) > _MAX_PATTERN:
        raise ValidationError(f"{where} must be a pattern of 1 to {_MAX_PATTERN} characters")
    if not pattern.isascii() or "\0" in pattern:
        raise ValidationError(f"{where} must be ASCII without NUL, as the names of tensors are")
    try:
        compiled = re.compile(pattern)
    except re.error as e:
        raise ValidationError(f"{where} is not a regular expression: {e}") from None
    if not any(compiled.search(tensor.name) for tensor in tensors):
        raise ValidationError(f"{where} matches none of the {len(tensors)} tensors")
