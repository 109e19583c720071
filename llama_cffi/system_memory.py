"""The RAM that this process can get: of the machine, and within the limits of its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SystemMemory", "system_memory"]

_UNLIMITED = 2**60  # cgroup v1 writes the largest multiple of a page
# Files of version 2 and 1: limit, usage, and the keys of memory.stat that can be dropped: pages of
# files, such as a model's that is mapped.
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


@dataclass(frozen=True)
class SystemMemory:
    """RAM in bytes.

    Attributes:
        total_bytes: Of the machine, or the limit of the control group if that is less.
        free_bytes: What can be allocated without taking it from programs: MemAvailable, or what
            the control group leaves if that is less. Pages of files count as free.
        limit: What decides about `free_bytes`: `machine` or `cgroup`.
        swap_bytes: Free swap of the machine; 0 where a control group decides.
    """

    total_bytes: int
    free_bytes: int
    limit: str
    swap_bytes: int


def system_memory(root: Path = Path("/")) -> SystemMemory | None:
    """Return the RAM of this machine; None where the system does not tell (it is for Linux).

    Args:
        root: The folder with `proc` and `sys`.
    """
    machine = _meminfo(root)
    if machine is None:
        return _of_sysconf() if root == Path("/") else None
    total, free, swap = machine
    limit = "machine"
    for most, left in _cgroups(root):
        total = min(total, most)
        if left < free + swap:
            free, swap, limit = min(free, left), 0, "cgroup"
    return SystemMemory(total, free, limit, swap)


def _meminfo(root: Path) -> tuple[int, int, int] | None:
    """Return total, available and swap."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        number = value.split()
        if number and number[0].isdigit():
            found[name] = int(number[0]) * 1024
    total = found.get("MemTotal")
    free = found.get("MemAvailable", found.get("MemFree"))
    return None if total is None or free is None else (total, free, found.get("SwapFree", 0))


def _of_sysconf() -> SystemMemory | None:
    if not hasattr(os, "sysconf"):
        return None
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    return SystemMemory(total, total, "machine", 0)


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit of each control group of this process, and what it leaves."""
    for folder, (limit, usage, keys) in _folders(root):
        most = _number(folder / limit)
        if most is None or most >= _UNLIMITED:
            continue
        used = _number(folder / usage) or 0
        yield most, max(0, most - max(0, used - _reclaimable(folder, keys)))


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]]]]:
    """Yield the folder of each group that limits memory, from the process's own to the root's."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", "1:memory:/"]
    mount = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base, names = mount, _V2
        elif "memory" in controllers.split(","):
            base, names = mount / "memory", _V1
        else:
            continue
        # In a container the path may be that of the host, which is not mounted: its root is then
        # the container's own group.
        folder = base / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder, names
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent


def _reclaimable(folder: Path, keys: tuple[str, str]) -> int:
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in keys)
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max"
        return None
