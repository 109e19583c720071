"""What is decided before a model is loaded: automatic sizes, and whether it can fit at all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..binding import Model
from ..errors import OutOfMemoryError
from ..generation.model_source import ModelSource
from ..hub import resolve_model
from ..validation import as_path, warn_caller
from .memory_plan import MemoryPlan, gib
from .planner import Planner, estimate

if TYPE_CHECKING:
    from ..system_memory import SystemMemory

__all__ = ["Fitted", "check_fits", "fit"]

_SLACK, _SLACK_BYTES = 1.25, 64 * 2**20  # what the formulae may be wrong by
_ADVICE = (
    "use a smaller n_ctx or n_parallel, a smaller type_k and type_v (q8_0), or a smaller "
    "quantization; check_memory=False loads it all the same"
)


@dataclass(frozen=True)
class Fitted:
    """What to load.

    Attributes:
        source: The model; a name on the hub has become a path.
        n_ctx: Context size; the caller's, unless that was `"auto"`.
        n_gpu_layers: Layers on the GPU; the same.
    """

    source: ModelSource
    n_ctx: int | None
    n_gpu_layers: int


def fit(source: ModelSource, options: Mapping[str, Any], *, check_memory: bool = True) -> Fitted:
    """Resolve `"auto"`, and refuse what cannot fit, before a model is loaded.

    It costs little where there is plenty of memory: only when it is scarce, or for `"auto"`, is a
    plan measured.

    Args:
        source: The model; the weights of a loaded one do not count.
        options: See `PlanOptions`.
        check_memory: Whether to refuse, and to warn.

    Raises:
        OutOfMemoryError: It cannot fit, with the numbers.
        ModelLoadError: The file is missing or damaged.
        ValidationError: An option is out of range.
    """
    n_ctx, layers = options.get("n_ctx"), options.get("n_gpu_layers", -1)
    is_auto = "auto" in (n_ctx, layers)
    if not (is_auto or check_memory):
        return Fitted(source, n_ctx, layers)
    if not isinstance(source, Model):
        path = source if isinstance(source, str) else as_path("model_path", source)
        source = resolve_model(path)
    if not is_auto and _is_plenty(source, options):
        return Fitted(source, n_ctx, layers)
    with Planner(source, options) as planner:
        plan = planner.plan(limits=False)
        ram = planner.ram
    if check_memory:
        check_fits(plan, ram, is_loaded=isinstance(source, Model))
    return Fitted(
        source,
        plan.n_ctx if n_ctx == "auto" else n_ctx,
        plan.n_gpu_layers if layers == "auto" else layers,
    )


def check_fits(plan: MemoryPlan, ram: SystemMemory | None, *, is_loaded: bool = False) -> None:
    """Refuse a plan that cannot work, and warn of one that may not.

    The RAM is refused only if memory that cannot be dropped, as mapped weights can, does not fit,
    or weights that are larger than all RAM.

    Raises:
        OutOfMemoryError: With the numbers.
    """
    host = plan.devices[0]
    swap = 0 if ram is None else ram.swap_bytes
    limit = "this machine" if ram is None or ram.limit == "machine" else "its cgroup"
    if host.free_bytes is not None:
        fixed = host.needed_bytes - host.mapped_bytes * (not is_loaded)
        if not plan.exact:  # what formulae know for sure
            fixed = host.kv_bytes + host.recurrent_bytes
        if fixed > host.free_bytes + swap:
            parts = ", ".join(
                f"{name} {gib(size)}"
                for name, size in (
                    ("KV cache", host.kv_bytes + host.recurrent_bytes),
                    ("compute", host.compute_bytes),
                    ("weights", max(0, host.weights_bytes - host.mapped_bytes) * (not is_loaded)),
                    ("mmproj", host.mmproj_bytes),
                )
                if size or name in ("KV cache", "compute")
            )
            raise OutOfMemoryError(
                f"{plan.path} with n_ctx={plan.n_ctx} and n_parallel={plan.n_parallel} needs "
                f"{gib(fixed)} of RAM ({parts}), and {limit} has {gib(host.free_bytes + swap)} "
                f"free; {_ADVICE}"
            )
        whole = (host.device_bytes or 2**63) + swap
        if not is_loaded and host.weights_bytes > whole:
            raise OutOfMemoryError(
                f"the weights of {plan.path} take {gib(host.weights_bytes)} of RAM, and {limit} "
                f"has {gib(whole)} in all; use a smaller model or quantization, or put more layers "
                "on a GPU; check_memory=False loads it all the same"
            )
    for device in plan.devices[1:]:
        most = device.free_bytes if sys.platform == "linux" else device.device_bytes
        if plan.exact and most is not None and device.needed_bytes > most:
            raise OutOfMemoryError(
                f"{plan.path} with n_ctx={plan.n_ctx} and n_gpu_layers={plan.n_gpu_layers} needs "
                f"{gib(device.needed_bytes)} on {device.name} ({device.description}), which has "
                f"{gib(device.free_bytes or 0)} free; use n_gpu_layers='auto' or less, or "
                f"{_ADVICE}"
            )
    if not plan.fits:
        warn_caller(f"{plan.path} {plan.verdict}; it may be slow or end this process: {_ADVICE}")


def _is_plenty(source: ModelSource, options: Mapping[str, Any]) -> bool:
    """Whether the formulae alone say that it fits."""
    plan, _ = estimate(source, options)
    return all(
        d.free_bytes is None or d.needed_bytes * _SLACK + _SLACK_BYTES <= d.free_bytes
        for d in plan.devices
    )
