from __future__ import annotations

import random
from pathlib import Path

import gguf
import pytest
from damaged import REFUSED, cut_and_flipped, write_edits
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi.binding.gguf import check_gguf
from llama_cffi.errors import ModelLoadError


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


def test_every_change_is_survived(tiny_model: Path, tmp_path: Path) -> None:
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
        ("alignment of text", "power of two"),
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


def test_a_key_that_is_there_twice(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny_model.read_bytes()
    path = tmp_path / "twice.gguf"
    path.write_bytes(data.replace(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id"))
    with pytest.raises(ModelLoadError, match="there twice"):
        check_gguf(path)


def test_not_a_directory_on_the_way(tiny_model: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot read"):
        check_gguf(tiny_model / "x.gguf")
