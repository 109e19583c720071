"""Finding, identifying and refusing builds of whisper.cpp; real ones run in children."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import pytest
from support.children import Child
from support.tiny_whisper import random_weights, write_model
from support.whisper_libraries import fetch_libwhisper, fetch_node_module

from llama_cffi import cdefs
from llama_cffi.binding.loading import abi
from llama_cffi.binding.whisper.library import find_library, get_whisper_library
from llama_cffi.errors import AbiMismatchError, LibraryLoadError, LibraryNotFoundError

CLASSES = cdefs.WHISPER.classes()
STRUCTS = ("whisper_context_params", "whisper_full_params")


def measured(
    c: cdefs.AbiClass, tag: str | None = None, *, padding: bool = False
) -> abi.Measurement:
    """Measurements of a perfect build of a class."""
    written = {}
    for name in STRUCTS:
        layout = c.layouts[name]
        body = b"\x01" * layout.size if padding else layout.written
        written[name] = body.ljust(512, b"\0")
    return abi.Measurement(c.functions, written, tag)


@pytest.mark.parametrize("c", CLASSES, ids=lambda c: c.name)
@pytest.mark.parametrize("padding", [False, True])
def test_a_known_build_is_exact(c: cdefs.AbiClass, padding: bool) -> None:
    for tag in c.builds:
        identity = abi.identify(measured(c, tag, padding=padding), CLASSES, project=abi.WHISPER)
        assert (identity.verdict, identity.name) == ("exact", c.name)


@pytest.mark.parametrize("c", CLASSES, ids=lambda c: c.name)
def test_a_build_without_a_tag_gets_the_class_of_its_functions(c: cdefs.AbiClass) -> None:
    identity = abi.identify(measured(c), CLASSES, project=abi.WHISPER)
    assert (identity.verdict, identity.name) == ("compatible", c.name)


@pytest.mark.parametrize("offset", [-16, 8, 16])
def test_a_struct_of_another_size_is_refused(offset: int) -> None:
    """As in forks of whisper.cpp, which add fields."""
    newest = CLASSES[-1]
    build = measured(newest, newest.builds[-1])
    size = newest.layouts["whisper_full_params"].size + offset
    forked = {**build.written, "whisper_full_params": (b"\x01" * size).ljust(512, b"\0")}
    with pytest.raises(
        AbiMismatchError, match=r"no known ABI class fits this build of whisper.cpp"
    ):
        abi.identify(
            abi.Measurement(build.exports, forked, build.tag), CLASSES, project=abi.WHISPER
        )


def test_a_missing_function_is_refused() -> None:
    oldest = CLASSES[0]
    build = measured(oldest)
    fewer = abi.Measurement(build.exports - {"whisper_full_with_state"}, build.written)
    with pytest.raises(AbiMismatchError, match=r"1 functions missing \(whisper_full_with_state\)"):
        abi.identify(fewer, CLASSES, project=abi.WHISPER)


RUN = """
import json, logging, sys
from llama_cffi.whisper import Whisper

lines = []
logger = logging.getLogger("llama_cffi.native")
logger.setLevel(logging.DEBUG)
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logger.addHandler(handler)
logger.propagate = False

import numpy
with Whisper(sys.argv[2], sys.argv[1], 1) as whisper:
    samples = numpy.sin(numpy.arange(40_000) / 10, dtype="float32")
    result = whisper.transcribe(samples, temperature_inc=0)
abi = whisper.library.abi
print(json.dumps([abi.verdict, abi.name, whisper.library.name, len(lines), result.duration_s]))
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("w") / "random.bin", random_weights(), ftype=1)


BUILDS = {"v1.8.5": "pywhispercpp", "v1.7.4": "pywhispercpp-1.3.3"}


@pytest.mark.parametrize("version", BUILDS)
def test_real_builds_are_exact_and_silent(
    child: Child, shared_cache: Path, model_file: Path, version: str
) -> None:
    done = child(RUN, fetch_libwhisper(shared_cache, BUILDS[version]), model_file)
    assert done.stderr == ""  # all of C's lines went to `logging`
    verdict, name, tag, n_lines, duration = json.loads(done.stdout)
    assert (verdict, name, tag, duration) == ("exact", version, version, 2.5)
    assert n_lines > 10


if platform.machine() == "x86_64":

    def test_a_module_of_nodejs_is_compatible(
        child: Child, shared_cache: Path, model_file: Path
    ) -> None:
        done = child(RUN, fetch_node_module(shared_cache), model_file)
        assert done.stderr == ""
        assert json.loads(done.stdout)[:3] == ["compatible", "v1.9.2", "v1.9.3-dev"]


def test_an_older_build_is_refused(child: Child, shared_cache: Path) -> None:
    """Its whisper_context_params is a bool, returned in a register."""
    done = child(
        """
        import sys
        from llama_cffi import AbiMismatchError
        from llama_cffi.binding.whisper.library import get_whisper_library
        try:
            get_whisper_library(sys.argv[1])
        except AbiMismatchError as e:
            print(e)
        """,
        fetch_libwhisper(shared_cache, "pywhispercpp-1.2.0"),
    )
    assert "no known ABI class fits this build of whisper.cpp" in done.stdout
    assert "whisper_full_params 256 bytes" in done.stdout
    assert "Nothing was called" in done.stdout


