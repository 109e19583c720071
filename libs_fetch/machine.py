"""Detect this machine and the builds it can run: OS, CPU, libc, CUDA driver, Vulkan, Metal.

Nothing here starts a process or initialises a GPU; the CUDA driver only reports its version.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Machine",
    "arch_name",
    "boot_id",
    "cpu_identity",
    "detect",
    "fingerprint",
    "glibc",
    "os_name",
    "physical_cores",
    "usable_cpus",
]

_ARCHES = {
    "x86_64": "x64",
    "amd64": "x64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv7l": "armv7l",
    "armv8l": "armv7l",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
_GPU_NODES = ("nvidia0", "nvidiactl", "dxg", "nvhost-ctrl-gpu", "nvmap")


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        os: `linux`, `mac`, `win`, or Python's own name of another system.
        arch: Architecture of the Python process: `x64`, `arm64`, …
        libc: `glibc` or `musl`; empty outside Linux.
        libc_version: Version of glibc, else empty.
        cpu: Name of the CPU model.
        physical_cores: Physical cores that this process may use.
        usable_cpus: Logical CPUs that this process may use: its affinity, and its cgroup's quota.
        cuda_driver: The newest CUDA version that the driver supports, such as `(13, 0)`; None
            without a usable driver.
        vulkan: Whether there is a Vulkan loader.
        metal: Whether Metal works.
        variants: Build variants that can run, best first.
        refused: Why each of the other variants cannot.
    """

    os: str
    arch: str
    libc: str
    libc_version: str
    cpu: str
    physical_cores: int
    usable_cpus: int
    cuda_driver: tuple[int, int] | None
    vulkan: bool
    metal: bool
    variants: tuple[str, ...]
    refused: Mapping[str, str]

    @property
    def musl(self) -> bool:
        """Whether the C library is musl (Alpine), for which there are no prebuilt libraries."""
        return self.libc == "musl"


def os_name() -> str:
    """Return `linux`, `mac` or `win`, or Python's own name of another system."""
    return {"darwin": "mac", "win32": "win"}.get(sys.platform, sys.platform)


def _raw_arch() -> str:
    if hasattr(os, "uname"):
        return os.uname().machine.lower()
    import sysconfig  # gives the interpreter's own: on Windows on Arm it may be an x64 build

    return sysconfig.get_platform().rpartition("-")[2].lower()


def arch_name() -> str:
    """Return the architecture of this Python process as build names spell it."""
    raw = _raw_arch()
    arch = _ARCHES.get(raw, raw)
    if arch == "arm64" and os_name() == "linux" and sys.maxsize < 2**32:
        return "armv7l"  # 32-bit userland on a 64-bit kernel
    return arch


def glibc() -> tuple[str, str]:
    """Return the C library and its version, `("glibc", "2.36")` or `("musl", "")`."""
    if os_name() != "linux":
        return "", ""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        name, version = "", ""
    return ("glibc", version) if name == "glibc" else ("musl", "")


