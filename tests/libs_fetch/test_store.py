from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import progress
from llama_cffi.errors import FetchError, LibraryLoadError, LibraryNotFoundError
from llama_cffi.libs_fetch import cache_dir, ensure, fetch, installed, store, verify

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
pytestmark = pytest.mark.usefixtures("linux")
PACKAGE = "@node-llama-cpp/linux-x64"
TARBALL = "/@node-llama-cpp/linux-x64/-/linux-x64-{}.tgz"
# Run by a second process, which has no monkeypatches and so has to describe the machine itself.
ENSURE = """
from llama_cffi.libs_fetch import machine
machine.os_name, machine.arch_name = lambda: "linux", lambda: "x64"
machine.glibc = lambda: ("glibc", "2.36")
machine._cuda_driver = lambda: (None, "no NVIDIA driver")
machine._vulkan_loader = lambda: "no Vulkan loader"
from llama_cffi.errors import LlamaError
from llama_cffi.libs_fetch import ensure
try:
    print(ensure("npm:3.20.0", backend="cpu", progress=False).library)
except LlamaError as exc:
    print(type(exc).__name__, exc)
"""


def get(spec: str = "npm:3.20.0", **more: Any) -> store.InstalledBuild:
    return ensure(spec, backend="cpu", progress=False, **more)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out.strip()


def test_the_cache_is_where_platformdirs_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.delenv("LLAMA_CFFI_CACHE")
    expected = platformdirs.user_cache_dir("llama_cffi", appauthor=False)
    assert cache_dir() == Path(expected)
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_dir() == Path(platformdirs.user_cache_dir("llama_cffi", appauthor=False))


@pytest.mark.parametrize(
    "name",
    [
        "libllama.so",
        "libllama.b6673.so",
        "libllama.cuda.v0.5.0.so",
        "libllama.b7698.so.0.0.1",
        "libllama.so.0",
        "libllama.dylib",
        "libllama.0.dylib",
        "libllama.metal.v0.4.0.dylib",
        "llama.dll",
        "llama.cuda.v0.4.0.dll",
    ],
)
def test_names_of_libllama(name: str) -> None:
    assert store.is_libllama(name)


@pytest.mark.parametrize(
    "name", ["libllama-common.so", "libggml.so", "llama-addon.node", "libllama.so.txt", "llama.lib"]
)
def test_names_of_other_files(name: str) -> None:
    assert not store.is_libllama(name)


def test_a_build_is_fetched_once(published: Any) -> None:
    first = get()
    asked = len(published.seen)
    assert get() == first
    assert len(published.seen) == asked
    assert get(offline=True) == first


def test_two_concurrent_processes_fetch_once(published: Any, child: Callable[..., Any]) -> None:
    published.replies[TARBALL.format("3.20.0")].chunk_s = 0.1
    both = [child(ENSURE) for _ in range(2)]
    libraries = {finish(process) for process in both}
    assert len(libraries) == 1
    assert Path(libraries.pop()).is_file()
    assert len(published.asked(TARBALL.format("3.20.0"))) == 1


def test_the_download_of_a_killed_process_is_resumed(
    published: Any, child: Callable[..., Any], cache: Path
) -> None:
    tarball = published.replies[TARBALL.format("3.20.0")]
    tarball.chunk_s = 0.2
    process = child(ENSURE)
    part = None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (part and part.stat().st_size):
        time.sleep(0.01)
        part = next(iter((cache / "tmp").glob("*.part")), None)
    process.kill()
    process.communicate()
    assert part is not None
    had = part.stat().st_size
    assert 0 < had < len(tarball.body)
    assert installed() == []
    tarball.chunk_s = 0.0
    assert get().library.is_file()
    assert published.asked(TARBALL.format("3.20.0"))[-1]["Range"] == f"bytes={had}-"
    assert list((cache / "tmp").iterdir()) == []


def test_leftovers_of_a_crash_are_deleted(published: Any, cache: Path) -> None:
    left = cache / "tmp" / "npm-3.20.0-cpu.0123.staging"
    left.mkdir(parents=True)
    (left / "libllama.so").write_bytes(b"half")
    get()
    assert not left.exists()


def test_an_archive_that_cannot_be_unpacked_installs_nothing(
    registry: Any, make: Any, cache: Path
) -> None:
    registry.npm(PACKAGE, "3.20.0", {"../evil": b"", **make.npm_files()})
    registry.npm(PACKAGE, "3.19.0", {"package/bins/linux-x64/nothing.so": b""})
    with pytest.raises(FetchError, match="refused"):
        get()
    with pytest.raises(FetchError, match="holds no libllama"):
        get("npm:3.19.0")
    assert installed() == []
    assert not (cache / "builds").exists()
    assert list((cache / "tmp").iterdir()) == []  # the archives are gone too


