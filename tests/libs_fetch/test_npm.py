from __future__ import annotations

import base64
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llama_cffi.errors import FetchError
from llama_cffi.libs_fetch import choose, fetch, npm, npmrc, pins, runtime
from llama_cffi.libs_fetch.faults import NotOfferedError
from llama_cffi.libs_fetch.machine import Machine, detect

NO_NPM = "/nonexistent"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set up a project folder in an empty home and a folder for a global npmrc, without npm."""
    home = tmp_path / "home"
    project = home / "project" / "deeper"
    project.mkdir(parents=True)
    (home / "project" / "package.json").write_text("{}")
    (tmp_path / "prefix" / "etc").mkdir(parents=True)
    monkeypatch.setenv("npm_config_prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("PATH", NO_NPM)
    monkeypatch.setattr(npmrc, "_USUAL_FOLDERS", NO_NPM)
    monkeypatch.chdir(project)
    return tmp_path


def test_precedence_is_npms_own(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert npmrc.load() is None

    def registry() -> str:
        found = npmrc.load()
        assert found is not None
        assert found.scoped == found.main
        return found.main

    (files / "prefix" / "etc" / "npmrc").write_text("registry=https://global/\n")
    assert registry() == "https://global/"
    (files / "home" / ".npmrc").write_text('; comment\n# other\nregistry = "https://user/"\n')
    assert registry() == "https://user/"
    (files / "home" / "project" / ".npmrc").write_text("registry=https://project/\n")
    assert registry() == "https://project/"
    monkeypatch.setenv("npm_config_registry", "https://environment/")
    assert registry() == "https://environment/"
    monkeypatch.setenv("LLAMA_CFFI_NPM_REGISTRY", "https://ours/")
    assert registry() == "https://ours/"


def test_files_named_in_the_environment(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "other").write_text("registry=https://other/\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(files / "other"))
    found = npmrc.load()
    assert found is not None
    assert found.main == "https://other/"


def test_a_scoped_registry_with_token_ca_and_proxy(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "t0ken")
    (files / "home" / ".npmrc").write_text(
        "@node-llama-cpp:registry=https://corp.example/npm/\n"
        "//corp.example/npm/:_authToken=${MY_TOKEN}\n"
        "//other.example/:_auth=YWJj\n"
        "cafile=/etc/corp.pem\nhttps-proxy=http://proxy:3128\nnoise\nunset=${NOPE}x${NOPE?}\n"
    )
    found = npmrc.load()
    assert found is not None
    assert found.scoped == "https://corp.example/npm/"
    url = "https://corp.example/npm/@node-llama-cpp/linux-x64"
    assert found.headers(url) == {"Authorization": "Bearer t0ken"}
    assert found.headers("https://other.example/x/y") == {"Authorization": "Basic YWJj"}
    assert found.headers("https://corp.example/elsewhere") == {}
    assert found.headers("https://evil.example/npm/x") == {}
    assert found.client().cafile == "/etc/corp.pem"
    assert found.client().proxies == {"https": "http://proxy:3128"}
    assert found.settings["unset"] == "${NOPE}x"


@pytest.mark.skipif(os.name == "nt", reason="writes a shell script")
def test_npm_is_asked_last(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = files / "bin" / "npm"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho warning\necho https://asked.example/\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    found = npmrc.load()
    assert found is not None
    assert found.main == "https://asked.example/"
    npmrc._ask.cache_clear()
    script.write_text("#!/bin/sh\nexit 1\n")
    assert npmrc.load() is None
    script.unlink()
    script.symlink_to("/nonexistent/npm")
    assert npmrc.load() is None


@pytest.mark.skipif(os.name == "nt", reason="writes a shell script")
def test_npm_is_found_where_it_usually_is(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restricted PATH, as in services, hides npm; its own node is beside it."""
    folder = files / "usual"
    folder.mkdir()
    for name, text in (("npm", "exec node"), ("node", "echo https://usual.example/")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(npmrc, "_USUAL_FOLDERS", str(folder))
    found = npmrc.load()
    assert found is not None
    assert found.main == "https://usual.example/"


def test_npm_that_cannot_run_counts_as_absent(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("npm", 1)

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "run", broken)
    assert npmrc.load() is None


def test_without_a_registry_the_error_says_what_to_set(files: Path) -> None:
    with pytest.raises(FetchError, match="LLAMA_CFFI_NPM_REGISTRY"):
        fetch("npm:3.22.1", backend="cpu", progress=False)


def test_a_package_is_unpacked_ready_for_loading(
    registry: Any, make: Any, linux: None, cache: Path
) -> None:
    registry.npm("@node-llama-cpp/linux-x64", "3.20.0", make.npm_files("b10361"))
    build = fetch("npm:3.20.0", backend="cpu", progress=False)
    assert (build.source, build.version, build.variant) == ("npm", "3.20.0", "cpu")
    assert build.tag == "b10361"
    assert build.library == (cache / "builds/npm/3.20.0/cpu/libllama.b10361.so").resolve()
    names = {path.name for path in build.folder.iterdir()}
    assert names == {
        "LICENSE",
        "_nlcBuildMetadata.json",
        "libggml-base.so",
        "libggml.b10361.so",
        "libllama-common.so",
        "libllama.b10361.so",
        "checked.json",
        "receipt.json",
    }
    assert build.receipt is not None
    assert build.receipt["urls"] == [
        f"{registry.url}/@node-llama-cpp/linux-x64/-/linux-x64-3.20.0.tgz"
    ]


def test_the_cuda_12_extension_replaces_the_cuda_library(
    registry: Any, make: Any, linux: None
) -> None:
    files = make.npm_files("v0.5.0", "cuda")
    files["package/bins/linux-x64-cuda/libggml-cuda.so"] = make.elf(symbols=("thirteen",))
    registry.npm("@node-llama-cpp/linux-x64-cuda", "3.20.0", files)
    twelve = make.elf(symbols=("twelve",))
    registry.npm(
        "@node-llama-cpp/linux-x64-cuda-ext",
        "3.20.0",
        {"package/bins/linux-x64-cuda/fallback/libggml-cuda.so": twelve, "package/LICENSE": b""},
    )
    build = fetch("npm:3.20.0", backend="cuda12", progress=False)
    assert (build.folder / "libggml-cuda.so").read_bytes() == twelve
    assert build.variant == "cuda12"
    assert "no NVIDIA driver" in build.backend_reason


def test_the_registrys_hash_is_compared_with_the_pin(registry: Any, make: Any, linux: None) -> None:
    registry.npm("@node-llama-cpp/linux-x64", "3.22.1", make.npm_files())
    with pytest.raises(
        FetchError, match=r"offers .*3\.22\.1 with hash .* pinned it as sha512-5uCC"
    ):
        fetch("npm:3.22.1", backend="cpu", progress=False)


def test_a_wrong_hash_installs_nothing(registry: Any, make: Any, linux: None, cache: Path) -> None:
    wrong = "sha512-" + base64.b64encode(bytes(64)).decode()
    registry.npm("@node-llama-cpp/linux-x64", "3.20.0", make.npm_files(), integrity=wrong)
    with pytest.raises(FetchError, match="wrong hash"):
        fetch("npm:3.20.0", backend="cpu", progress=False)
    assert not (cache / "builds").exists()
    assert list((cache / "tmp").iterdir()) == []


def test_a_mirror_that_forwards_the_origins_document_serves_the_file_itself(
    registry: Any, make: Any, linux: None
) -> None:
    registry.npm("@node-llama-cpp/linux-x64", "3.20.0", make.npm_files())
    document = registry.replies["/@node-llama-cpp/linux-x64"]
    document.body = document.body.replace(registry.url.encode(), b"http://origin.invalid")
    assert fetch("npm:3.20.0", backend="cpu", progress=False).version == "3.20.0"


def test_the_token_goes_to_the_registry_only(
    registry: Any, make: Any, linux: None, tmp_path: Path
) -> None:
    host = registry.url.removeprefix("http:")
    (tmp_path / "home" / ".npmrc").write_text(f"{host}/:_authToken=secret\n")
    registry.npm("@node-llama-cpp/linux-x64", "3.20.0", make.npm_files())
    fetch("npm:3.20.0", backend="cpu", progress=False)
    assert all(h["Authorization"] == "Bearer secret" for _, h in registry.seen)
    elsewhere = type(registry)()
    try:
        tarball = "/@node-llama-cpp/linux-x64/-/linux-x64-3.20.0.tgz"
        elsewhere.replies[tarball] = registry.replies.pop(tarball)
        document = registry.replies["/@node-llama-cpp/linux-x64"]
        document.body = document.body.replace(registry.url.encode(), elsewhere.url.encode())
        npm._document.cache_clear()
        fetch("npm:3.20.0", backend="cpu", force=True, progress=False)
        assert "Authorization" not in elsewhere.asked(tarball)[0]
    finally:
        elsewhere.close()


def test_versions_and_latest(registry: Any, make: Any) -> None:
    for version in ("3.9.0", "3.10.0", "3.22.1", "3.2.0"):
        registry.npm("@node-llama-cpp/linux-x64", version, {"package/x": b""})
    assert npm.versions("linux-x64") == ["3.22.1", "3.10.0", "3.9.0", "3.2.0"]
    assert npm.latest("linux-x64") == "3.2.0"  # the registry's own `latest`


def test_missing_packages_and_versions_are_named(registry: Any, make: Any) -> None:
    registry.npm("@node-llama-cpp/linux-x64", "3.20.0", {"package/x": b""})
    with pytest.raises(NotOfferedError, match=r"no @node-llama-cpp/linux-x64@1\.0\.0"):
        npm.locate("linux-x64", "1.0.0")
    with pytest.raises(NotOfferedError, match="no package @node-llama-cpp/linux-arm64"):
        npm.locate("linux-arm64", "3.20.0")
    registry.replies["/@node-llama-cpp/bad"] = registry.Reply(b'{"versions": []}')
    with pytest.raises(FetchError, match="not a package document"):
        npm.locate("bad", "1")
    registry.replies["/@node-llama-cpp/old"] = registry.Reply(b'{"versions": {"1": {"dist": {}}}}')
    with pytest.raises(FetchError, match="no hash"):
        npm.locate("old", "1")


def test_every_default_has_a_pinned_hash() -> None:
    defaults = pins.table()["default"]["npm"]
    for (system, arch), variants in choose.NPM_VARIANTS.items():
        version = defaults.get(f"{system}-{arch}", defaults["*"])
        for name in {name for names in variants.values() for name in names}:
            pin = pins.package(version, name)
            assert pin is not None, (version, name)
            assert pin.size
            assert pin.integrity is not None
            assert len(base64.b64decode(pin.integrity.removeprefix("sha512-"))) == 64


def test_tags_resolve_to_the_newest_version_that_contains_them() -> None:
    assert pins.npm_version_of("v0.5.0") == "3.22.1"
    assert pins.npm_version_of("b4291") == "3.3.2"
    assert pins.npm_version_of("b1") is None
    assert pins.tag_of("3.1.1") == "b3889"
    assert len(pins.table()["tags"]) >= 33


def machine_with(**facts: Any) -> Machine:
    known: dict[str, Any] = {name: getattr(detect(), name) for name in Machine.__annotations__}
    known.update(os="linux", arch="x64", libc="glibc", libc_version="2.36", metal=False)
    known.update(cuda_driver=None, vulkan=False, variants=("cpu",), refused={"cuda": "no driver"})
    return Machine(**{**known, **facts})


def test_auto_prefers_cuda_then_vulkan_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cuda_runtime", lambda major: ([], []))
    full = machine_with(cuda_driver=(13, 0), vulkan=True, refused={})
    assert choose.npm_choice("3.22.1", "auto", full).variants == [
        "cuda",
        "cuda12",
        "vulkan",
        "cpu",
    ]
    older = machine_with(cuda_driver=(12, 4), vulkan=True, refused={})
    choice = choose.npm_choice("3.22.1", "auto", older)
    assert choice.variants == ["cuda12", "vulkan", "cpu"]
    assert choice.reason("cuda12") == (
        "cuda12, because cuda: the NVIDIA driver supports CUDA 12.4, the build needs 13; "
        "update the driver"
    )
    assert choose.npm_choice("3.5.0", "auto", older).variants == ["cuda", "vulkan", "cpu"]


def test_auto_without_the_cuda_runtime_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "cuda_runtime", lambda major: ([], [f"libcublas.so.{major}"]))
    choice = choose.npm_choice("3.22.1", "auto", machine_with(cuda_driver=(13, 0), refused={}))
    assert "llama-cffi[cuda13]" in choice.reasons()
    assert "llama-cffi[cuda12]" in choice.reasons()


