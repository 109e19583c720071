"""Choose the variants of a build to try on this machine, best first, and explain the choice."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import pins, runtime
from .machine import MUSL, Machine
from .store import version_key

__all__ = [
    "AUTO",
    "BACKENDS",
    "NPM_VARIANTS",
    "VariantChoice",
    "cuda_problem",
    "github_choice",
    "npm_choice",
]

AUTO = "auto"
# What `backend` may be: all that npm or a release of llama.cpp has had.
BACKENDS = (
    AUTO, "cpu", "cuda", "cuda12", "vulkan", "metal", "rocm", "sycl", "opencl", "openvino", "cann",
    "musa", "kompute", "openblas", "avx512",
)  # fmt: skip
_NPM_CUDA13_SINCE = "3.12.4"

# (os, arch) -> variant -> packages: a complete one, and perhaps an extension that overlays it.
NPM_VARIANTS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("linux", "x64"): {
        "cuda": ("linux-x64-cuda",),
        "cuda12": ("linux-x64-cuda", "linux-x64-cuda-ext"),
        "vulkan": ("linux-x64-vulkan",),
        "cpu": ("linux-x64",),
    },
    ("linux", "arm64"): {"cpu": ("linux-arm64",)},
    # No linux-armv7l: its packages contain x64 (3.5.0, 3.14.0) or arm64 (3.22.1) libraries.
    ("linux", "riscv64"): {"cpu": ("linux-riscv64",)},
    ("mac", "arm64"): {"metal": ("mac-arm64-metal",)},
    ("mac", "x64"): {"cpu": ("mac-x64",)},
    ("win", "x64"): {
        "cuda": ("win-x64-cuda",),
        "cuda12": ("win-x64-cuda", "win-x64-cuda-ext"),
        "vulkan": ("win-x64-vulkan",),
        "cpu": ("win-x64",),
    },
    ("win", "arm64"): {"cpu": ("win-arm64",)},
}


@dataclass
class VariantChoice:
    """The variants to try on a machine.

    Attributes:
        backend: The requested backend, or `auto`.
        variants: Variants to try, best first.
        rejected: Reason by rejected variant; grows as variants are tried.
        offered: False if the source has no such variant for this OS and architecture.
    """

    backend: str
    variants: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    offered: bool = True

    def reason(self, chosen: str) -> str:
        """Explain in one sentence why *chosen* was taken."""
        if self.backend == chosen:
            problem = self.rejected.get(chosen)
            return f"{chosen}: requested, but {problem}" if problem else f"{chosen}: requested"
        if not self.rejected:
            return f"{chosen}: the best variant for this machine"
        return f"{chosen}, because {self.reasons()}"

    def reasons(self) -> str:
        """List why variants were rejected, each reason once."""
        by_reason: dict[str, list[str]] = {}
        for variant, reason in self.rejected.items():
            by_reason.setdefault(reason, []).append(variant)
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def cuda_problem(major: int, machine: Machine, bundled_runtime: bool = False) -> str:
    """Say why a build for CUDA *major* cannot run here; empty if it can."""
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


def npm_choice(
    version: str, backend: str, machine: Machine, *, strict: bool = True
) -> VariantChoice:
    """Choose the npm variants for *backend* on *machine*.

    Args:
        version: The npm version.
        backend: A backend, or `auto`.
        machine: The machine the build is for.
        strict: Whether to leave out a requested backend that *machine* cannot run. False when
            fetching ahead for another machine.
    """
    choice = VariantChoice(backend)
    offered = dict(NPM_VARIANTS.get((machine.os, machine.arch), {}))
    if version_key(version) < version_key(_NPM_CUDA13_SINCE):
        offered.pop("cuda12", None)
    if machine.musl:
        choice.rejected["every variant"] = MUSL
        return choice
    if not offered:
        choice.rejected["npm"] = f"no package for {machine.os}-{machine.arch}"
        choice.offered = False
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
        choice.offered = False
        choice.rejected[backend] = (
            f"no such npm package for {machine.os}-{machine.arch}; available: {', '.join(offered)}"
        )
    for variant in wanted:
        problem = _npm_problem(version, variant, machine, explicit=backend != AUTO)
        if problem:
            choice.rejected[variant] = problem
        if not problem or (backend != AUTO and not strict):
            choice.variants.append(variant)
    return choice


def github_choice(backend: str, machine: Machine, *, strict: bool = True) -> VariantChoice:
    """Choose the GitHub variants for *backend* on *machine*; a release may lack some of them.

    Args:
        backend: A backend, or `auto`.
        machine: The machine the build is for.
        strict: As for `npm_choice`.
    """
    choice = VariantChoice(backend)
    if machine.musl:
        choice.rejected["every variant"] = MUSL
    elif backend == AUTO:
        choice.variants = list(machine.variants)
        choice.rejected = {v: r for v, r in machine.refused.items() if v in ("cuda", "vulkan")}
    elif backend == "cpu" and machine.metal:
        choice.variants = ["metal"]  # the only build there; it runs on the CPU with n_gpu_layers=0
    else:
        problem = machine.refused.get(backend, "")
        if backend == "vulkan" and machine.vulkan:
            problem = ""
        if problem:
            choice.rejected[backend] = problem
        if not problem or not strict:
            choice.variants = [backend]
    return choice


def _npm_problem(version: str, variant: str, machine: Machine, explicit: bool) -> str:
    for package in NPM_VARIANTS[machine.os, machine.arch][variant]:
        wanted = pins.needs(version, package).get("GLIBC", "0")
        if machine.libc == "glibc" and version_key(wanted) > version_key(machine.libc_version):
            return f"it needs glibc {wanted}, this system has {machine.libc_version}"
    if variant.startswith("cuda"):
        return cuda_problem(_npm_cuda_major(version, variant), machine)
    if variant == "vulkan":
        # Software Vulkan (lavapipe) is slower than the CPU backend: only on request.
        return machine.refused.get("vulkan", "") if not explicit or not machine.vulkan else ""
    return ""


def _npm_cuda_major(version: str, variant: str) -> int:
    """Return the CUDA major version of an npm build; `cuda12` came when `cuda` moved to 13."""
    if variant == "cuda12" or version_key(version) < version_key(_NPM_CUDA13_SINCE):
        return 12
    return 13
