from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import FetchError
from llama_cffi.libs_fetch import available, cache_state, ensure, fetch, github, pins, runtime
from llama_cffi.libs_fetch.download import sri
from llama_cffi.libs_fetch.faults import NotOfferedError
from llama_cffi.libs_fetch.github import Asset, parse_asset, pick
from llama_cffi.libs_fetch.machine import Machine, detect

# The asset names of real releases (b11459, b7902) as the release API listed them. b3889 follows
# the pattern of 2024, from memory: zip files, Windows CPU builds per instruction set, another
# spelling of the toolkit.
ASSETS = json.loads(Path(__file__).with_name("assets.json").read_text(encoding="utf-8"))
B11459, B7902, B3889 = ASSETS["b11459"], ASSETS["b7902"], ASSETS["b3889"]


def on(system: str, arch: str, cuda: tuple[int, int] | None = None) -> Machine:
    known: dict[str, Any] = {name: getattr(detect(), name) for name in Machine.__annotations__}
    metal = (system, arch) == ("mac", "arm64")
    return Machine(**{**known, "os": system, "arch": arch, "cuda_driver": cuda, "metal": metal})


@pytest.fixture(autouse=True)
def no_cuda_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cuda_runtime", lambda major: ([], ["libcudart"]))


@pytest.mark.parametrize(
    ("release", "machine", "variant", "expected"),
    [
        (B11459, on("linux", "x64"), "cpu", "llama-b11459-bin-ubuntu-x64.tar.gz"),
        (B11459, on("linux", "arm64"), "cpu", "llama-b11459-bin-ubuntu-arm64.tar.gz"),
        (B11459, on("linux", "s390x"), "cpu", "llama-b11459-bin-ubuntu-s390x.tar.gz"),
        (B11459, on("linux", "x64"), "vulkan", "llama-b11459-bin-ubuntu-vulkan-x64.tar.gz"),
        (B11459, on("linux", "x64"), "rocm", "llama-b11459-bin-ubuntu-rocm-10.0-x64.tar.gz"),
        (B11459, on("win", "x64"), "openvino", "llama-b11459-bin-win-openvino-2026.4.1-x64.zip"),
        (B11459, on("mac", "arm64"), "metal", "llama-b11459-bin-macos-arm64.tar.gz"),
        (B11459, on("mac", "x64"), "cpu", "llama-b11459-bin-macos-x64.tar.gz"),
        (B11459, on("win", "x64"), "cpu", "llama-b11459-bin-win-cpu-x64.zip"),
        (B11459, on("win", "arm64"), "vulkan", "llama-b11459-bin-win-vulkan-arm64.zip"),
        (B11459, on("win", "x64"), "sycl", "llama-b11459-bin-win-sycl-x64.zip"),
        (B7902, on("win", "x64"), "rocm", "llama-b7902-bin-win-hip-radeon-x64.zip"),
        (B3889, on("linux", "x64"), "cpu", "llama-b3889-bin-ubuntu-x64.zip"),
        (B3889, on("win", "x64"), "cpu", "llama-b3889-bin-win-avx2-x64.zip"),
        (B3889, on("win", "arm64"), "cpu", "llama-b3889-bin-win-llvm-arm64.zip"),
    ],
)  # fmt: skip
def test_the_right_asset(release: list[str], machine: Machine, variant: str, expected: str) -> None:
    assert pick(release, variant, machine) == [expected]
    assert pick(release[::-1], variant, machine) == [expected]


@pytest.mark.parametrize(
    ("release", "machine", "toolkit", "archive"),
    [
        (B11459, on("linux", "x64", (13, 4)), "ubuntu-cuda-13.4-x64", "b11459-"),
        (B11459, on("linux", "x64", (13, 9)), "ubuntu-cuda-13.4-x64", "b11459-"),
        (B11459, on("linux", "x64", (12, 9)), "ubuntu-cuda-12.8-x64", "b11459-"),
        # The driver is older than the toolkit but has the same major version, which is enough.
        (B11459, on("linux", "x64", (12, 2)), "ubuntu-cuda-12.8-x64", "b11459-"),
        (B11459, on("linux", "x64", (13, 0)), "ubuntu-cuda-12.8-x64", "b11459-"),
        (B11459, on("linux", "arm64", (13, 4)), "ubuntu-cuda-13.4-arm64", "b11459-"),
        (B11459, on("win", "x64", (12, 4)), "win-cuda-12.4-x64", ""),
        (B7902, on("win", "x64", (13, 1)), "win-cuda-13.1-x64", ""),
    ],
)
def test_the_cuda_toolkit_that_the_driver_supports(
    release: list[str], machine: Machine, toolkit: str, archive: str
) -> None:
    build, runtime = pick(release, "cuda", machine)
    assert toolkit in build
    assert build.startswith("llama-b")
    assert runtime.startswith(f"cudart-llama-{archive}bin-{toolkit}")


