from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.damaged import REFUSED, cut_and_flipped, write_edits
from support.tiny_gguf import write_tiny

from llama_cffi.errors import ModelLoadError
from llama_cffi.gguf.reader import check_gguf, check_parts, fingerprint, read_gguf
from llama_cffi.gguf.strings import _many, _single


def test_summary_agrees_with_the_reference_reader(tiny_model: Path) -> None:
    summary, reader = check_gguf(tiny_model), gguf.GGUFReader(tiny_model)
    assert summary.architecture == "llama"
    assert (summary.version, summary.n_tensors) == (3, len(reader.tensors))
    keys = {name for name in reader.fields if not name.startswith("GGUF.")}
    assert set(summary.values) | set(summary.arrays) == keys
    assert summary.n_keys == len(keys)
    for name, value in summary.values.items():
        assert value == reader.fields[name].contents()
    for name, array in summary.arrays.items():
        assert array.count == len(reader.fields[name].data)
    assert [(t.name, t.shape, t.kind) for t in summary.tensors] == [
        (t.name, tuple(map(int, t.shape)), int(t.tensor_type)) for t in reader.tensors
    ]
    assert summary.arrays["tokenizer.ggml.tokens"].distinct == 259
    assert summary.spellings == frozenset()


def test_no_change_of_a_byte_crashes(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    refused = 0
    for _, data in cut_and_flipped(tiny_model.read_bytes(), seed=3, flips=500):
        path.write_bytes(data)
        try:
            check_gguf(path)
        except ModelLoadError as e:
            refused += str(path) in str(e)
    assert refused > 100


@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_random_headers(tmp_path_factory: pytest.TempPathFactory, tail: bytes, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "random.gguf"
    rng = random.Random(seed)
    counts = rng.choice([0, 1, 3, 2**32]), rng.choice([0, 1, 2, 2**63])
    path.write_bytes(b"GGUF\x03\0\0\0" + b"".join(c.to_bytes(8, "little") for c in counts) + tail)
    try:
        summary = check_gguf(path)
    except ModelLoadError:
        return
    assert (summary.n_tensors, summary.n_keys) == counts


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("alignment 33", "power of two"),
        ("alignment of text", "has the value type 8, not 4"),
        ("a shape with a zero", "shape"),
        ("a shape of 2\\^64", "shape"),
        ("a row that is no whole block", "shape"),
    ],
)
def test_reasons(tmp_path: Path, name: str, reason: str) -> None:
    name = name.replace("\\", "")
    (path,) = write_edits(tmp_path, {name: REFUSED[name]}).values()
    with pytest.raises(ModelLoadError, match=reason):
        check_gguf(path)


