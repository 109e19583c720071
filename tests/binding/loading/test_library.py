"""Loading one build per process: chosen, refused, silent."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi import get_library
from llama_cffi.binding.loading.library import _JoinedLibraries
from llama_cffi.binding.loading.logs import LogBridge
from llama_cffi.errors import ValidationError

pytestmark = pytest.mark.lib

REPORT = """
import json, sys
import llama_cffi
try:
    library = llama_cffi.get_library()
    print(json.dumps({"abi": library.abi.as_dict(), "tag": library.build.tag,
                      "devices": [d.type for d in library.devices]}))
except llama_cffi.LlamaError as e:
    print(json.dumps({"error": type(e).__name__, "message": str(e)}))
"""


def test_the_default_build_is_loaded_once() -> None:
    library = get_library()
    assert get_library() is library
    assert library.abi.verdict == "exact"
    assert library.devices[0].type == "cpu"
    assert library.devices[0].memory_total_bytes > 2**30
    assert "CPU" in library.system_info
    assert library.has("llama_decode")
    assert not library.has("llama_no_such_function")
    assert library.lib.llama_time_us() > 0
    assert "exact" in repr(library)
    assert "llama_context_params 160" in str(library.abi)


@pytest.mark.parametrize(("build", "tag"), [(OLD, "b3889"), (MIDDLE, "b6673"), (NEWEST, "v0.5.0")])
def test_a_build_is_chosen_by_the_environment(child: Child, build: str, tag: str) -> None:
    done = child(REPORT, LLAMA_CFFI_BUILD=build)
    report = json.loads(done.stdout)
    assert (report["tag"], report["abi"]["verdict"]) == (tag, "exact")
    assert "cpu" in report["devices"]
    assert done.stderr == ""


VARIANT = """
    import json
    import llama_cffi
    try:
        devices = [d.type for d in llama_cffi.get_library().devices]
    except llama_cffi.LibraryLoadError as e:
        print(json.dumps({"error": str(e)}))
    else:
        lines = [line for line in open("/proc/self/maps") if "ggml-cpu" in line]
        files = sorted({line.split("/")[-1].strip() for line in lines})
        print(json.dumps({"files": files, "devices": devices}))