def test_the_cuda_spelling_of_2024() -> None:
    assert pick(B3889, "cuda", on("win", "x64", (12, 4))) == [
        "llama-b3889-bin-win-cuda-cu12.2.0-x64.zip",
        "cudart-llama-bin-win-cu12.2.0-x64.zip",
    ]
    assert pick(B3889, "cuda", on("win", "x64", (11, 7)))[0].endswith("cu11.7.1-x64.zip")


def test_the_runtime_is_left_out_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cuda_runtime", lambda major: ([Path("x")], []))
    assert len(pick(B11459, "cuda", on("linux", "x64", (13, 4)))) == 1


def test_a_missing_variant_is_named_with_the_available_ones() -> None:
    with pytest.raises(
        NotOfferedError, match=r"no cuda build for linux-x64; available: cpu, vulkan"
    ):
        pick(B7902, "cuda", on("linux", "x64", (13, 0)))
    with pytest.raises(NotOfferedError, match=r"driver supports CUDA 11\.4.*12 or newer"):
        pick(B11459, "cuda", on("linux", "x64", (11, 4)))
    with pytest.raises(NotOfferedError, match="available: none"):
        pick(B11459, "cpu", on("linux", "riscv64"))


def test_names_that_are_not_desktop_builds() -> None:
    for name in (
        "llama-b11459-ui.tar.gz",
        "llama-b11459-xcframework.zip",
        "llama-b11459-bin-android-arm64.tar.gz",
        "llama-b11459-bin-linux-arm64-snapdragon.tar.gz",
        "llama-b7902-bin-310p-openEuler-aarch64.tar.gz",
        "llama-install.sh",
    ):
        assert parse_asset(name) is None
    assert parse_asset("llama-v0.4.1-bin-ubuntu-cuda-12.4-x64.tar.gz") == Asset(
        "llama-v0.4.1-bin-ubuntu-cuda-12.4-x64.tar.gz", "linux", "x64", "cuda", (12, 4), False
    )


def linux_archive(make: Any, tag: str, root: str) -> dict[str, bytes | str]:
    return {
        f"{root}/LICENSE": b"MIT",
        f"{root}/llama-server": b"#!program",
        f"{root}/libggml-base.so": "libggml-base.so.0",
        f"{root}/libggml-base.so.0": "libggml-base.so.0.9.5",
        f"{root}/libggml-base.so.0.9.5": make.elf(),
        f"{root}/libggml-cpu-haswell.so": make.elf(),
        f"{root}/libllama.so": "libllama.so.0",
        f"{root}/libllama.so.0": "libllama.so.0.0.1",
        f"{root}/libllama.so.0.0.1": make.elf(needed=("libggml-base.so.0",)),
        f"{root}/libmtmd.so": make.elf(),
    }


@pytest.mark.parametrize(
    ("name", "root", "packer"),
    [
        ("llama-b11549-bin-ubuntu-x64.tar.gz", "llama-b11549", "tgz"),
        ("llama-b11549-bin-ubuntu-x64.tar.gz", "./llama-b11549", "tgz"),
        ("llama-b11549-bin-ubuntu-x64.zip", "build/bin", "zipped"),
    ],
)
def test_a_release_is_fetched_and_its_links_resolve_to_the_library(
    registry: Any, make: Any, linux: None, name: str, root: str, packer: str
) -> None:
    body = getattr(make, packer)(linux_archive(make, "b11549", root))
    registry.release("b11549", {name: body, "llama-b11549-xcframework.zip": b""})
    build = fetch("github:b11549", backend="cpu", progress=False)
    assert (build.source, build.version, build.tag) == ("github", "b11549", "b11549")
    assert build.library.name == "libllama.so.0.0.1"
    names = {path.name for path in build.folder.iterdir()}
    assert {"libllama.so", "libmtmd.so", "libggml-cpu-haswell.so", "LICENSE"} <= names
    assert "llama-server" not in names
    assert build.receipt is not None
    assert build.receipt["integrity"] == [sri("sha256", hashlib.sha256(body).hexdigest())]
    assert ensure("github:b11549").library == build.library


