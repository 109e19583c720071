"""The doctor on real builds, intact and broken in every way that users meet."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import libs_fetch
from llama_cffi.cli import main
from llama_cffi.doctor import Check, backends, child_process, examine, works
from llama_cffi.libs_fetch import InstalledBuild, Machine

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "llama-cffi")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="breaks ELF files")
N_PREDICT = 12

Broken = Callable[..., Path]


@pytest.fixture(scope="module")
def build() -> InstalledBuild:
    """The default build of this machine's CPU."""
    return libs_fetch.ensure(backend="cpu")


@pytest.fixture(scope="module")
def recorded(tiny_model: Path, build: InstalledBuild, child: Any) -> dict[str, list[int]]:
    """A prompt of the tiny model and its greedy continuation."""
    tokens = [72, 101, 108, 108, 111]
    done = child(
        """
        import json, sys, llama_cffi
        model, tokens, n = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
        with llama_cffi.Engine(model, n_ctx=64, n_threads=1) as engine:
            print(engine.generate_tokens(tokens, n, temperature=0))
        """,
        tiny_model,
        json.dumps(tokens),
        N_PREDICT,
    )
    assert done.returncode == 0, done.stderr
    return {"tokens": tokens, "continuation": json.loads(done.stdout)}


@pytest.fixture
def broken(
    build: InstalledBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Broken]:
    """Copy the build, let a function damage the copy, and select it with LLAMA_CFFI_LIB."""

    def make(damage: Callable[[Path], object]) -> Path:
        folder = tmp_path / "build"
        shutil.copytree(build.folder, folder)
        damage(folder)
        monkeypatch.setenv("LLAMA_CFFI_LIB", str(folder))
        return folder

    yield make
    shutil.rmtree(tmp_path / "build", ignore_errors=True)


@pytest.fixture
def look(
    tiny_model: Path, recorded: dict[str, list[int]]
) -> Callable[..., tuple[bool, dict[str, Check]]]:
    """Examine with the tiny model instead of the demo model."""

    def run(**changes: Any) -> tuple[bool, dict[str, Check]]:
        checks = list(examine(model=tiny_model, recorded={**recorded, **changes}))
        assert checks[-1].name == "generation"
        assert len({check.name for check in checks}) == len(checks)
        json.dumps([check.as_dict() for check in checks])
        return works(checks), {check.name: check for check in checks}

    return run