"""


def test_a_cpu_variant_is_chosen_by_the_environment(child: Child) -> None:
    files = [path.name for path in get_library().build.folder.glob("libggml-cpu-*.so")]
    assert len(files) > 1
    n_run = 0
    for file in files:
        name = file.removeprefix("libggml-cpu-").removesuffix(".so")
        report = json.loads(child(VARIANT, LLAMA_CFFI_CPU_VARIANT=name).stdout)
        if "error" in report:
            assert f"{name!r} does not run on this CPU" in report["error"]
        else:
            assert report == {"files": [file], "devices": ["cpu"]}
            n_run += 1
    assert n_run > 0


def test_a_cpu_variant_that_the_build_lacks(child: Child) -> None:
    report = json.loads(child(VARIANT, LLAMA_CFFI_CPU_VARIANT="i386").stdout)
    assert "'i386'" in report["error"]
    assert all(
        p.stem[12:] in report["error"] for p in get_library().build.folder.glob("*-cpu-*.so")
    )
    # Of several names the first that the build has counts.
    mine = str(json.loads(child(VARIANT, LLAMA_CFFI_CPU_VARIANT="").stdout)["files"][0])
    name = mine.removeprefix("libggml-cpu-").removesuffix(".so")
    report = json.loads(child(VARIANT, LLAMA_CFFI_CPU_VARIANT=f"i386, {name},sse42").stdout)
    assert report["files"] == [mine]
    # One CPU backend for all: there is nothing to choose.
    report = json.loads(child(VARIANT, LLAMA_CFFI_BUILD=OLD, LLAMA_CFFI_CPU_VARIANT="i386").stdout)
    assert report["devices"] == ["cpu"]


def test_a_foreign_library_is_loaded_by_path(child: Child, foreign_library: Path) -> None:
    done = child(REPORT, LLAMA_CFFI_LIB=str(foreign_library))
    report = json.loads(done.stdout)
    assert report["abi"]["verdict"] == "compatible"
    assert report["abi"]["class"] == "b11549"
    assert report["abi"]["tag"] is None


def test_a_missing_library_says_so(child: Child, tmp_path: Path) -> None:
    report = json.loads(child(REPORT, LLAMA_CFFI_LIB=str(tmp_path / "no.so")).stdout)
    assert report["error"] == "LibraryNotFoundError"
    assert str(tmp_path / "no.so") in report["message"]


def test_a_library_that_is_not_llama_cpp_is_an_error(child: Child, tmp_path: Path) -> None:
    base = shutil.copy(get_library().build.folder / "libggml-base.so", tmp_path)
    report = json.loads(child(REPORT, LLAMA_CFFI_LIB=str(base)).stdout)
    assert report["error"] == "AbiMismatchError"
    assert "is not a llama.cpp library" in report["message"]


def test_a_truncated_library_is_an_error(child: Child, tmp_path: Path) -> None:
    broken = tmp_path / "libllama.so"
    broken.write_bytes(get_library().path.read_bytes()[:100_000])
    report = json.loads(child(REPORT, LLAMA_CFFI_LIB=str(broken)).stdout)
    assert report["error"] in {"LibraryLoadError", "LibraryNotFoundError", "FetchError"}
    assert str(broken) in report["message"]


def test_a_folder_without_a_cpu_backend_says_so(child: Child, tmp_path: Path) -> None:
    for path in get_library().build.folder.iterdir():
        if "cpu" not in path.name and path.suffix == ".so":
            shutil.copy(path, tmp_path)
    report = json.loads(child(REPORT, LLAMA_CFFI_LIB=str(tmp_path)).stdout)
    assert report["error"] == "LibraryLoadError"
    assert "no backend" in report["message"]


def test_a_truncated_backend_is_an_error(child: Child, tmp_path: Path) -> None:
    """ggml would map it and die of SIGBUS."""
    for path in get_library().build.folder.glob("*.so"):
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: 2**18] if "zen4" in path.name else data)
    report = json.loads(child(REPORT, LLAMA_CFFI_LIB=str(tmp_path)).stdout)
    assert report["error"] == "LibraryLoadError"
    assert "libggml-cpu-zen4.so is a damaged ELF file" in report["message"]


def test_forcing_a_wrong_class_is_refused(child: Child) -> None:
    report = json.loads(child(REPORT, LLAMA_CFFI_BUILD=NEWEST, LLAMA_CFFI_ABI="b3889").stdout)
    assert report["error"] == "AbiMismatchError"
    assert "LLAMA_CFFI_ABI=b3889 does not fit" in report["message"]
    assert "Nothing was called" in report["message"]


def test_a_second_build_is_refused(child: Child) -> None:
    done = child(
        """
        import llama_cffi
        llama_cffi.get_library("npm:3.22.1")
        try:
            llama_cffi.get_library("npm:3.14.0")
        except llama_cffi.LibraryLoadError as e:
            print(e)
        """
    )
    assert "this process already runs" in done.stdout
    assert "another Python process" in done.stdout


def test_another_llama_cpp_in_the_process_is_refused(child: Child, tmp_path: Path) -> None:
    """As after `import llama_cpp`: its libggml-base would be shared by name."""
    for path in get_library().build.folder.iterdir():
        if path.suffix == ".so":
            shutil.copy(path, tmp_path)
    done = child(
        """
        import ctypes, glob, sys
        import llama_cffi
        ctypes.CDLL(glob.glob(sys.argv[1] + "/libggml-base.so")[0])
        try:
            llama_cffi.get_library()
        except llama_cffi.LibraryLoadError as e:
            print(e)
        """,
        tmp_path,
    )
    assert "is already loaded in this process" in done.stdout


def test_a_read_only_cache_works(child: Child, shared_cache: Path, tmp_path: Path) -> None:
    """Without write access declarations are parsed in line and the library is loaded by path."""
    get_library()
    cache = tmp_path / "file"
    cache.write_text("a file where the cache should be")
    library = get_library().path
    done = child(REPORT, LLAMA_CFFI_LIB=str(library), LLAMA_CFFI_CACHE=str(cache))
    assert json.loads(done.stdout)["abi"]["verdict"] == "exact", done.stdout


def test_after_a_refused_build_another_one_works(child: Child) -> None:
    """Its log callback stays valid, and exit prints nothing."""
    done = child(
        """
        import gc, os
        import llama_cffi
        os.environ["LLAMA_CFFI_ABI"] = "b3889"
        for _ in range(2):
            try:
                llama_cffi.get_library()
            except llama_cffi.AbiMismatchError:
                gc.collect()
        del os.environ["LLAMA_CFFI_ABI"]
        print(llama_cffi.get_library().abi.verdict)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "exact\n", "")