def test_a_duplicate_key(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny_model.read_bytes()
    path = tmp_path / "twice.gguf"
    path.write_bytes(data.replace(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id"))
    with pytest.raises(ModelLoadError, match="occurs twice"):
        check_gguf(path)


def test_a_path_through_a_file(tiny_model: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot read"):
        check_gguf(tiny_model / "x.gguf")


def _write_strings(path: Path, strings: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(struct.pack("<Q", len(s)) + s for s in strings) + b"rest of it")


# Lengths from 256, zero bytes and runs of empty strings defeat the fast path.
_ODD = [b"", b"\0" * 9, b"\5" + b"\0" * 7, b"x" * 255, b"y" * 256, b"z" * 70_000]
_STRINGS = st.lists(st.one_of(st.integers(0, len(_ODD) - 1), st.binary(max_size=12)), max_size=99)


@pytest.mark.parametrize("find", [_many, _single])
@given(_STRINGS, st.integers(1, 500))
def test_strings_are_found(
    tmp_path_factory: pytest.TempPathFactory, find: Any, some: list[int | bytes], times: int
) -> None:
    strings = [_ODD[s] if isinstance(s, int) else s for s in some]
    strings *= times if sum(map(len, strings)) < 10**4 else 1
    path = tmp_path_factory.getbasetemp() / "strings"
    _write_strings(path, strings)
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = find(data, 0, len(strings), size)
        assert list(found) == strings
        cut = [s.partition(b"\0")[0] for s in strings]  # as C reads them
        assert found.shortest == min(map(len, cut), default=0)
        assert found.up_to(6) == {s for s in strings if len(s) <= 6}
        if strings:
            assert found.end == size - len("rest of it")
            assert found.count_distinct() == len(set(cut))
            assert find(data, 0, len(strings), found.end - 1) is None
        assert find(data, 0, len(strings) + 1, size) is None


def test_distinct_strings(tmp_path: Path) -> None:
    """Many that differ in one byte, and then two that are equal, or equal up to a NUL."""
    strings = [b"%d" % i for i in range(2000)] + [b"a" * 40 + b"%d" % i for i in range(2000)]
    path = tmp_path / "strings"
    for more in ([], [strings[3000]], [strings[3000] + b"\0"], [strings[1] + b"\0x"]):
        _write_strings(path, strings + more)
        size = path.stat().st_size
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _many(data, 0, len(strings + more), size)
            assert found is not None
            assert found.count_distinct() == len(strings)


def test_reader_agrees_with_the_reference_reader(tiny_model: Path) -> None:
    file, reader = read_gguf(str(tiny_model)), gguf.GGUFReader(tiny_model)
    assert (file.version, file.architecture, file.alignment, file.split) == (3, "llama", 32, None)
    assert file.size_bytes == tiny_model.stat().st_size
    keys = {name for name in reader.fields if not name.startswith("GGUF.")}
    assert set(file.metadata) == keys
    assert len(file.metadata) == len(keys)
    for key in keys:
        assert file.metadata[key] == reader.fields[key].contents()
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == 259
    assert file.metadata["tokenizer.ggml.tokens"] is tokens
    assert [(t.name, t.type_name, t.offset, t.size_bytes) for t in file.tensors] == [
        (t.name, t.tensor_type.name, int(t.data_offset), int(t.n_bytes)) for t in reader.tensors
    ]
    with pytest.raises(KeyError):
        file.metadata["no such key"]
    assert "tiny.gguf" in repr(file)


def test_reader_of_every_value_type(tmp_path: Path) -> None:
    values = {
        "uint8": 200, "int8": -100, "uint16": 60_000, "int16": -30_000, "uint32": 4 * 10**9,
        "int32": -(2**31), "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5,
        "float64": 1e300, "bool": True, "string": "h\u00e9",
    }  # fmt: skip
    arrays = {"a": [1, 2, 3], "b": [0.5, 1.5], "c": [True, False], "d": ["x", "", "\u4e2d"]}

    def edit(writer: gguf.GGUFWriter) -> None:
        for kind, value in values.items():
            getattr(writer, f"add_{kind}")(f"x.{kind}", value)
        for name, array in arrays.items():
            writer.add_array(f"x.{name}", array)

    file = read_gguf(write_tiny(tmp_path / "all.gguf", edit=edit))
    assert {k: file.metadata[f"x.{k}"] for k in values} == values
    assert {k: file.metadata[f"x.{k}"] for k in arrays} == arrays


def test_a_file_that_changes(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "x.gguf")
    file = read_gguf(path)
    path.write_bytes(b"short")
    with pytest.raises(ModelLoadError, match="changed"):
        file.metadata["tokenizer.ggml.tokens"]
    path.unlink()
    with pytest.raises(ModelLoadError, match="no model file"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n<!DOCTYPE html><html>", "a web page, not a GGUF file"),
        (b"<html>", "a web page, not a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch it with `git lfs pull`"),
        (b"PK\3\4", "convert_hf_to_gguf"),
    ],
)
def test_other_files_with_a_models_name_are_told_apart(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=says):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_a_pipe_is_refused_without_reading_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(ModelLoadError, match="a pipe or device"):
        read_gguf(tmp_path / "x.gguf")


def test_fingerprint(tmp_path: Path) -> None:
    def print_of(path: Path) -> str:
        return fingerprint([path], [check_gguf(path)])

    path = write_tiny(tmp_path / "a.gguf", seed=1)
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "b.gguf"
    copy.write_bytes(path.read_bytes())
    assert print_of(path) == print_of(copy)
    assert len(print_of(path)) == 64
    others = [write_tiny(tmp_path / "c.gguf", seed=2), write_tiny(tmp_path / "d.gguf", n_ctx=128)]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # a fine-tune of one weight, with the same header
    (tmp_path / "e.gguf").write_bytes(data)
    others.append(tmp_path / "e.gguf")
    assert len({print_of(p) for p in [path, *others]}) == 4
    assert fingerprint([path, copy], [check_gguf(path)] * 2) != print_of(path)


@pytest.mark.parametrize(
    ("name", "number", "reason"),
    [
        ("m-00001-of-00003.gguf", 0, None),
        ("m-00002-of-00003.gguf", 1, "part 2 of 3; load m-00001-of-00003.gguf"),
        ("m.gguf", 0, "cannot be found"),
        ("m-00001-of-00002.gguf", 0, "cannot be found"),
        ("m-00002-of-00003.gguf", 0, "cannot be found"),
    ],
)
def test_names_of_parts(tmp_path: Path, name: str, number: int, reason: str | None) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)

    path = write_tiny(tmp_path / name, edit=edit)
    assert read_gguf(path).split == (number, 3)
    if reason is None:
        parts = check_parts(path, check_gguf(path))
        assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    else:
        with pytest.raises(ModelLoadError, match=reason):
            check_parts(path, check_gguf(path))