def halve(path: Path) -> None:
    """Truncate a file to half its size, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def libllama(folder: Path) -> Path:
    (found,) = (p for p in folder.glob("libllama*.so") if "common" not in p.name)
    return found


# --- a machine without problems ----------------------------------------------------------------


def test_a_machine_without_problems(look: Any, build: InstalledBuild) -> None:
    ok, checks = look()
    assert ok, [check for check in checks.values() if check.status == "fail"]
    assert {c.name: c for c in checks.values() if c.status == "fail"} == {}
    for name in ("system", "cpu", "python", "library", "variant", "abi", "device CPU"):
        assert name in checks
    assert checks["abi"].detail.startswith("exact, class ")
    assert checks["pictures"].detail.startswith("pictures and sounds do not work: this build of")
    assert checks["abi"].data["struct_bytes"]["llama_context_params"] > 0
    assert checks["library"].data["tag"] == build.tag
    assert checks["generation"].data["tokens"] == checks["generation"].data["expected"]
    assert f"{N_PREDICT} tokens" in checks["generation"].detail


@LINUX
def test_which_cpu_file_is_in_use(
    look: Any, build: InstalledBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CFFI_CPU_VARIANT", raising=False)
    check = look()[1]["cpu backend"]
    assert check.status == "ok"
    (name,) = check.data["files"]
    assert (build.folder / name).is_file()
    assert "the best of" in check.detail
    variant = Path(name).stem.removeprefix("libggml-cpu-")
    monkeypatch.setenv("LLAMA_CFFI_CPU_VARIANT", variant)
    check = look()[1]["cpu backend"]
    assert (check.status, check.data["files"]) == ("ok", [name])
    assert "by LLAMA_CFFI_CPU_VARIANT" in check.detail


@LINUX
def test_cpu_variants_are_listed_with_those_that_load_here(
    look: Any, build: InstalledBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.stem.removeprefix("libggml-cpu-") for path in build.folder.glob("*-cpu-*.so")}
    reasons = backends.cpu_variants(build, timeout_s=60)
    assert files == set(reasons)
    slowest = [name for name, reason in reasons.items() if not reason][-1]
    monkeypatch.setenv("LLAMA_CFFI_CPU_VARIANT", slowest)
    check = look()[1]["cpu variants"]
    assert check.status == "ok"
    assert check.detail.startswith(f"{slowest} in use (LLAMA_CFFI_CPU_VARIANT={slowest}); ")
    assert check.data["used"] == [slowest]
    assert slowest in check.data["load"]
    for name, reason in reasons.items():
        assert name in check.detail
        assert (name in check.data["load"]) == (reason == "")
    # Named, but not there: nothing is in use, and the others still are listed.
    monkeypatch.setenv("LLAMA_CFFI_CPU_VARIANT", "i386")
    ok, checks = look()
    assert not ok
    assert "'i386'" in checks["abi"].detail
    check = checks["cpu variants"]
    assert check.detail.startswith("none in use (LLAMA_CFFI_CPU_VARIANT=i386); load here: ")
    assert (check.data["used"], set(check.data["reasons"])) == ([], files)


@LINUX
def test_a_damaged_cpu_variant_is_named_beside_those_that_load(
    look: Any, build: InstalledBuild, broken: Broken
) -> None:
    name = list(backends.cpu_variants(build, timeout_s=60))[-1]
    file = build.cpu_variants[name].name
    broken(lambda folder: (folder / file).write_bytes(b"no library\n"))
    check = look()[1]["cpu variants"]
    assert f"; {name}: file too short" in check.detail
    assert name not in check.data["load"]
    assert check.data["used"]


def test_a_build_with_one_cpu_backend_has_no_variants(
    build: InstalledBuild, tmp_path: Path
) -> None:
    (tmp_path / "libggml-cpu.so").touch()
    alone = replace(build, folder=tmp_path)
    assert alone.cpu_variants == backends.cpu_variants(alone, timeout_s=60) == {}
    assert list(backends.variant_checks(alone, {}, timeout_s=60)) == []


def test_wrong_tokens_fail(look: Any, recorded: dict[str, list[int]]) -> None:
    right = recorded["continuation"]
    wrong = [*right[:-2], right[-2] ^ 1, right[-1]]
    ok, checks = look(continuation=wrong)
    assert not ok
    assert (
        f"the first {N_PREDICT - 2} of {N_PREDICT} are as recorded" in checks["generation"].detail
    )
    assert "--json" in checks["generation"].advice
    ok, checks = look(continuation=[*right, 70])
    assert not ok, "a continuation that stops early is not the recorded one"


def test_a_recorded_eog_token_is_not_expected(look: Any) -> None:
    end_of_turn = 258
    ok, checks = look(continuation=[end_of_turn])
    assert checks["generation"].data["expected"] == []
    assert not ok


def test_a_model_that_cannot_be_read(recorded: dict[str, list[int]], tmp_path: Path) -> None:
    *_, last = examine(model=tmp_path / "gone.gguf", recorded=recorded)
    assert last.status == "fail"
    assert "no model file at" in last.detail


def test_settings_are_shown_without_passwords(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CFFI_GITHUB", "https://me:secret@mirror.example/x")
    _, checks = look()
    assert checks["settings"].data["LLAMA_CFFI_GITHUB"] == "https://mirror.example/x"
    assert "secret" not in json.dumps([c.as_dict() for c in checks.values()])


# --- broken libraries --------------------------------------------------------------------------


@LINUX
def test_truncated_library(look: Any, broken: Broken) -> None:
    folder = broken(lambda folder: halve(libllama(folder)))
    ok, checks = look()
    assert not ok
    assert checks["library"].status == "fail"
    assert str(libllama(folder)) in checks["library"].detail
    assert "replace the damaged files" in checks["library"].advice
    assert checks["generation"].detail.startswith("not tried")


@LINUX
def test_truncated_backend(look: Any, broken: Broken) -> None:
    broken(lambda folder: [halve(path) for path in folder.glob("libggml-cpu-*.so")])
    ok, checks = look()
    assert not ok
    assert checks["library"].status == "fail"
    assert "is a damaged ELF file" in checks["library"].detail
    assert "libggml-cpu-" in checks["library"].detail
    assert checks["generation"].detail.startswith("not tried")


@LINUX
def test_no_cpu_backend(look: Any, broken: Broken) -> None:
    broken(lambda folder: [path.unlink() for path in folder.glob("libggml-cpu-*.so")])
    ok, checks = look()
    assert not ok
    assert "no backend that runs on this machine" in checks["abi"].detail


@LINUX
def test_other_architecture(look: Any, broken: Broken) -> None:
    def damage(folder: Path) -> None:
        data = bytearray(libllama(folder).read_bytes())
        arm64 = platform.machine() == "aarch64"
        data[18] = 62 if arm64 else 183  # e_machine
        libllama(folder).write_bytes(data)

    broken(damage)
    ok, checks = look()
    assert not ok
    assert re.search("is for .*, this Python runs as", checks["library"].detail)


@LINUX
def test_missing_ggml_library(look: Any, broken: Broken) -> None:
    broken(lambda folder: (folder / "libggml-base.so").unlink())
    ok, checks = look()
    assert not ok
    assert re.search(r"libggml-base\.so: cannot open shared object", checks["abi"].detail)
    assert "doctor" not in checks["abi"].detail


@LINUX
@pytest.mark.skipif(platform.machine() != "x86_64", reason="patches x86-64 code")
def test_a_crash_while_loading_is_named_by_its_signal(look: Any, broken: Broken) -> None:
    def damage(folder: Path) -> None:
        path = libllama(folder)
        data = bytearray(path.read_bytes())
        offset = file_offset(data, b"llama_backend_init")
        data[offset : offset + 2] = b"\x0f\x0b"  # ud2
        path.write_bytes(data)

    broken(damage)
    ok, checks = look()
    assert not ok
    assert checks["abi"].detail == "loading the library failed: SIGILL"
    assert "LLAMA_CFFI_BUILD" in checks["abi"].advice
    assert checks["generation"].detail == "loading the library failed: SIGILL"


def file_offset(data: bytes, symbol: bytes) -> int:
    """Return the file offset of a function in a 64-bit little-endian ELF file."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    sections = [number(40, 8) + i * number(58, 2) for i in range(number(60, 2))]
    symbols = next(s for s in sections if number(s + 4, 4) == 11)  # SHT_DYNSYM
    names = number(sections[number(symbols + 40, 4)] + 24, 8)
    start, size = number(symbols + 24, 8), number(symbols + 32, 8)
    for at in range(start, start + size, 24):
        name = names + number(at, 4)
        if data[name : data.index(b"\0", name)] == symbol:
            address = number(at + 8, 8)
            break
    for i in range(number(56, 2)):
        header = number(32, 8) + i * number(54, 2)
        begin, length = number(header + 16, 8), number(header + 32, 8)
        if number(header, 4) == 1 and begin <= address < begin + length:  # PT_LOAD
            return address - begin + number(header + 8, 8)
    raise AssertionError(f"{symbol!r} is not in the file")