def test_a_missing_or_short_file_is_named_and_fetched_again(
    published: Any, caplog: pytest.LogCaptureFixture
) -> None:
    build = get()
    (build.folder / "libggml-base.so").unlink()
    (build.folder / "libllama-common.so").write_bytes(b"short")
    with pytest.raises(LibraryNotFoundError, match=r"damaged: .*libggml-base\.so is missing"):
        get(offline=True)
    with caplog.at_level(logging.WARNING):
        assert get().library == build.library
    assert "libllama-common.so has 5 bytes, expected" in caplog.text
    assert store.damage(get()) == []
    assert len(published.asked(TARBALL.format("3.20.0"))) == 2


def tamper(path: Path) -> bytes:
    """Change the last byte of a file and keep its size; return what it was."""
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    return original


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("name", ["libllama.b10361.so", "libggml-base.so", "LICENSE"])
def test_a_file_changed_without_its_size_is_refused_by_name_and_fetched_again(
    published: Any, name: str, seen: bool
) -> None:
    build = get()
    if seen:
        time.sleep(0.03)  # files of this clock tick are not remembered as checked
        get()
    path = build.folder / name
    original = tamper(path)
    with pytest.raises(LibraryNotFoundError, match=rf"damaged: \S+{name} has sha256 .*, expected"):
        get(offline=True)
    with pytest.raises(LibraryLoadError, match=rf"{name} has sha256 .*libs fetch npm:3\.20\.0"):
        ensure(str(build.library))
    assert get().library == build.library
    assert path.read_bytes() == original
    assert ensure(str(build.library)).library == build.library


def test_a_replaced_file_with_the_old_times_is_refused(published: Any, tmp_path: Path) -> None:
    build = get()
    time.sleep(0.03)
    get()
    status = build.library.stat()
    other = tmp_path / "other"
    other.write_bytes(build.library.read_bytes())
    tamper(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, build.library)
    with pytest.raises(LibraryNotFoundError, match="has sha256"):
        get(offline=True)


@pytest.mark.parametrize("name", ["libggml-evil.so", "libggml-evil.so.0", "GGML-EVIL.DLL"])
def test_a_library_that_is_not_in_the_receipt_is_refused(published: Any, name: str) -> None:
    build = get()
    (build.folder / name).write_bytes(b"")
    with pytest.raises(LibraryNotFoundError, match=rf"{name} is not in the receipt"):
        get(offline=True)
    get()
    assert not (build.folder / name).exists()


@pytest.mark.skipif(os.name == "nt", reason="makes a FIFO")
def test_a_fifo_in_place_of_a_file_is_missing_and_not_waited_for(published: Any) -> None:
    build = get()
    build.library.unlink()
    os.mkfifo(build.library)
    with pytest.raises(LibraryNotFoundError, match="is missing"):
        get(offline=True)