def fingerprint() -> str:
    """Return a string of everything that the choice of a variant depends on.

    A remembered choice stays valid while this does not change: driver, GPU device nodes, dynamic
    linker cache, search path, NVIDIA wheels beside the interpreter. Takes well under 1 ms.
    """
    parts = [sys.platform, _raw_arch(), *glibc()]
    if os_name() == "linux":
        parts += [_stamp("/etc/ld.so.cache"), _stamp("/proc/driver/nvidia/version", content=True)]
        parts += [node for node in _GPU_NODES if os.path.exists(f"/dev/{node}")]
        parts.append(str(_render_nodes()))
    elif os_name() == "win":
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32")
        parts += [_stamp(str(system / name)) for name in ("nvcuda.dll", "vulkan-1.dll")]
    parts += [os.environ.get(name, "-") for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")]
    parts += [_stamp(os.path.join(entry, "nvidia")) for entry in sys.path if entry]
    return "|".join(part for part in parts if part)


def boot_id() -> str:
    """Return what identifies the running system since its boot; empty outside Linux."""
    return _stamp("/proc/sys/kernel/random/boot_id", content=True)


def _stamp(path: str, content: bool = False) -> str:
    try:
        if content:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.readline().strip()
        return str(os.stat(path).st_mtime_ns)
    except OSError:
        return ""


def _render_nodes() -> list[str]:
    try:
        return sorted(name for name in os.listdir("/dev/dri") if name.startswith("renderD"))
    except OSError:
        return []


@functools.lru_cache(maxsize=1)
def _cuda_driver() -> tuple[tuple[int, int] | None, str]:
    """Ask libcuda for the driver's CUDA version; the string says why there is none."""
    import ctypes

    name = "nvcuda.dll" if os_name() == "win" else "libcuda.so.1"
    if os_name() == "mac":
        return None, "macOS has no CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None, "CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None, f"no NVIDIA driver ({name} is not on this machine)"
    version = ctypes.c_int(0)
    try:
        status = driver.cuDriverGetVersion(ctypes.byref(version))
    except AttributeError:
        return None, f"{name} has no cuDriverGetVersion"
    if status != 0 or version.value <= 0:
        return None, f"the NVIDIA driver reports no version (cuDriverGetVersion: {status})"
    if os_name() == "linux" and not any(os.path.exists(f"/dev/{node}") for node in _GPU_NODES):
        return None, "an NVIDIA driver library but no GPU (/dev/nvidia* is missing)"
    return (version.value // 1000, version.value % 1000 // 10), ""


@functools.lru_cache(maxsize=1)
def _vulkan_loader() -> str:
    """Say why the Vulkan loader cannot be used; empty if it can."""
    import ctypes

    name = {"win": "vulkan-1.dll", "mac": "libvulkan.1.dylib"}.get(os_name(), "libvulkan.so.1")
    try:
        ctypes.CDLL(name)
    except OSError:
        return f"no Vulkan loader ({name}; on Debian and Ubuntu: apt install libvulkan1)"
    return ""


def _vulkan_device() -> str:
    """Say why there cannot be a Vulkan GPU; empty if there may be one."""
    if os_name() == "linux" and not (
        _render_nodes() or any(os.path.exists(f"/dev/{node}") for node in _GPU_NODES)
    ):
        return "a Vulkan loader but no GPU (/dev/dri/renderD* is missing)"
    return ""


def _cpu_name() -> str:
    if os_name() == "linux":
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        for key in ("model name", "Model", "Hardware", "uarch"):
            for line in text.splitlines():
                name, colon, value = line.partition(":")
                if colon and name.strip() == key:
                    return value.strip()
    return _raw_arch()


@functools.lru_cache(maxsize=1)
def cpu_identity() -> str:
    """Return the name of the CPU model, and a digest of its features where the system lists them.

    The same name may stand for different features: a hypervisor can hide some.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    features = re.search(r"(?m)^(?:flags|Features|isa)\s*:(.*)$", text)
    if features is None:
        return _cpu_name()
    words = " ".join(sorted(features[1].split()))
    return f"{_cpu_name()} {zlib.crc32(words.encode()):08x}"


def physical_cores() -> int:
    """Count the physical cores among the CPUs this process may use.

    Of a quota only whole CPUs count: threads that wait for each other by spinning use it up, and
    then all of them stop until the next period.
    """
    usable = usable_cpus()
    if os_name() == "linux":
        cores = set()
        for cpu in os.sched_getaffinity(0):
            path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            cores.add(_stamp(path, content=True) or str(cpu))
        return max(1, math.floor(min(len(cores), _cpu_quota(Path("/")))))
    if os_name() == "mac":
        import ctypes

        try:
            libc = ctypes.CDLL(None)
            value, size = ctypes.c_int(0), ctypes.c_size_t(4)
            name = b"hw.physicalcpu"
            if libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0) == 0:
                return value.value or usable
        except (OSError, AttributeError):
            pass
    return usable


def usable_cpus() -> int:
    """Count the logical CPUs that this process may use: its affinity, and its cgroup's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _cpu_quota(Path("/")))))


def _cpu_quota(root: Path) -> float:
    """Return how many CPUs' time the cgroups of this process have; infinite without a limit.

    Args:
        root: Where `proc` and `sys` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / "cpu"
        else:
            continue
        # In a container the path may be the host's, and its own limit is that of the mount.
        folder = mount / group.strip("/")
        for place in (folder, *folder.parents):
            quota = min(quota, _quota_of(place))
            if place == mount:
                break
    return quota


def _quota_of(cgroup: Path) -> float:
    """Return the quota of one cgroup, of version 2 or 1, in CPUs."""
    limit, _, period = _stamp(str(cgroup / "cpu.max"), content=True).partition(" ")
    if not limit:
        limit = _stamp(str(cgroup / "cpu.cfs_quota_us"), content=True)
        period = _stamp(str(cgroup / "cpu.cfs_period_us"), content=True)
    try:
        quota = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        return math.inf  # "max", or there is no such file
    return quota if quota > 0 else math.inf  # -1: no limit


def detect() -> Machine:
    """Detect this machine, the build variants it can run, and why it cannot run the others."""
    system, arch = os_name(), arch_name()
    libc, libc_version = glibc()
    cuda, no_cuda = _cuda_driver()
    no_loader = _vulkan_loader()
    metal = system == "mac" and arch == "arm64"
    refused: dict[str, str] = {}
    if no_cuda:
        refused["cuda"] = no_cuda
    if no_loader or _vulkan_device():
        refused["vulkan"] = no_loader or _vulkan_device()
    if not metal:
        refused["metal"] = "Metal needs an Apple-silicon Mac"
    variants = ["metal"] if metal else [v for v in ("cuda", "vulkan") if v not in refused]
    if libc == "musl":
        variants = []
        refused["cpu"] = MUSL
    elif not metal:
        variants.append("cpu")
    return Machine(
        os=system,
        arch=arch,
        libc=libc,
        libc_version=libc_version,
        cpu=_cpu_name(),
        physical_cores=physical_cores(),
        usable_cpus=usable_cpus(),
        cuda_driver=cuda,
        vulkan=not no_loader,
        metal=metal,
        variants=tuple(variants),
        refused=refused,
    )


MUSL = (
    "this system uses musl (Alpine), but every prebuilt llama.cpp needs glibc. Use a glibc image "
    "(debian, ubuntu, python:3.x-slim), or build llama.cpp with BUILD_SHARED_LIBS=ON and set "
    "LLAMA_CFFI_LIB to the folder of its libllama.so"
)
