from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import (
    FetchError,
    LibraryLoadError,
    LibraryNotFoundError,
    ValidationError,
)
from llama_cffi.libs_fetch import cache_state, check, ensure, fetch, machine, pins
from llama_cffi.libs_fetch.api import resolve_request

pytestmark = pytest.mark.usefixtures("linux")
PACKAGE = "@node-llama-cpp/linux-x64"


@pytest.fixture
def default(registry: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Publish the default build of both sources, without pins that would refuse it."""
    registry.npm(PACKAGE, "3.22.1", make.npm_files())
    registry.npm(f"{PACKAGE}-vulkan", "3.22.1", make.npm_files(variant="vulkan"))
    assets = {
        "llama-b11549-bin-ubuntu-x64.tar.gz": make.tgz({"llama-b11549/libllama.so": make.elf()})
    }
    registry.release("b11549", assets)
    monkeypatch.setattr(pins, "table", lambda: {**table, "npm": {}})
    return registry


table = pins.table()


def test_the_precedence_is_argument_lib_build_use_default(
    default: Any, make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def asked() -> tuple[str, str]:
        found = resolve_request()
        return str(found.spec), found.backend

    assert asked() == ("default", "auto")
    cache_state.push("b8179", "vulkan")
    assert asked() == ("b8179", "vulkan")
    monkeypatch.setenv("LLAMA_CFFI_BUILD", "github:b2")
    assert asked() == ("github:b2", "auto")
    monkeypatch.setenv("LLAMA_CFFI_LIB", "/opt/llama")
    assert asked() == ("path:/opt/llama", "auto")
    monkeypatch.setenv("LLAMA_CFFI_BACKEND", "CPU")
    assert asked() == ("path:/opt/llama", "cpu")
    found = resolve_request("npm:3.1.1", "cuda")
    assert (str(found.spec), found.backend) == ("npm:3.1.1", "cuda")
    monkeypatch.setenv("LLAMA_CFFI_BUILD", "nonsense")
    monkeypatch.delenv("LLAMA_CFFI_LIB")
    with pytest.raises(ValidationError, match="nonsense"):
        resolve_request()


def test_the_default_comes_from_npm_where_npm_is_configured(default: Any) -> None:
    build = ensure(progress=False)
    assert (build.source, build.version, build.variant) == ("npm", "3.22.1", "cpu")
    assert build.backend_reason.startswith("cpu, because cuda")
    assert ensure(offline=True) == build


def test_the_default_comes_from_github_where_npm_is_not_configured(
    default: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CFFI_NPM_REGISTRY")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("llama_cffi.libs_fetch.npmrc._USUAL_FOLDERS", "/nonexistent")
    build = ensure(progress=False)
    assert (build.source, build.version) == ("github", "b11549")
    assert ensure(offline=True) == build


def test_a_registry_that_does_not_answer_is_named_and_github_is_tried(
    default: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_NPM_REGISTRY", "http://127.0.0.1:9")
    with caplog.at_level("INFO"):
        build = ensure(progress=False)
    assert (build.source, build.version) == ("github", "b11549")
    assert "127.0.0.1:9" in caplog.text


@pytest.mark.parametrize("status", [500, 404])
def test_a_registry_that_answers_with_errors_is_named_and_github_is_tried(
    default: Any, status: int
) -> None:
    default.replies[f"/{PACKAGE}"].status = status
    default.replies[f"/{PACKAGE}-vulkan"].status = status
    assert ensure(progress=False).source == "github"


def test_without_any_network_the_error_names_both_sources_and_llama_cffi_lib(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_NPM_REGISTRY", "http://127.0.0.1:9/npm")
    monkeypatch.setenv("LLAMA_CFFI_GITHUB", "http://127.0.0.1:9/github")
    with pytest.raises(FetchError) as caught:
        ensure(progress=False)
    text = str(caught.value)
    assert "127.0.0.1:9/npm" in text
    assert "127.0.0.1:9/github" in text
    assert "LLAMA_CFFI_LIB" in text
    assert text.count("Check the network") == 1
    assert not (cache / "builds").exists()


def test_offline_says_which_command_to_run(
    default: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_OFFLINE", "true")
    with pytest.raises(LibraryNotFoundError, match=r"`llama-cffi libs fetch npm:3\.22\.1`"):
        ensure("npm:3.22.1")
    assert default.seen == []
    with pytest.raises(FetchError, match="LLAMA_CFFI_OFFLINE"):
        fetch("npm:3.22.1")
    assert default.seen == []


def test_a_tag_resolves_to_the_npm_version_that_contains_it(registry: Any, make: Any) -> None:
    registry.npm(PACKAGE, "3.17.1", make.npm_files("b8179"))
    build = ensure("b8179", progress=False)
    assert (build.source, build.version, build.tag) == ("npm", "3.17.1", "b8179")


def test_a_tag_that_npm_lacks_comes_from_github(default: Any) -> None:
    assert ensure("b11549", progress=False).source == "github"
    with pytest.raises(FetchError, match=r"no version is known to contain v9\.9\.9.*b-tags only"):
        ensure("v9.9.9", progress=False)


def test_latest_is_resolved_once_and_then_kept(default: Any, make: Any) -> None:
    assert ensure("latest", progress=False).version == "3.22.1"
    seen = len(default.seen)
    assert ensure("latest", progress=False).version == "3.22.1"
    assert len(default.seen) == seen


def test_a_requested_backend_that_cannot_run_is_an_error_with_the_reason(default: Any) -> None:
    with pytest.raises(LibraryLoadError, match=r"backend cuda.*no NVIDIA driver.*LLAMA_CFFI_BACK"):
        ensure("npm:3.22.1", backend="cuda", progress=False)
    with pytest.raises(FetchError, match=r"no such npm package for linux-x64; available: cuda"):
        ensure("npm:3.22.1", backend="metal", progress=False)


def test_a_backend_that_npm_lacks_comes_from_github(default: Any, make: Any) -> None:
    rocm = make.tgz({"llama-b11549/libllama.so": make.elf()})
    default.release("b11549", {"llama-b11549-bin-ubuntu-rocm-10.0-x64.tar.gz": rocm})
    build = ensure(backend="rocm", progress=False)
    assert (build.source, build.variant) == ("github", "rocm")


def vulkan_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_vulkan_loader", lambda: "")
    monkeypatch.setattr(machine, "_vulkan_device", lambda: "")


def test_auto_takes_vulkan_where_there_is_a_gpu(
    default: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vulkan_machine(monkeypatch)
    build = ensure(progress=False)
    assert build.variant == "vulkan"
    assert "cuda, cuda12: no NVIDIA driver" in build.backend_reason
    assert ensure(offline=True) == build


def test_auto_falls_back_when_the_better_variant_is_not_offered(
    registry: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vulkan_machine(monkeypatch)
    registry.npm(PACKAGE, "3.20.0", make.npm_files())
    build = ensure("npm:3.20.0", progress=False)
    assert build.variant == "cpu"
    assert "no package @node-llama-cpp/linux-x64-vulkan" in build.backend_reason


def test_auto_falls_back_when_the_better_variant_cannot_be_loaded(
    registry: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vulkan_machine(monkeypatch)
    future = {"libc.so.6": ("GLIBC_2.2.5", "GLIBC_2.99")}
    registry.npm(PACKAGE, "3.20.0", make.npm_files())
    registry.npm(f"{PACKAGE}-vulkan", "3.20.0", make.npm_files(variant="vulkan", versions=future))
    build = ensure("npm:3.20.0", progress=False)
    assert build.variant == "cpu"
    assert "needs glibc 2.99, this system has" in build.backend_reason
    assert ensure("npm:3.20.0", offline=True).variant == "cpu"
    with pytest.raises(LibraryLoadError, match=r"needs glibc 2\.99"):
        ensure("npm:3.20.0", backend="vulkan", offline=True)


def test_another_architecture_is_named_before_anything_is_loaded(registry: Any, make: Any) -> None:
    registry.npm(PACKAGE, "3.20.0", make.npm_files(code=183))
    with pytest.raises(LibraryLoadError, match=r"is for 64-bit ARM, this Python runs as x86-64"):
        ensure("npm:3.20.0", progress=False)
    with pytest.raises(LibraryLoadError, match="64-bit ARM"):  # now it is in the store
        ensure("npm:3.20.0", backend="cpu", offline=True)


def test_a_stored_build_that_cannot_run_here_is_refused_on_request(
    default: Any,
) -> None:
    fetch("npm:3.22.1", backend="vulkan", progress=False)
    with pytest.raises(LibraryLoadError, match=r"in the store but cannot run .*Vulkan loader"):
        ensure("npm:3.22.1", backend="vulkan", offline=True)
    with pytest.raises(LibraryLoadError, match="no Vulkan loader"):
        ensure("npm:3.22.1", backend="vulkan", progress=False)


def test_auto_chooses_again_when_the_machine_changes(
    default: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ensure(progress=False).variant == "cpu"
    vulkan_machine(monkeypatch)
    assert ensure(progress=False).variant == "cpu"  # the fingerprint has not changed
    monkeypatch.setattr(cache_state, "fingerprint", lambda: "another machine")
    assert ensure(progress=False).variant == "vulkan"


def test_without_network_auto_falls_back_to_a_stored_variant(
    default: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(progress=False)
    vulkan_machine(monkeypatch)
    monkeypatch.setattr(cache_state, "fingerprint", lambda: "another machine")
    default.replies.clear()
    for name in ("LLAMA_CFFI_NPM_REGISTRY", "LLAMA_CFFI_GITHUB"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    build = ensure(progress=False)
    assert build.variant == "cpu"
    assert "127.0.0.1:9" in build.backend_reason


def test_offline_auto_falls_back_to_a_stored_variant(
    default: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("npm:3.22.1", backend="cpu", progress=False)
    vulkan_machine(monkeypatch)
    build = ensure(offline=True)
    assert build.variant == "cpu"
    assert "vulkan: not in the store" in build.backend_reason


def test_musl_is_refused_with_advice(default: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "glibc", lambda: ("musl", ""))
    with pytest.raises(LibraryLoadError, match=r"musl .*BUILD_SHARED_LIBS=ON.*LLAMA_CFFI_LIB"):
        ensure(progress=False)


def test_a_path_is_used_directly(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "build" / "bin"
    folder.mkdir(parents=True)
    (folder / "libllama.so.0.0.1").write_bytes(make.elf())
    (folder / "libllama.so").symlink_to("libllama.so.0.0.1")
    (folder / "libllama-common.so").write_bytes(make.elf())
    (folder / "libggml-vulkan.so").write_bytes(make.elf())
    for spec in (f"path:{tmp_path}", str(folder), str(folder / "libllama.so")):
        build = ensure(spec)
        assert build.source == "path"
        assert build.version == ""
        assert build.variant == "vulkan"
        assert build.library == (folder / "libllama.so.0.0.1").resolve()
        assert build.folder == folder.resolve()
        assert build.receipt is None


def test_lib_is_always_a_path(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b8179").mkdir()
    (tmp_path / "b8179" / "libllama.b8179.so").write_bytes(make.elf())
    monkeypatch.setenv("LLAMA_CFFI_LIB", "b8179")
    build = ensure()
    assert (build.source, build.tag) == ("path", "b8179")
    assert "LLAMA_CFFI_LIB=b8179" in build.backend_reason


def test_a_foreign_library_is_given_by_name(make: Any, tmp_path: Path) -> None:
    foreign = tmp_path / "xllamacpp.abi3.so"
    foreign.write_bytes(make.elf())
    assert ensure(str(foreign)).library == foreign.resolve()
    with pytest.raises(LibraryNotFoundError, match=r"xllamacpp\.abi3\.so.*give that file by name"):
        ensure(f"path:{tmp_path}")


def test_paths_without_a_library(tmp_path: Path) -> None:
    with pytest.raises(LibraryNotFoundError, match="does not exist"):
        ensure(f"path:{tmp_path / 'nowhere'}")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LibraryNotFoundError, match="it holds nothing"):
        ensure(f"path:{empty}")
    with pytest.raises(ValidationError, match="nothing to fetch"):
        fetch(f"path:{empty}")


def test_a_path_into_the_store_keeps_tag_and_receipt(default: Any) -> None:
    build = ensure(progress=False)
    again = ensure(str(build.library))
    assert (again.source, again.tag, again.receipt) == ("npm", "v0.5.0", build.receipt)


def test_a_warm_ensure_starts_no_process_and_imports_little(default: Any) -> None:
    ensure(progress=False)
    code = (
        "import sys\n"
        "from llama_cffi.libs_fetch import machine, ensure\n"
        "machine.os_name, machine.arch_name = lambda: 'linux', lambda: 'x64'\n"
        "machine.glibc = lambda: ('glibc', '2.36')\n"
        "sys.addaudithook(lambda e, a: e.startswith(('socket.', 'subprocess.')) and sys.exit(e))\n"
        "ensure()\n"
        "heavy = {'urllib.request', 'ssl', 'tarfile', 'filelock', 'tqdm', 'platformdirs',\n"
        "         'subprocess', 'ctypes', 'numpy', 'cffi'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_importing_the_package_imports_no_submodule() -> None:
    code = (
        "import sys, llama_cffi.libs_fetch as f\n"
        "print([m for m in sys.modules if m.startswith('llama_cffi.libs_fetch.')])\n"
        "assert set(f.__all__) <= set(dir(f))\n"
        "[getattr(f, name) for name in f.__all__]\n"
        "assert callable(f.headers)\n"
        "try: f.nonsense\nexcept AttributeError: print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["[]", "ok"], "")


def test_the_check_of_a_stored_build_compares_versions_as_numbers() -> None:
    assert check._version_tuple("GLIBC_2.9") < check._version_tuple("GLIBC_2.34")