def test_a_file_is_hashed_once_per_boot_and_identity(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real = store.file_digest

    def counted(path: Path, algorithm: str = "sha256") -> str:
        hashed.append(path.name)
        return real(path, algorithm)

    def hashes_of_a_start() -> int:
        hashed.clear()
        get(offline=True)
        return len(hashed)

    build = get()
    time.sleep(0.03)
    get()
    monkeypatch.setattr(store, "file_digest", counted)
    n_files = len(dict(build.receipt or {})["files"])
    assert hashes_of_a_start() == 0
    os.utime(build.library)
    time.sleep(0.03)
    assert hashes_of_a_start() == 1
    assert hashes_of_a_start() == 0
    monkeypatch.setattr(store, "boot_id", lambda: "another boot")
    assert hashes_of_a_start() == n_files
    assert hashes_of_a_start() == 0
    monkeypatch.setenv("LLAMA_CFFI_VERIFY", "1")
    assert hashes_of_a_start() == n_files
    monkeypatch.delenv("LLAMA_CFFI_VERIFY")
    (build.folder / store.CHECKED).write_text('{"boot": 3, "files": [1]}')
    assert hashes_of_a_start() == n_files
    assert hashes_of_a_start() == 0


def test_a_modified_file_is_found_by_verify_and_then_fetched_again(published: Any) -> None:
    build = get()
    original = tamper(build.library)
    (problem,) = verify(build)
    assert str(build.library) in problem
    assert "sha256" in problem
    with pytest.raises(LibraryNotFoundError, match="damaged"):
        get(offline=True)
    assert get().library.read_bytes() == original
    assert verify(get()) == []


def test_verify_accepts_a_build_that_was_repaired(published: Any) -> None:
    build = get()
    moved = build.folder / "away"
    build.library.rename(moved)
    assert "is missing" in verify(build)[0]
    moved.rename(build.library)
    assert verify(build) == []
    assert get(offline=True) == build


def test_a_damaged_receipt_counts_as_no_build(published: Any, cache: Path) -> None:
    get()
    receipt = cache / "builds/npm/3.20.0/cpu/receipt.json"
    for text in ("{", "[]", "{}", '{"library": 3}'):
        receipt.write_text(text)
        assert installed() == []
        assert get().library.is_file()


def test_force_replaces(published: Any) -> None:
    build = get()
    (build.folder / "stray").write_bytes(b"")
    fetch("npm:3.20.0", backend="cpu", force=True, progress=False)
    assert not (build.folder / "stray").exists()
    assert len(published.asked(TARBALL.format("3.20.0"))) == 2


def test_the_receipt_holds_every_file_and_no_credentials(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_NPM_REGISTRY", published.url.replace("//", "//me:secret@"))
    build = get()
    text = (build.folder / "receipt.json").read_text()
    assert "secret" not in text
    receipt = json.loads(text)
    names = {path.name for path in build.folder.iterdir()} - {"receipt.json", "checked.json"}
    assert set(receipt["files"]) == names
    assert receipt["files"]["libllama.b10361.so"]["size"] == build.library.stat().st_size
    assert receipt["tag"] == "b10361"


def in_mount(mount: str) -> list[str]:
    """Return the arguments that run a command in its own mount namespace after *mount*."""
    here = ["unshare", "--mount"]
    if os.geteuid() != 0:
        here += ["--user", "--map-root-user"]
        if subprocess.run([*here, "true"], capture_output=True).returncode:  # not permitted
            here = ["sudo", "--non-interactive", "--preserve-env", "unshare", "--mount"]
    return [*here, "sh", "-ec", f'{mount}; exec "$@"', "sh"]


@linux_only
def test_a_full_disk_is_an_error_with_numbers_and_keeps_no_file(
    published: Any, child: Callable[..., Any], cache: Path
) -> None:
    cache.mkdir()
    tarball = published.replies[TARBALL.format("3.20.0")]
    small = in_mount(f"mount -t tmpfs -o size=128k none {cache}")
    look = f"{ENSURE}\nimport os\nprint(sum(len(f) for r, _, f in os.walk({str(cache)!r})))"
    said, left = finish(child(look, *small)).splitlines()
    assert said.startswith("FetchError")
    assert f"{len(tarball.body):,} bytes needed" in said
    assert "LLAMA_CFFI_CACHE" in said
    assert int(left) <= 1  # the lock file
    # The server does not send the length, so the disk fills up during the download.
    tarball.say_length = False
    said, left = finish(child(look, *small)).splitlines()
    assert "too full" in said
    assert int(left) <= 1


@linux_only
def test_a_disk_with_space_for_the_archive_but_not_for_its_content(
    registry: Any, make: Any, child: Callable[..., Any], cache: Path
) -> None:
    cache.mkdir()
    files = make.npm_files()
    files["package/bins/linux-x64/libggml-cpu.so"] = bytes(1 << 20)
    registry.npm(PACKAGE, "3.20.0", files)
    said = finish(child(ENSURE, *in_mount(f"mount -t tmpfs -o size=256k none {cache}")))
    assert said.startswith("FetchError")
    assert "unpacking" in said
    assert "bytes needed" in said


@linux_only
def test_a_read_only_cache_serves_its_builds(
    published: Any, child: Callable[..., Any], cache: Path
) -> None:
    library = get().library
    frozen = in_mount(f"mount --bind {cache} {cache}; mount -o remount,bind,ro {cache}")
    assert finish(child(ENSURE, *frozen)) == str(library)
    auto = ENSURE.replace('backend="cpu", ', "")
    assert finish(child(auto, *frozen, CUDA_VISIBLE_DEVICES="")) == str(library)
    shutil.rmtree(cache / "builds")
    said = finish(child(ENSURE, *frozen))
    assert said.startswith("FetchError")
    assert "LLAMA_CFFI_CACHE" in said
    assert str(cache) in said


def test_a_cache_that_is_a_file_is_named(
    published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMA_CFFI_CACHE", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="LLAMA_CFFI_CACHE"):
        get()


def test_waiting_for_another_process_is_logged_and_times_out(
    published: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(progress, "PATIENCE_S", 0.05)
    monkeypatch.setattr(store, "_LOCK_LIMIT_S", 0.3)
    path = cache_dir() / "locks" / "npm-3.20.0-cpu.lock"
    path.parent.mkdir(parents=True)
    with (
        caplog.at_level(logging.WARNING),
        FileLock(str(path)),
        pytest.raises(FetchError, match="another process has held"),
    ):
        get()
    assert "waiting for another process that fetches or changes npm-3.20.0-cpu" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_in_a_download_leaves_no_build(
    published: Any, child: Callable[..., Any], cache: Path
) -> None:
    published.replies[TARBALL.format("3.20.0")].chunk_s = 0.2
    process = child(ENSURE)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not list((cache / "tmp").glob("*.part")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    assert installed() == []
    assert not list((cache / "tmp").glob("*.staging"))