def test_user_mode_generates_from_the_builds_own_headers(child: Child) -> None:
    done = child(REPORT, LLAMA_CFFI_BUILD=OLD, LLAMA_CFFI_ABI="user")
    report = json.loads(done.stdout)
    assert report["abi"]["verdict"] == "user"
    assert report["abi"]["class"] == "user-b3889"


def test_user_mode_refuses_other_headers(child: Child, shared_cache: Path) -> None:
    child(REPORT, LLAMA_CFFI_BUILD=OLD, LLAMA_CFFI_ABI="user")
    headers = shared_cache / "headers" / "b3889"
    done = child(
        REPORT, LLAMA_CFFI_BUILD=NEWEST, LLAMA_CFFI_ABI="user", LLAMA_CFFI_HEADERS=str(headers)
    )
    report = json.loads(done.stdout)
    assert report["error"] == "AbiMismatchError"
    assert "headers do not belong to this build" in report["message"]


def test_nothing_is_printed_and_everything_is_logged(child: Child, tiny_model: Path) -> None:
    done = child(
        """
        import logging, sys
        seen = []
        class Keep(logging.Handler):
            def emit(self, record):
                seen.append(record)
        logging.getLogger("llama_cffi.native").addHandler(Keep())
        logging.getLogger("llama_cffi.native").setLevel(logging.DEBUG)
        from llama_cffi import Model
        with Model(sys.argv[1]):
            pass
        levels = {r.levelname for r in seen}
        assert "INFO" in levels or "DEBUG" in levels, levels
        assert any("general.architecture" in r.getMessage() for r in seen)
        """,
        tiny_model,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_log_lines_are_joined_and_kept_until_the_levels_are_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ffi = get_library().ffi
    bridge = LogBridge(ffi)
    caplog.set_level(logging.DEBUG, logger="llama_cffi.native")
    send = bridge.callback
    send(3, ffi.new("char[]", b"first "), ffi.NULL)
    send(5, ffi.new("char[]", b"half\n"), ffi.NULL)
    assert caplog.messages == []
    bridge.set_levels({"GGML_LOG_LEVEL_WARN": 3, "GGML_LOG_LEVEL_ERROR": 4})
    assert caplog.messages == ["first half"]
    with bridge.capture() as lines:
        send(4, ffi.new("char[]", b"bad \xff byte\n"), ffi.NULL)
        send(3, ffi.new("char[]", b"....\n"), ffi.NULL)
    assert lines == ["bad \ufffd byte"]
    assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR"]


def test_functions_are_found_across_several_handles() -> None:
    """As on Windows, where ggml's functions are found only through ggml's own handles."""
    library = get_library()
    base = library.ffi.dlopen(str(library.build.folder / "libggml-base.so"))
    joined = _JoinedLibraries([base, library.lib], library.ffi.error)
    assert joined.ggml_log_set == base.ggml_log_set
    assert joined.llama_time_us() > 0
    assert "llama_time_us" in vars(joined)
    with pytest.raises(AttributeError, match="no llama_x in this build"):
        _ = joined.llama_x


def test_a_closed_handle_is_refused(tiny_model: Path) -> None:
    from llama_cffi import Model

    model = Model(tiny_model)
    model.close()
    model.close()
    with pytest.raises(ValidationError, match="this Model is closed"):
        _ = model.n_params
