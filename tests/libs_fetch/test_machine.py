from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.libs_fetch import Machine, detect, machine


class Driver:
    """A libcuda that reports a version."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, pointer: Any) -> int:  # noqa: N802
        pointer._obj.value = self.version
        return self.status


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that this is a Linux machine with the given libraries and device nodes."""

    def install(libraries: dict[str, Any], nodes: tuple[str, ...] = ()) -> Machine:
        def load(name: str, *_: Any, **__: Any) -> Any:
            if name not in libraries:
                raise OSError(name)
            return libraries[name]

        monkeypatch.setattr(ctypes, "CDLL", load)
        exists = os.path.exists
        monkeypatch.setattr(
            os.path,
            "exists",
            lambda p: p[5:] in nodes if str(p).startswith("/dev/") else exists(p),
        )
        monkeypatch.setattr(
            machine, "_render_nodes", lambda: [n for n in nodes if n.startswith("renderD")]
        )
        machine._cuda_driver.cache_clear()
        machine._vulkan_loader.cache_clear()
        return detect()

    monkeypatch.setattr(machine, "os_name", lambda: "linux")
    monkeypatch.setattr(machine, "arch_name", lambda: "x64")
    monkeypatch.setattr(machine, "glibc", lambda: ("glibc", "2.39"))
    return install


def test_this_machine() -> None:
    found = detect()
    assert found.os == {"linux": "linux", "darwin": "mac", "win32": "win"}[sys.platform]
    assert found.arch in ("x64", "arm64")
    assert 1 <= found.physical_cores <= found.usable_cpus <= (os.cpu_count() or 1)
    assert found.cpu
    assert set(found.variants).isdisjoint(found.refused)
    if sys.platform == "linux":
        assert (found.libc, found.musl) == ("glibc", False)
        assert found.libc_version.count(".") == 1


def cgroups(root: Path, groups: str, files: dict[str, str]) -> float:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return machine._cpu_quota(root)


V1 = "5:cpuacct,cpu:/docker/1\n1:name=systemd:/docker/1\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("", {"cpu.max": "100000 100000"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "400000 100000"}, 2),
        ("0::/not/seen\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "many 0"}, math.inf),
        ("0::/\n", {"cpu.max": "1 0"}, math.inf),
        (V1, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        (
            V1,
            {
                "cpu/docker/1/cpu.cfs_quota_us": "250000",
                "cpu/docker/1/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
    ],
)
def test_the_quota_of_a_container_is_read(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float
) -> None:
    assert cgroups(tmp_path, groups, files) == expected


def test_processors_are_those_of_affinity_and_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "os_name", lambda: "linux")
    for quota, expected in {math.inf: 8, 9: 8, 2.5: 3, 2: 2, 0.1: 1}.items():
        monkeypatch.setattr(machine, "_cpu_quota", lambda _, quota=quota: quota)
        assert machine.usable_cpus() == expected
        assert 1 <= machine.physical_cores() <= expected


def test_a_cuda_machine(gpu: Any) -> None:
    found = gpu({"libcuda.so.1": Driver(12080), "libvulkan.so.1": object()}, ("nvidia0",))
    assert found.cuda_driver == (12, 8)
    assert found.variants == ("cuda", "vulkan", "cpu")
    assert "cuda" not in found.refused


def test_a_vulkan_machine(gpu: Any) -> None:
    found = gpu({"libvulkan.so.1": object()}, ("renderD128",))
    assert found.variants == ("vulkan", "cpu")
    assert found.refused["cuda"] == "no NVIDIA driver (libcuda.so.1 is not on this machine)"


def test_a_loader_without_a_gpu(gpu: Any) -> None:
    found = gpu({"libvulkan.so.1": object(), "libcuda.so.1": Driver(13000)})
    assert found.vulkan
    assert found.variants == ("cpu",)
    assert "renderD" in found.refused["vulkan"]
    assert "no GPU" in found.refused["cuda"]


def test_a_driver_that_reports_no_version(gpu: Any) -> None:
    found = gpu({"libcuda.so.1": Driver(0, 999)}, ("nvidia0",))
    assert "cuDriverGetVersion: 999" in found.refused["cuda"]
    found = gpu({"libcuda.so.1": object()}, ("nvidia0",))
    assert "no cuDriverGetVersion" in found.refused["cuda"]


def test_a_hidden_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = gpu({"libcuda.so.1": Driver(13000)}, ("nvidia0",))
    assert "CUDA_VISIBLE_DEVICES" in found.refused["cuda"]


def test_an_apple_silicon_mac(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "os_name", lambda: "mac")
    monkeypatch.setattr(machine, "arch_name", lambda: "arm64")
    monkeypatch.setattr(machine, "glibc", lambda: ("", ""))
    found = gpu({})
    assert found.metal
    assert found.variants == ("metal",)
    assert found.refused["cuda"] == "macOS has no CUDA"


def test_musl(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "glibc", lambda: ("musl", ""))
    found = gpu({})
    assert found.musl
    assert found.variants == ()
    assert "LLAMA_CFFI_LIB" in found.refused["cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library of Linux")
def test_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.glibc()[0] == "glibc"

    def musl(_: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", musl)
    assert machine.glibc() == ("musl", "")


def test_the_fingerprint_changes_with_everything_a_choice_depends_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    first = machine.fingerprint()
    assert machine.fingerprint() == first
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    second = machine.fingerprint()
    assert second != first
    (tmp_path / "nvidia").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert machine.fingerprint() != second