def test_no_library(look: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CFFI_LIB", str(tmp_path))
    ok, checks = look()
    assert not ok
    assert "holds no libllama" in checks["library"].detail
    assert checks["generation"].detail == "not tried: there is no library"
    monkeypatch.delenv("LLAMA_CFFI_LIB")
    monkeypatch.setenv("LLAMA_CFFI_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("LLAMA_CFFI_OFFLINE", "1")
    ok, checks = look()
    assert "the network is switched off" in checks["library"].detail


def test_wrong_declarations(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CFFI_ABI", "b3889")
    ok, checks = look()
    assert not ok
    assert checks["abi"].data["type"] == "AbiMismatchError"
    assert "LLAMA_CFFI_ABI=b3889 does not fit" in checks["abi"].detail


# --- GPU backends on a machine without them ----------------------------------------------------


@LINUX
def test_a_backend_that_does_not_load_is_a_warning(look: Any, broken: Broken) -> None:
    """A libggml-cuda.so with a missing dependency: generation works on the CPU, with a warning."""

    def damage(folder: Path) -> None:
        data = next(folder.glob("libggml-cpu-*.so")).read_bytes()
        assert data.count(b"libggml-base.so\0") >= 1
        (folder / "libggml-cuda.so").write_bytes(
            data.replace(b"libggml-base.so\0", b"libcudart.so.9\0\0")
        )

    broken(damage)
    ok, checks = look()
    assert ok
    check = checks["cuda backend"]
    assert check.status == "warn"
    assert "libcudart.so.9: cannot open shared object file" in check.detail
    assert check.advice


def test_advice() -> None:
    def machine(cuda_driver: tuple[int, int] | None) -> Machine:
        return Machine("linux", "x64", "glibc", "2.36", "cpu", 1, 1, cuda_driver, False, False,
                       ("cpu",), {})  # fmt: skip

    def installed(source: str) -> InstalledBuild:
        return InstalledBuild(source, "3.22.1", "cuda", "v0.5.0", Path("x"), Path(), "", None)

    def advice(message: str, source: str = "npm", driver: bool = True) -> str:
        return backends.advice_for(
            message, build=installed(source), machine=machine((13, 0) if driver else None)
        )

    runtime = "libcudart.so.13: cannot open shared object file: No such file or directory"
    assert "llama-cffi[cuda13]" in advice(runtime)
    assert "install the NVIDIA driver" in advice(runtime, driver=False)
    assert "NVIDIA driver" in advice("libcuda.so.1: cannot open shared object file")
    assert "libvulkan1" in advice("libvulkan.so.1: cannot open shared object file")
    assert "update the NVIDIA driver" in advice("CUDA driver version is insufficient for …")
    assert "older build" in advice("version `GLIBC_2.38' not found")
    assert advice("file too short") == "fetch it again: llama-cffi libs fetch npm:3.22.1 --force"
    assert "unset LLAMA_CFFI_LIB" in advice("file too short", source="path")
    assert "fetch it again" in advice("undefined symbol: ggml_new_op")
    assert advice("all is well") == ""


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("libggml-cpu-zen4.so", "cpu"), ("libggml-cuda.so", "cuda"), ("ggml-vulkan.dll", "vulkan"),
        ("libggml-metal.dylib", "metal"), ("libggml-cpu.so.0", "cpu"), ("ggml-cpu-x64.dll", "cpu"),
        ("libggml-base.so", None), ("libggml.so", None), ("libggml.v0.5.0.so", None),
        ("libllama.so", None), ("libggml-cpu.txt", None),
    ],
)  # fmt: skip
def test_backend_files(name: str, family: str | None, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert list(backends.backend_files(tmp_path)) == ([family] if family else [])


def test_a_child_that_hangs(recorded: dict[str, list[int]], tiny_model: Path) -> None:
    outcome = child_process.run_child(
        "generate", timeout_s=0.01, model=str(tiny_model), n_gpu_layers=0, n_predict=1, tokens=[1]
    )
    assert outcome.death == "no answer within 0.01 s"


# --- the command -------------------------------------------------------------------------------


def examine_with(*checks: Check) -> Callable[[], Iterator[Check]]:
    return lambda: iter(checks)


@pytest.mark.parametrize("status", ["ok", "fail"])
def test_output_and_exit_code(
    status: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = (
        Check("gpu", "warn", "no GPU", "buy one"),
        Check("generation", status, "as seen", data={"tokens": [1, 2]}),
    )
    monkeypatch.setattr("llama_cffi.doctor.examine", examine_with(*checks))
    assert main(["doctor"]) == (0 if status == "ok" else 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "! gpu             no GPU"
    assert lines[1] == "                  → buy one"
    assert lines[2] == f"{'✓' if status == 'ok' else '✗'} generation      as seen"
    assert lines[4].startswith("Generation works" if status == "ok" else "Generation does not")

    assert main(["doctor", "--json"]) == (0 if status == "ok" else 1)
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (status == "ok")
    assert report["checks"][1]["data"] == {"tokens": [1, 2]}
    assert report["checks"][0]["advice"] == "buy one"


def test_the_program_on_the_demo_model() -> None:
    done = subprocess.run(
        [PROGRAM, "doctor"],
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    shown = done.stdout.decode("ascii")
    assert done.returncode == 0, shown
    assert done.stderr == b""
    assert "+ generation" in shown
    assert shown.rstrip().splitlines()[-1].startswith("Generation works")

    as_json = subprocess.run([PROGRAM, "doctor", "--json"], capture_output=True, timeout=120)
    report = json.loads(as_json.stdout)
    assert report["ok"] is True
    assert {"name", "status", "detail", "advice", "data"} == set(report["checks"][0])