def test_cuda_builds_come_with_their_runtime(
    registry: Any, make: Any, linux: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_cffi.libs_fetch.machine._cuda_driver", lambda: ((12, 9), ""))
    build = make.tgz({"llama-b1/libllama.so": make.elf(), "llama-b1/libggml-cuda.so": make.elf()})
    runtime = make.tgz({"bin/libcudart.so.12": make.elf(), "bin/libcublas.so.12": make.elf()})
    registry.release(
        "b1",
        {
            "llama-b1-bin-ubuntu-cuda-12.8-x64.tar.gz": build,
            "cudart-llama-b1-bin-ubuntu-cuda-12.8-x64.tar.gz": runtime,
        },
    )
    fetched = fetch("github:b1", backend="cuda", progress=False)
    names = {path.name for path in fetched.folder.iterdir()}
    assert {"libllama.so", "libggml-cuda.so", "libcudart.so.12", "libcublas.so.12"} <= names


def test_a_wrong_digest_installs_nothing(
    registry: Any, make: Any, linux: None, cache: Path
) -> None:
    name = "llama-b1-bin-ubuntu-x64.tar.gz"
    registry.release("b1", {name: make.tgz({"x/libllama.so": make.elf()})})
    path = f"/ggml-org/llama.cpp/releases/download/b1/{name}"
    registry.replies[path].body = bytes(len(registry.replies[path].body))
    with pytest.raises(FetchError, match="wrong hash"):
        fetch("github:b1", backend="cpu", progress=False)
    assert not (cache / "builds").exists()


def test_an_old_release_without_digests_is_marked_as_such(
    registry: Any, make: Any, linux: None
) -> None:
    body = make.zipped({"build/bin/libllama.so": make.elf()})
    registry.release("b3889", {"llama-b3889-bin-ubuntu-x64.zip": body}, digests=False)
    build = fetch("github:b3889", backend="cpu", progress=False)
    assert build.receipt is not None
    assert build.receipt["integrity"] == ["none: the release gives no digest"]


def test_a_pinned_digest_overrides_the_apis(
    registry: Any, make: Any, linux: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "llama-b1-bin-ubuntu-x64.tar.gz"
    registry.release("b1", {name: make.tgz({"x/libllama.so": make.elf()})})
    pinned = {**pins.table(), "github": {"b1": {"assets": {name: sri("sha256", "00" * 32)}}}}
    monkeypatch.setattr(pins, "table", lambda: pinned)
    with pytest.raises(FetchError, match="pinned it as sha256-AAAA"):
        fetch("github:b1", backend="cpu", progress=False)


def test_latest_and_the_list(registry: Any, make: Any, linux: None) -> None:
    name = "llama-b2-bin-ubuntu-x64.tar.gz"
    registry.release("b2", {name: make.tgz({"x/libllama.so": make.elf()})})
    assert ensure("github:latest", progress=False).version == "b2"
    assert cache_state.latest("github") == "b2"
    assert [str(spec) for spec in available("github")] == ["github:b2"]
    registry.replies.clear()
    assert ensure("github:latest", progress=False).version == "b2"  # fetched once, then kept


def test_a_release_that_does_not_exist(registry: Any, linux: None) -> None:
    with pytest.raises(FetchError, match=r"no release b7 of ggml-org/llama\.cpp \(HTTP 404\)"):
        fetch("github:b7", backend="cpu", progress=False)


def test_a_rate_limit_error_suggests_a_token(registry: Any, linux: None) -> None:
    api = "/repos/ggml-org/llama.cpp/releases/tags/b7"
    registry.replies[api] = registry.Reply(b"{}", 403)
    with pytest.raises(FetchError, match=r"HTTP 403.*GITHUB_TOKEN"):
        fetch("github:b7", backend="cpu", progress=False)


def test_a_response_of_another_shape(registry: Any, linux: None) -> None:
    api = "/repos/ggml-org/llama.cpp/releases/tags/b7"
    registry.replies[api] = registry.Reply(b"[]")
    with pytest.raises(FetchError, match="no list of assets"):
        fetch("github:b7", backend="cpu", progress=False)


def test_the_token_goes_to_github_and_never_to_a_mirror(
    registry: Any, make: Any, linux: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    name = "llama-b1-bin-ubuntu-x64.tar.gz"
    registry.release("b1", {name: make.tgz({"x/libllama.so": make.elf()})})
    fetch("github:b1", backend="cpu", progress=False)
    assert all("Authorization" not in headers for _, headers in registry.seen)
    monkeypatch.delenv("LLAMA_CFFI_GITHUB")
    assert github._headers()["Authorization"] == "Bearer secret"
