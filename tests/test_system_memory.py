"""RAM within the limits of a container, read from fake files of the system."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_cffi.system_memory import SystemMemory, system_memory

_MIB = 2**20
_MEMINFO = "MemTotal: 4096000 kB\nMemFree: 1000 kB\nMemAvailable: 2048000 kB\nSwapFree: 1024 kB\n"
_TOTAL, _FREE, _SWAP = 4096000 * 1024, 2048000 * 1024, 1024 * 1024


def _machine(root: Path, group: str, **files: str) -> Path:
    """Write the files of a machine; `__` in a name is a slash, and `--` a dot."""
    for name, text in {"proc__meminfo": _MEMINFO, "proc__self__cgroup": group, **files}.items():
        path = root / name.replace("__", "/").replace("--", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_limit_the_machine_decides(tmp_path: Path) -> None:
    root = _machine(tmp_path, "0::/", **{"sys__fs__cgroup__memory--max": "max\n"})
    assert system_memory(root) == SystemMemory(_TOTAL, _FREE, "machine", _SWAP)


def test_the_limit_of_a_container_counts_without_pages_of_files(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        "0::/",
        **{
            "sys__fs__cgroup__memory--max": str(512 * _MIB),
            "sys__fs__cgroup__memory--current": str(500 * _MIB),
            "sys__fs__cgroup__memory--stat": f"anon 1\ninactive_file {300 * _MIB}\n"
            f"active_file {100 * _MIB}\nshmem 5\n",
        },
    )
    assert system_memory(root) == SystemMemory(512 * _MIB, 412 * _MIB, "cgroup", 0)


def test_the_groups_above_a_process_limit_it_too(tmp_path: Path) -> None:
    base = "sys__fs__cgroup__user"
    root = _machine(
        tmp_path,
        "0::/user/job\n",
        **{
            f"{base}__memory--max": str(256 * _MIB),
            f"{base}__memory--current": str(56 * _MIB),
            f"{base}__job__memory--max": str(300 * _MIB),
            f"{base}__job__memory--current": str(10 * _MIB),
        },
    )
    assert system_memory(root) == SystemMemory(256 * _MIB, 200 * _MIB, "cgroup", 0)


@pytest.mark.parametrize("where", ["sys__fs__cgroup__memory", "sys__fs__cgroup__memory__box"])
def test_version_1_of_cgroups(tmp_path: Path, where: str) -> None:
    """In a container the path of the group is that of the host, which is not mounted."""
    root = _machine(
        tmp_path,
        "4:cpu:/\n5:memory:/box\n0::/\n",
        **{
            f"{where}__memory--limit_in_bytes": str(512 * _MIB),
            f"{where}__memory--usage_in_bytes": str(100 * _MIB),
            f"{where}__memory--stat": f"total_inactive_file {40 * _MIB}\n",
        },
    )
    assert system_memory(root) == SystemMemory(512 * _MIB, 452 * _MIB, "cgroup", 0)


def test_systems_that_do_not_tell(tmp_path: Path) -> None:
    assert system_memory(tmp_path) is None


def test_this_machine() -> None:
    found = system_memory()
    assert found is None or 2**26 < found.free_bytes <= found.total_bytes
