"""Which variants of a build to try on this machine, in which order, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import npm, pins, runtime
from .machine import MUSL, Machine

__all__ = ["AUTO", "Choice", "npm_choice"]

AUTO = "auto"


@dataclass
class Choice:
    """Variants to try, best first, and the reasons collected against others on the way."""

    variants: list[str] = field(default_factory=list)
    against: dict[str, str] = field(default_factory=dict)

    def reason(self, chosen: str) -> str:
        """Put into one sentence why *chosen* was taken."""
        if not self.against:
            return f"{chosen}: the best variant for this machine"
        skipped = "; ".join(f"{variant}: {why}" for variant, why in self.against.items())
        return f"{chosen}, because of {skipped}"


def cuda_problem(major: int, machine: Machine, bundled_runtime: bool = False) -> str:
    """Say why a build for CUDA *major* cannot work here; empty if it can."""
    if machine.cuda_driver is None:
        return machine.refused.get("cuda", "no CUDA driver")
    if machine.cuda_driver[0] < major:
        have = ".".join(map(str, machine.cuda_driver))
        return f"the NVIDIA driver supports CUDA {have}, the build needs {major}; update the driver"
    if bundled_runtime:
        return ""
    _, missing = runtime.cuda_runtime(major)
    if missing:
        return f"{', '.join(missing)} not found; pip install 'llama-cffi[cuda{major}]'"
    return ""


def npm_choice(version: str, backend: str, machine: Machine, *, strict: bool = True) -> Choice:
    """List the npm variants for *backend* on *machine*.

    With *strict* off an explicit backend is listed although this machine cannot run it: that is
    for fetching ahead.
    """
    choice = Choice()
    offered = npm.VARIANTS.get((machine.os, machine.arch), {})
    if machine.musl:
        choice.against["every variant"] = MUSL
        return choice
    if not offered:
        choice.against["npm"] = f"no package for {machine.os}-{machine.arch}"
        return choice
    if backend == AUTO:
        wanted = list(offered)
    elif backend == "cuda":
        wanted = [v for v in offered if v.startswith("cuda")]
    elif backend == "cpu" and "metal" in offered:
        wanted = ["metal"]  # the only build there; it runs on the CPU with n_gpu_layers=0
    else:
        wanted = [v for v in offered if v == backend]
    if not wanted:
        choice.against[backend] = (
            f"no such npm package for {machine.os}-{machine.arch}; there is {', '.join(offered)}"
        )
    for variant in wanted:
        why = _npm_problem(version, variant, machine, explicit=backend != AUTO)
        if why:
            choice.against[variant] = why
        if not why or (backend != AUTO and not strict):
            choice.variants.append(variant)
    return choice


def _npm_problem(version: str, variant: str, machine: Machine, explicit: bool) -> str:
    if variant.startswith("cuda"):
        return cuda_problem(_npm_cuda_major(version, variant), machine)
    if variant == "vulkan":
        # A software Vulkan (lavapipe) is slower than the CPU backend: only on request.
        return machine.refused.get("vulkan", "") if not explicit or not machine.vulkan else ""
    return ""


def _npm_cuda_major(version: str, variant: str) -> int:
    """CUDA 13 since npm 3.15 or where pinned otherwise; before that CUDA 12."""
    for package in npm.VARIANTS["linux", "x64"][variant][-1:]:
        pinned = pins.requirements(version, package).get("cuda")
        if isinstance(pinned, int):
            return pinned
    return 12 if variant == "cuda12" else 13
