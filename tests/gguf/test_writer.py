"""copy_gguf: other metadata, the same tensors. The package gguf is the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.split_gguf import write_split
from support.tiny_gguf import write_tiny

from llama_cffi import Engine, Model, ModelLoadError, ValidationError, copy_gguf, read_gguf
from llama_cffi.demo import model_path

Content = tuple[str, tuple[Kind, ...], Any]


def contents(path: Path) -> dict[str, Content]:
    """Return the keys as the package gguf reads them, with their types."""
    reader = gguf.GGUFReader(path)
    return {
        field.name: (field.name, tuple(field.types), field.contents())
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    }


def tensors(path: Path) -> dict[str, tuple[Any, list[int], bytes]]:
    reader = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in reader.tensors}


def test_a_copy_without_changes_is_the_file(tmp_path: Path) -> None:
    for source in (model_path(), write_tiny(tmp_path / "tiny.gguf")):
        target = copy_gguf(source, tmp_path / "copy.gguf", {}, overwrite=True)
        assert target == tmp_path / "copy.gguf"
        assert target.read_bytes() == Path(source).read_bytes()


def test_changed_added_and_removed_keys(tmp_path: Path) -> None:
    source = model_path()
    before = contents(source)
    tokens = before["tokenizer.ggml.tokens"][2]
    changes: dict[str, Any] = {
        "general.name": "änderung 🙂 " * 40,
        "tokenizer.chat_template": "{{ messages[0].content }}",
        "tokenizer.ggml.tokens": [*tokens[:5], "<new>", *tokens[6:]],
        "general.license": None,
        "mine.text": "",
        "mine.count": 2**32 - 1,
        "mine.large": 2**40,
        "mine.negative": -5,
        "mine.share": 0.5,
        "mine.yes": True,
        "mine.texts": ["a", "ü", ""],
        "mine.numbers": [1, -2, 3],
        "mine.floats": [0.25, 1e30],
        "mine.flags": [True, False],
    }
    if "general.license" not in before:
        copy_gguf(source, tmp_path / "first.gguf", {"general.license": "mit"})
        source = tmp_path / "first.gguf"
        assert contents(source) == before | {
            "general.license": ("general.license", (Kind.STRING,), "mit")
        }
    target = copy_gguf(source, tmp_path / "copy.gguf", changes)
    after = contents(target)
    assert tensors(target) == tensors(source)
    kept = [key for key in contents(source) if key != "general.license"]
    assert [*after][: len(kept)] == kept  # in the order of the file
    for key, value in changes.items():
        if value is None:
            assert key not in after
        else:
            assert after[key][2] == (pytest.approx(value) if "float" in key else value)
            if key in before:
                assert after[key][1] == before[key][1]  # it keeps its type
    assert {k: v for k, v in after.items() if k not in changes} == {
        k: v for k, v in before.items() if k not in changes
    }
    kinds = {key: after[key][1] for key in changes if key.startswith("mine.")}
    assert kinds == {
        "mine.text": (Kind.STRING,),
        "mine.count": (Kind.UINT32,),
        "mine.large": (Kind.INT64,),
        "mine.negative": (Kind.INT32,),
        "mine.share": (Kind.FLOAT32,),
        "mine.yes": (Kind.BOOL,),
        "mine.texts": (Kind.ARRAY, Kind.STRING),
        "mine.numbers": (Kind.ARRAY, Kind.INT32),
        "mine.floats": (Kind.ARRAY, Kind.FLOAT32),
        "mine.flags": (Kind.ARRAY, Kind.BOOL),
    }
    ours = read_gguf(target).metadata
    assert {key: ours[key] for key in after} == {key: found[2] for key, found in after.items()}


def test_what_the_copy_says_counts(tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    changes: dict[str, Any] = {"tokenizer.chat_template": template, "general.name": "mine"}
    target = copy_gguf(model_path(), tmp_path / "copy.gguf", changes)
    with Model(target) as model, Engine(model, n_ctx=64, n_threads=1) as engine:
        assert model.metadata["general.name"] == "mine"
        assert model.chat_template == template
        tokens = engine.tokenize_chat([{"role": "user", "content": "hi"}])
        assert "[user] hi" in engine.detokenize(tokens)


KINDS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.UINT8: st.integers(0, 2**8 - 1),
    Kind.INT8: st.integers(-(2**7), 2**7 - 1),
    Kind.UINT16: st.integers(0, 2**16 - 1),
    Kind.INT16: st.integers(-(2**15), 2**15 - 1),
    Kind.UINT32: st.integers(0, 2**32 - 1),
    Kind.INT32: st.integers(-(2**31), 2**31 - 1),
    Kind.UINT64: st.integers(0, 2**64 - 1),
    Kind.INT64: st.integers(-(2**63), 2**63 - 1),
    Kind.FLOAT32: st.floats(allow_nan=False, width=32),
    Kind.FLOAT64: st.floats(allow_nan=False),
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.text(st.characters(exclude_categories=["Cs"])),
}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_type_of_value_is_kept(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("kinds")
    drawn = data.draw(st.lists(st.tuples(st.sampled_from([*KINDS]), st.booleans()), max_size=8))
    values: list[tuple[str, Kind, bool, Any, Any]] = []
    for i, (kind, is_list) in enumerate(drawn):
        one = KINDS[kind]
        some = st.lists(one, min_size=1, max_size=4) if is_list else one
        values.append((f"k{i}", kind, is_list, data.draw(some), data.draw(some)))

    def write(path: Path, at: int) -> Path:
        writer = gguf.GGUFWriter(path, "test")
        for key, kind, is_list, *both in values:
            if is_list:
                writer.add_key_value(key, both[at], Kind.ARRAY, sub_type=kind)
            else:
                writer.add_key_value(key, both[at], kind)
        writer.add_tensor("t", np.arange(40, dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    source, wanted = write(folder / "source.gguf", 0), write(folder / "wanted.gguf", 1)
    changes = {key: both[1] for key, _, _, *both in values}
    copy = copy_gguf(source, folder / "copy.gguf", changes)
    assert copy.read_bytes() == wanted.read_bytes()


def test_values_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "tiny.gguf")
    target = tmp_path / "copy.gguf"
    n = len(read_gguf(source).metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    for key, value in (
        ("llama.block_count", -1),
        ("llama.block_count", 2**32),
        ("llama.block_count", 2.0),
        ("llama.block_count", True),
        ("llama.block_count", "2"),
        ("llama.block_count", [2]),
        ("general.architecture", 5),
        ("tokenizer.ggml.add_bos_token", 1),
        ("tokenizer.ggml.tokens", "abc"),
        ("tokenizer.ggml.tokens", [1, 2]),
        ("tokenizer.ggml.token_type", [1.5] * n),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
        ("llama.attention.layer_norm_rms_epsilon", 1e300),
        ("mine", []),
        ("mine", [1, "a"]),
        ("mine", {"a": 1}),
        ("mine", b"a"),
        ("mine", 2**70),
        ("mine", "\ud800"),
        ("\ud800", 1),
        ("", 1),
        (5, 1),
        ("general.alignment", 64),
        ("split.count", 3),
        ("general.nam", None),
    ):
        with pytest.raises(ValidationError):
            copy_gguf(source, target, {key: value})  # type: ignore[dict-item]
        assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
    with pytest.raises(ValidationError, match=r"did you mean 'general\.architecture'"):
        copy_gguf(source, target, {"general.architectur": None})


def test_sources_and_targets(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "tiny.gguf")
    with pytest.raises(ModelLoadError, match="no model file"):
        copy_gguf(tmp_path / "none.gguf", tmp_path / "copy.gguf", {})
    (tmp_path / "bad.gguf").write_bytes(source.read_bytes()[:300])
    with pytest.raises(ModelLoadError):
        copy_gguf(tmp_path / "bad.gguf", tmp_path / "copy.gguf", {})
    with pytest.raises(ValidationError, match="is the source"):
        copy_gguf(source, source, {}, overwrite=True)
    with pytest.raises(ValidationError, match="not a folder"):
        copy_gguf(source, tmp_path / "nowhere" / "copy.gguf", {})
    (tmp_path / "copy.gguf").write_text("mine")
    with pytest.raises(ValidationError, match="overwrite=True"):
        copy_gguf(source, tmp_path / "copy.gguf", {})
    assert (tmp_path / "copy.gguf").read_text() == "mine"
    copy_gguf(str(source), str(tmp_path / "copy.gguf"), {"general.name": "x"}, overwrite=True)
    assert read_gguf(tmp_path / "copy.gguf").metadata["general.name"] == "x"


def test_a_part_of_a_split_model_stays_one(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    folder = tmp_path / "copies"
    folder.mkdir()
    for path in paths:
        copy_gguf(path, folder / path.name, {"general.name": "x"} if path == paths[0] else {})
    with Model(folder / paths[0].name) as model:
        assert model.metadata["general.name"] == "x"
        assert len(model.paths) == len(paths)


def test_other_alignments_and_files_without_tensors(tmp_path: Path) -> None:
    def align(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(128)

    source = write_tiny(tmp_path / "aligned.gguf", edit=align)
    target = copy_gguf(source, tmp_path / "copy.gguf", {"general.name": "a longer name " * 9})
    assert tensors(target) == tensors(source)
    assert all(tensor.offset % 128 == 0 for tensor in read_gguf(target).tensors)
    writer = gguf.GGUFWriter(tmp_path / "empty.gguf", "test")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy = copy_gguf(tmp_path / "empty.gguf", tmp_path / "more.gguf", {"a": 1, "b": "c"})
    found = read_gguf(copy)
    assert (found.metadata["a"], found.metadata["b"], found.tensors) == (1, "c", ())