def test_an_old_glibc_is_named_before_anything_is_fetched() -> None:
    choice = choose.npm_choice("3.22.1", "auto", machine_with(libc_version="2.31"))
    assert choice.variants == []
    assert "needs glibc 2.34, this system has 2.31" in choice.reasons()


def test_choices_on_other_platforms() -> None:
    mac = machine_with(os="mac", arch="arm64", libc="", metal=True, refused={"cuda": "no"})
    assert choose.npm_choice("3.21.1", "auto", mac).variants == ["metal"]
    assert choose.npm_choice("3.21.1", "cpu", mac).variants == ["metal"]
    nothing = choose.npm_choice("3.21.1", "auto", machine_with(arch="s390x"))
    assert not nothing.offered
    assert "no package for linux-s390x" in nothing.reasons()
    assert not choose.npm_choice("3.21.1", "rocm", machine_with()).offered
    musl = choose.npm_choice("3.21.1", "auto", machine_with(libc="musl", libc_version=""))
    assert "musl" in musl.reasons()
    assert "LLAMA_CFFI_LIB" in musl.reasons()


def test_software_vulkan_is_taken_only_on_request() -> None:
    lavapipe = machine_with(vulkan=True, refused={"cuda": "no", "vulkan": "no GPU"})
    assert choose.npm_choice("3.22.1", "auto", lavapipe).variants == ["cpu"]
    assert choose.npm_choice("3.22.1", "vulkan", lavapipe).variants == ["vulkan"]
