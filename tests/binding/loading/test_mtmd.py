from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.children import Child

from llama_cffi import cdefs
from llama_cffi.binding.loading.abi import AbiIdentity, Measurement
from llama_cffi.binding.loading.mtmd import why_unusable

NEWEST, PARAMS = "b11549", "mtmd_context_params"


def identity(name: str, verdict: str, exports: frozenset[str]) -> AbiIdentity:
    measured = Measurement(exports, {}, name if verdict == "exact" else None)
    return AbiIdentity(verdict, cdefs.abi_class(name), measured)  # type: ignore[arg-type]


def written(name: str) -> bytes:
    layout = cdefs.abi_class(name).layouts[PARAMS]
    return layout.written + bytes(512 - layout.size)


def mtmd(name: str) -> frozenset[str]:
    return frozenset(f for f in cdefs.abi_class(name).functions if f.startswith("mtmd_"))


def why(name: str, verdict: str, exports: frozenset[str], params: bytes | None) -> str:
    return why_unusable(identity(name, verdict, exports), params, cdefs.all_classes())


@pytest.mark.parametrize("name", ["b9842", "b10068", "b10361", "b10566", "v0.4.0", NEWEST])
def test_a_library_of_a_named_class(name: str) -> None:
    assert why(name, "exact", mtmd(name), written(name)) == ""
    if name not in ("b9842", "b10068"):  # see test_classes_that_only_differ_in_what_cannot_be_seen
        assert why(name, "compatible", mtmd(name), written(name)) == ""


def test_no_libmtmd() -> None:
    reason = why(NEWEST, "exact", frozenset(["llama_decode"]), None)
    assert "has no libmtmd" in reason
    assert "b9842" in reason  # the first build that works


def test_a_class_that_is_too_old() -> None:
    assert "too old" in why("b9294", "exact", mtmd("b9294"), written("b9294"))


def test_other_parameters_than_declared() -> None:
    reason = why(NEWEST, "exact", mtmd(NEWEST), written("b9842"))
    assert reason.startswith(f"libmtmd does not fit ABI class {NEWEST}: {PARAMS}: 80 bytes")


def test_without_a_tag_the_functions_must_be_those_of_the_class() -> None:
    helpers = {f for f in mtmd(NEWEST) if f.startswith("mtmd_helper_")}
    assert why(NEWEST, "compatible", mtmd(NEWEST) - helpers, written(NEWEST)) == ""
    for exports in (mtmd(NEWEST) - {"mtmd_tokenize"}, mtmd(NEWEST) | {"mtmd_new"}):
        reason = why(NEWEST, "compatible", exports, written(NEWEST))
        assert f"its {len(exports)} functions are not those of the class" in reason


def test_classes_that_only_differ_in_what_cannot_be_seen() -> None:
    # b10068 has the functions and parameters of b9842, and another mtmd_input_text.
    assert mtmd("b9842") == mtmd("b10068")
    assert written("b9842") == written("b10068")
    reason = why("b10068", "compatible", mtmd("b10068"), written("b10068"))
    assert "several ABI classes with different layouts of mtmd_input_text" in reason


SHOW = """
from llama_cffi.binding import get_library
library = get_library()
print(library.no_multimodal or "works", library.has("mtmd_tokenize"))
if not library.no_multimodal:
    print(library.ffi.string(library.lib.mtmd_default_marker()).decode())
"""


@pytest.mark.network
def test_libmtmd_in_a_file_of_its_own(child: Child, foreign_library: Path, tmp_path: Path) -> None:
    # The same file under both names is loaded once, as libllama and libmtmd of one build are.
    for name in ("libllama.so", "libmtmd.so"):
        (tmp_path / name).symlink_to(foreign_library)
    done = child(SHOW, LLAMA_CFFI_LIB=str(tmp_path / "libllama.so"))
    assert done.stdout.splitlines() == ["works True", "<__media__>"], done.stderr


@pytest.mark.network
def test_libmtmd_that_cannot_be_loaded(child: Child, tmp_path: Path) -> None:
    from llama_cffi.binding import get_library

    shutil.copytree(get_library().path.parent, tmp_path / "build", symlinks=True)
    build = tmp_path / "build"
    shutil.copy(get_library().path, build / "libmtmd.so")
    path = build / "libmtmd.so"
    data = bytearray(path.read_bytes())
    data = data.replace(b"libggml-base.so", b"libggml-none.so")
    path.write_bytes(data)
    done = child("import logging; logging.basicConfig()\n" + SHOW, LLAMA_CFFI_LIB=str(build))
    assert done.returncode == 0, done.stderr
    assert "has no libmtmd" in done.stdout
    assert "cannot load" in done.stderr


def test_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    from llama_cffi import ValidationError
    from llama_cffi.binding import Model, Projector, get_library

    assert "has no libmtmd" in get_library().no_multimodal
    with (
        Model(tiny_model) as model,
        pytest.raises(ValidationError, match="pictures and sounds do not work: this build"),
    ):
        Projector(model, "mmproj.gguf")


def test_an_unnamed_measurement_is_compatible_only() -> None:
    exact = identity(NEWEST, "exact", mtmd(NEWEST))
    assert why_unusable(replace(exact, verdict="user"), written(NEWEST), cdefs.all_classes()) == ""