def test_a_library_of_something_else_is_refused(tmp_path: Path) -> None:
    from llama_cffi import get_library
    from llama_cffi.binding.whisper import library

    # Not by get_whisper_library, which may have one in this process.
    with pytest.raises(AbiMismatchError, match=r"not a whisper.cpp library of v1.6.0 or later"):
        library._load(get_library().path)
    text = tmp_path / "libwhisper.so"
    text.write_text("no library")
    with pytest.raises(LibraryLoadError, match="is not a shared library"):
        library._load(text)


def test_it_runs_beside_libllama_with_the_same_results(
    child: Child, libwhisper: Path, model_file: Path
) -> None:
    """Each with its own ggml: what both compute is what each computes alone."""
    outputs = []
    for order in ("w", "l", "wlwl", "lwlw"):
        done = child(
            """
            import sys
            import numpy
            from llama_cffi import Llama, demo
            from llama_cffi.whisper import Whisper

            def l():
                with Llama(str(demo.model_path()), n_ctx=64, n_threads=1, verbose=False) as llm:
                    return llm("Hello", max_tokens=8, temperature=0)["choices"][0]["text"]

            def w():
                with Whisper(sys.argv[2], sys.argv[1], 1) as whisper:
                    samples = numpy.sin(numpy.arange(40_000) / 10, dtype="float32")
                    segments = whisper.transcribe(samples, temperature_inc=0).segments
                    return [(t.id, round(t.probability, 4)) for s in segments for t in s.tokens]

            for name in sys.argv[3]:
                print(name, globals()[name]())
            """,
            libwhisper,
            model_file,
            order,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
    alone = {outputs[0][0], outputs[1][0]}
    assert set(outputs[2]) == set(outputs[3]) == alone


def test_a_ggml_of_the_same_name_is_refused(child: Child, libwhisper: Path, tmp_path: Path) -> None:
    (ggml,) = libwhisper.parent.glob("libggml-base-*")
    (gomp,) = libwhisper.parent.glob("libgomp-*")
    for file in (ggml, gomp):
        shutil.copy(file, tmp_path)
    done = child(
        """
        import ctypes, sys
        from llama_cffi import LibraryLoadError
        from llama_cffi.binding.whisper.library import get_whisper_library
        ctypes.CDLL(sys.argv[2])
        try:
            get_whisper_library(sys.argv[1])
        except LibraryLoadError as e:
            print(e)
        """,
        libwhisper,
        tmp_path / ggml.name,
    )
    assert f"needs {ggml.name}" in done.stdout
    assert str(tmp_path / ggml.name) in done.stdout
    assert "Use one of them per process" in done.stdout


def test_one_library_per_process(libwhisper: Path, tmp_path: Path) -> None:
    library = get_whisper_library(libwhisper)
    assert get_whisper_library() is library
    assert get_whisper_library(libwhisper) is library
    other = tmp_path / "libwhisper.so"
    shutil.copy(libwhisper, other)
    with pytest.raises(LibraryLoadError, match="Start another Python process"):
        get_whisper_library(other)
    assert library.languages[:3] == ("en", "zh", "de")
    assert repr(library) == "<WhisperLibrary v1.8.5 abi=v1.8.5 (exact)>"


def test_the_library_of_an_installed_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy beside what it needs, and not the one at the top of site-packages."""
    wanted = tmp_path / "pywhispercpp.libs" / "libwhisper-1ab89ae8.so.1.8.5"
    names = ["libwhisper.so.1", "pywhispercpp/__init__.py", f"pywhispercpp.libs/{wanted.name}"]
    info = tmp_path / "pywhispercpp-1.5.1.dist-info"
    for name in [*names, "pywhispercpp-1.5.1.dist-info/METADATA"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pywhispercpp\nVersion: 1.5.1\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_library() == wanted.resolve()
    given = tmp_path / "libwhisper.so.1"
    monkeypatch.setenv("LLAMA_CFFI_WHISPER_LIB", str(given))
    assert find_library() == given.resolve()
    assert find_library(wanted) == wanted.resolve()
    with pytest.raises(LibraryNotFoundError, match=r"\(library=\) is not a file"):
        find_library(tmp_path)
    monkeypatch.setenv("LLAMA_CFFI_WHISPER_LIB", "missing.so")
    with pytest.raises(LibraryNotFoundError, match=r"missing.so \(LLAMA_CFFI_WHISPER_LIB\)"):
        find_library()


def test_without_a_package_the_message_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_cffi.binding.whisper import library

    monkeypatch.setattr(library, "_PACKAGES", ("no-such-package",))
    with pytest.raises(LibraryNotFoundError, match=r"llama-cffi\[whisper\]"):
        find_library()
