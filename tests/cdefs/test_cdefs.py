"""The stored classes: table, declarations, and the cost of importing them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cffi
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi import cdefs
from llama_cffi.cdefs import class_files
from llama_cffi.cdefs.describe import describe
from llama_cffi.errors import AbiMismatchError

# Reading one class takes 0.2 s and describing it 0.5 s; CDEFS_CLASSES=all does them all.
EVERY = os.environ.get("CDEFS_CLASSES") == "all"
SOME = cdefs.class_names() if EVERY else ("b3889", "b4980", "b8179", cdefs.NEWEST)
PROBED = (
    "llama_model_params",
    "llama_context_params",
    "llama_model_quantize_params",
    "ggml_backend_dev_props",
    "llama_sampler_chain_params",
)
# sizeof of llama_model_params, llama_context_params, llama_model_quantize_params, measured in the
# prebuilt libraries themselves.
MEASURED = {
    "b3889": (64, 120, 40),
    "b4234": (72, 120, 40),
    "b4529": (64, 120, 40),
    "b5590": (72, 120, 48),
    "b6122": (72, 120, 56),
    "b7698": (72, 136, 56),
    "b9842": (72, 160, 56),
    "v0.5.0": (80, 160, 64),
}


def test_classes_are_ordered_and_named_after_their_first_build():
    names = cdefs.class_names()
    assert names[0] == "b3889"
    assert names[-1] == cdefs.NEWEST
    assert [c.name for c in cdefs.all_classes()] == list(names)
    assert all(c.name == c.builds[0] for c in cdefs.all_classes())
    numbers = [int(tag[1:]) for c in cdefs.all_classes() for tag in c.builds if tag[0] == "b"]
    assert numbers == sorted(numbers)


def test_a_build_belongs_to_one_class():
    builds = [tag for c in cdefs.all_classes() for tag in c.builds]
    assert len(builds) == len(set(builds)) >= 35


def test_no_two_classes_have_the_same_declarations():
    assert len({c.digest for c in cdefs.all_classes()}) == len(cdefs.class_names())


def test_optional_functions_are_functions():
    for c in cdefs.all_classes():
        assert c.optional < c.functions
        assert {"llama_decode", "ggml_backend_dev_get", "gguf_init_from_file"} <= (
            c.functions - c.optional
        )
        assert all(name in c.optional for name in c.functions if name.startswith("mtmd_"))


def test_every_class_has_the_layouts_that_the_probe_measures():
    for c in cdefs.all_classes():
        for name in PROBED:
            layout = c.layouts[name]
            assert len(layout.written) == layout.size
            assert set(layout.written) <= {0, 1}
            assert layout.written[0] == 1


@pytest.mark.parametrize("name", MEASURED)
def test_sizes_are_those_measured_in_the_libraries(name):
    layouts = cdefs.abi_class(name).layouts
    assert tuple(layouts[struct].size for struct in PROBED[:3]) == MEASURED[name]


def test_holes_are_where_the_compiler_left_them():
    # b8121 put dry_run into the padding of b8095's struct, whose size stayed the same.
    before = cdefs.abi_class("b8095").layouts["llama_model_quantize_params"]
    after = cdefs.abi_class("b8121").layouts["llama_model_quantize_params"]
    assert before.size == after.size
    gained = [i for i in range(after.size) if after.written[i] and not before.written[i]]
    assert len(gained) == 1


@pytest.mark.parametrize("name", SOME)
def test_the_table_agrees_with_the_declarations(name):
    c = cdefs.abi_class(name)
    assert describe(cdefs.declarations(name), c.name, c.builds) == c


@pytest.mark.parametrize("name", SOME)
def test_declarations_compile_to_an_importable_module(name, tmp_path, monkeypatch):
    ffi = cffi.FFI()
    ffi.cdef(cdefs.declarations(name))
    ffi.set_source("compiled_declarations", None)
    ffi.emit_python_code(str(tmp_path / "compiled_declarations.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "compiled_declarations", raising=False)
    import compiled_declarations  # type: ignore[import-not-found]

    compiled = compiled_declarations.ffi
    layout = cdefs.abi_class(name).layouts["llama_context_params"]
    assert compiled.sizeof("struct llama_context_params") == layout.size
    lib = compiled.dlopen(None)
    assert lib.LLAMA_DEFAULT_SEED == 0xFFFFFFFF
    assert lib.LLAMA_TOKEN_NULL == -1


@pytest.mark.parametrize("name", cdefs.class_names())
def test_declarations_are_portable_and_contain_the_licence(name):
    text = cdefs.declarations(name)
    assert "MIT License" in text.partition("----")[0]
    assert not re.search(r"\blong\b|\bunsigned\s*;|__attribute__|restrict|\.\.\.;", text)
    assert text.isascii()
    assert "\r" not in text


def test_newest_class_is_a_plain_file_and_the_rest_stays_small():
    folder = Path(cdefs.__file__).parent
    assert [path.name for path in folder.glob("*.h")] == [f"{cdefs.NEWEST}.h"]
    data = [path for path in folder.iterdir() if path.suffix in {".h", ".json", ".xz"}]
    assert sum(path.stat().st_size for path in data) < 300_000


def test_unknown_class_names_the_known_ones():
    for call in (cdefs.abi_class, cdefs.declarations):
        with pytest.raises(AbiMismatchError, match=r"'b1'.*b3889.*b11549"):
            call("b1")


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="NEWER"):
        cdefs.NEWER  # noqa: B018


def test_reading_the_classes_needs_the_standard_library_only():
    code = (
        "import sys; from llama_cffi import cdefs as c; c.all_classes(); c.declarations('b3889');"
        "print(*set(sys.modules) & {'cffi', '_cffi_backend', 'pcpp', 'pycparser', 'numpy', 'tqdm'})"
    )
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_holes_survive_a_round_trip_through_the_table(marks):
    layout = cdefs.Layout(len(marks), bytes(marks))
    size, *edges = class_files.holes(layout)
    rebuilt = bytearray(b"\1" * size)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        rebuilt[start:end] = bytes(end - start)
    assert bytes(rebuilt) == layout.written


def test_the_class_files_are_reproducible(tmp_path):
    texts = {name: cdefs.declarations(name) for name in cdefs.class_names()[:3]}
    assert class_files.pack(texts) == class_files.pack(texts)
    classes = [(cdefs.abi_class(name), text) for name, text in texts.items()]
    class_files.write(classes, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["b4234.h", "classes.tar.xz", "table.json"]


def test_the_stored_table_is_the_one_that_would_be_written():
    path = Path(cdefs.__file__).parent / "table.json"
    assert class_files.table_json(cdefs.all_classes()) == path.read_text(encoding="utf-8")
