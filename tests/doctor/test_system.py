"""The doctor's checks of the machine: described machines, real files."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llama_cffi.doctor import Check
from llama_cffi.doctor.system import accelerators, gigabytes, system_checks
from llama_cffi.libs_fetch import Machine, detect, ensure

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="names of Linux libraries")


@pytest.fixture
def gpu_machine() -> Machine:
    """This machine, as if it were a Linux one with a driver for CUDA 13.0."""
    for name in ("libs_fetch.runtime", "libs_fetch.elf"):
        importlib.import_module(f"llama_cffi.{name}")  # before a test empties sys.path
    refused = {"metal": "Metal needs an Apple-silicon Mac"}
    return replace(detect(), os="linux", cuda_driver=(13, 0), vulkan=True, refused=refused)


def by_name(checks: object) -> dict[str, Check]:
    found = {check.name: check for check in checks}  # type: ignore[attr-defined]
    json.dumps([check.as_dict() for check in found.values()])
    return found


def test_this_machine() -> None:
    checks = by_name(system_checks(detect()))
    assert {"system", "cpu", "python"} <= checks.keys()
    assert all(check.status != "fail" for check in checks.values())
    assert sys.version.split()[0] in checks["python"].detail
    if sys.platform == "linux":
        memory = checks["memory"].data
        assert 0 <= memory["available_bytes"] <= memory["total_bytes"]


def test_musl_fails_with_advice() -> None:
    machine = replace(detect(), libc="musl", libc_version="", refused={"cpu": "use a glibc image"})
    check = by_name(system_checks(machine))["system"]
    assert (check.status, check.advice) == ("fail", "use a glibc image")


def test_fewer_cpus_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    machine = replace(detect(), usable_cpus=2, physical_cores=1, cpu="A CPU")
    detail = by_name(system_checks(machine))["cpu"].detail
    assert detail.startswith("A CPU, 1 core (2 of 64 CPUs usable)")


@LINUX
def test_the_cuda_runtime_is_found(
    gpu_machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [])  # no NVIDIA wheels beside this interpreter
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    for name in ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13"):
        (tmp_path / name).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    check = by_name(accelerators(gpu_machine, None))["cuda"]
    assert check.status == "ok"
    assert check.detail == f"driver for CUDA 13.0; CUDA 13 runtime in {tmp_path}"
    assert len(check.data["runtime"][13]["files"]) == 3


@LINUX
def test_a_missing_driver_is_not_a_failure(gpu_machine: Machine) -> None:
    machine = replace(
        gpu_machine, cuda_driver=None, refused={"cuda": "no driver", "vulkan": "no loader"}
    )
    checks = by_name(accelerators(machine, None))
    assert (checks["cuda"].status, checks["cuda"].detail) == ("ok", "none: no driver")
    assert (checks["vulkan"].status, checks["vulkan"].detail) == ("ok", "none: no loader")


@LINUX
def test_missing_cuda_runtime_is_named(
    gpu_machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA backend for an unknown toolkit: a real file with one NEEDED name changed."""
    folder = ensure(backend="cpu").folder
    data = next(folder.glob("libggml-cpu-*.so")).read_bytes()
    needs = data.replace(b"libggml-base.so\0", b"libcudart.so.9\0\0")
    (tmp_path / "libggml-cuda.so").write_bytes(needs)
    monkeypatch.setattr("sys.path", [])
    check = by_name(accelerators(gpu_machine, tmp_path))["cuda"]
    assert check.status == "warn"
    assert check.detail.startswith("driver for CUDA 13.0; no libcudart.so.9, ")
    assert "llama-cffi[cuda9]" in check.advice
    older = replace(gpu_machine, cuda_driver=(8, 0))
    check = by_name(accelerators(older, tmp_path))["cuda"]
    assert check.detail == "driver for CUDA 8.0, but the library needs CUDA 9"
    assert "update the NVIDIA driver" in check.advice


def test_byte_counts_are_formatted() -> None:
    assert gigabytes(25_276_502_016) == "25.3 GB"
    assert gigabytes(2_345_678) == "2.3 MB"
