from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.damaged import REFUSED, SURVIVED
from support.split_gguf import write_split
from support.tiny_gguf import write_tiny

from llama_cffi.binding.model.quantize import quantize
from llama_cffi.errors import LlamaError, ModelLoadError, ValidationError
from llama_cffi.gguf.reader import check_gguf, read_gguf, tensor_bytes

BUILDS = pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])

SCORES = """
import json, sys
import numpy as np
from llama_cffi import LlamaError
from llama_cffi.binding import Batch, Context, Model
from llama_cffi.binding.model.quantize import quantize

def score(path):
    with Model(path) as model, Context(model, n_ctx=32, n_threads=1) as context:
        batch = Batch(3)
        for i in range(3):
            batch.add(i, i, logits=i == 2)
        context.decode(batch)
        return np.array(context.logits())
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole blocks of every type."""
    return write_tiny(tmp_path_factory.mktemp("wide") / "wide.gguf", n_embd=256)


@BUILDS
def test_types(child: Child, wide: Path, tmp_path: Path, build: str) -> None:
    code = (
        SCORES
        + """
path, folder = sys.argv[1:]
whole = score(path)
for ftype in ("F16", "Q8_0", "q4_0", "Q4_K_M", "Q6_K"):
    seen = []
    made = quantize(path, f"{folder}/{ftype}.gguf", ftype, n_threads=1, progress=seen.append)
    logits = score(made)
    alike = float(logits @ whole / np.linalg.norm(logits) / np.linalg.norm(whole))
    print(json.dumps([ftype, str(made), alike, seen == sorted(seen), seen[-1]]))
"""
    )
    result = child(code, wide, tmp_path, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    alike = {ftype: value for ftype, _, value, _, _ in answers}
    assert alike["F16"] > 0.9999
    assert alike["Q8_0"] > 0.999
    assert alike["Q6_K"] > 0.99
    assert alike["Q4_K_M"] > 0.97  # of random weights, which fit no grid
    assert alike["q4_0"] > 0.94
    assert all(in_order and last == 1.0 for *_, in_order, last in answers)
    kinds = {
        ftype: {t.type_name for t in read_gguf(made).tensors if len(t.shape) > 1}
        for ftype, made, *_ in answers
    }
    assert kinds["F16"] == {"F16"}
    assert kinds["Q8_0"] == {"Q8_0"}
    assert "Q4_K" in kinds["Q4_K_M"]
    sizes = {ftype: Path(made).stat().st_size for ftype, made, *_ in answers}
    assert sizes["q4_0"] < sizes["Q8_0"] < sizes["F16"] < wide.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{t}.gguf" for t in kinds)


def test_mixtures(wide: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"output_tensor_type": "q8_0", "token_embedding_type": "F16"}
    made = quantize(wide, tmp_path / "a.gguf", "Q4_0", n_threads=1, pure=True, **options)
    kinds = {t.name: t.type_name for t in read_gguf(made).tensors}
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"
    with pytest.raises(LlamaError, match="requantizing from type"):
        quantize(made, tmp_path / "b.gguf", "Q5_0", n_threads=1)
    again = quantize(made, tmp_path / "b.gguf", "Q5_0", n_threads=1, allow_requantize=True)
    assert read_gguf(again).metadata["general.file_type"] == 8
    copy = quantize(wide, again, n_threads=1, only_copy=True, overwrite=True)
    assert {t.type_name for t in read_gguf(copy).tensors} == {"F32"}


@BUILDS
def test_parts(child: Child, tmp_path: Path, build: str) -> None:
    parts = write_split(tmp_path, 2)
    code = (
        SCORES
        + """
part, whole, folder = sys.argv[1:]
joined = quantize(part, f"{folder}/joined.gguf", n_threads=1, only_copy=True)
kept = quantize(part, f"{folder}/kept.gguf", "F16", n_threads=1, keep_split=True)
print(joined, kept)
plain = score(whole)
print((score(joined) == plain).all(), np.abs(score(kept) - plain).max() < 0.1)
"""
    )
    folder = tmp_path / "made"
    folder.mkdir()
    whole = tmp_path / "whole.gguf"
    result = child(code, parts[0], whole, folder, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    names = ["joined.gguf", "kept-00001-of-00002.gguf", "kept-00002-of-00002.gguf"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert result.stdout.split() == [str(folder / names[0]), str(folder / names[1]), "True", "True"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"ftype": "Q4_K_XXL"}, "'Q4_K_XXL' is not one of F32, F16, Q4_0"),
        ({"ftype": "GUESSED"}, "is not one of"),
        ({"ftype": None}, "is not one of"),
        ({"output_tensor_type": "nonsense"}, "output_tensor_type='nonsense'"),
        ({"token_embedding_type": "COUNT"}, "token_embedding_type"),
        ({"n_threads": -1}, "n_threads"),
        ({"progress": 3}, "must be a bool or a function"),
    ],
)
def test_invalid_arguments(
    tiny_model: Path, tmp_path: Path, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        quantize(tiny_model, tmp_path / "x.gguf", **arguments)
    assert not list(tmp_path.iterdir())


def test_targets(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "a.gguf")
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    (tmp_path / "there.gguf").write_text("mine")
    for target, reason in {
        source: "is the source",
        link: "is the source",
        tmp_path / "there.gguf": "overwrite=True",
        tmp_path: "overwrite=True",
        tmp_path / "no" / "folder.gguf": "is not a folder",
    }.items():
        with pytest.raises(ValidationError, match=reason):
            quantize(source, target, "Q8_0")
        if target == source:
            with pytest.raises(ValidationError, match=reason):
                quantize(source, target, "Q8_0", overwrite=True)
    assert (tmp_path / "there.gguf").read_text() == "mine"
    quantize(source, tmp_path / "there.gguf", "Q8_0", n_threads=1, overwrite=True)
    assert read_gguf(tmp_path / "there.gguf").metadata["general.file_type"] == 7
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["no block_count", "an unknown tensor type", "epsilon 0"])
def test_damaged_sources(tmp_path: Path, name: str) -> None:
    source = write_tiny(tmp_path / "a.gguf", edit=REFUSED[name])
    with pytest.raises(LlamaError) as caught:
        quantize(source, tmp_path / "b.gguf", "Q8_0", n_threads=1)
    assert len(str(caught.value).replace(str(source), "")) > 40
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_sources_that_are_not_models(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(ModelLoadError):
            quantize(source, tmp_path / "b.gguf")


@BUILDS
def test_failures_and_aborts_in_c(child: Child, tmp_path: Path, build: str) -> None:
    """An abort in C ends only the child process, and its last message is reported."""
    good = write_tiny(tmp_path / "good.gguf", n_embd=256)
    sick = write_tiny(tmp_path / "sick.gguf", edit=SURVIVED["NaN weights"])
    code = (
        SCORES
        + """
good, sick, target = sys.argv[1:]
for path, options in (
    (sick, {"ftype": "Q8_0"}),
    (good, {"ftype": "IQ2_XXS"}),
    (good, {"ftype": "Q8_0", "token_embedding_type": "I8"}),
):
    try:
        quantize(path, target, n_threads=1, **options)
        print("made")
    except LlamaError as e:
        print(str(e).replace("\\n", " "))
"""
    )
    result = child(code, good, sick, tmp_path / "x.gguf", LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    invalid, low, died = result.stdout.splitlines()
    assert "nan value" in invalid
    assert "importance matrix" in low
    assert "Q2_K" in low
    assert "signal 6" in died
    assert re.search(r"ASSERT|ggml.*:\d+: ", died)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.gguf", "sick.gguf"]


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize("way", ["signal", "false", "raise"])
def test_stopping(child: Child, wide: Path, tmp_path: Path, way: str) -> None:
    code = """
        import os, pathlib, signal, sys
        from llama_cffi import LlamaError
        from llama_cffi.binding.model.quantize import quantize
        source, target, way = sys.argv[1:]
        seen = []
        def progress(done):
            seen.append(done)
            if len(seen) == 3:
                if way == "signal":
                    os.kill(os.getpid(), signal.SIGINT)
                elif way == "raise":
                    raise KeyError("mine")
                return False
        try:
            quantize(source, target, "Q4_K_M", n_threads=1, progress=progress)
        except (KeyboardInterrupt, KeyError, LlamaError) as e:
            print(type(e).__name__, len(seen), e)
        print(os.listdir(pathlib.Path(target).parent))
        try:
            os.waitpid(-1, os.WNOHANG)
            print("a child is left")
        except ChildProcessError:
            print("alone")
    """
    result = child(code, wide, tmp_path / "x.gguf", way)
    assert (result.returncode, result.stderr) == (0, "")
    error, files, rest = result.stdout.splitlines()
    assert error.split()[:2] == [
        {"signal": "KeyboardInterrupt", "false": "LlamaError", "raise": "KeyError"}[way],
        "3",
    ]
    assert (files, rest) == ("[]", "alone")


def test_minimum_size(wide: Path) -> None:
    tensors = check_gguf(wide).tensors
    whole = sum(t.size_bytes or 0 for t in tensors)
    assert tensor_bytes(tensors, "") == tensor_bytes(tensors, "F32") == whole
    sizes = [tensor_bytes(tensors, t) for t in ("F16", "Q8_0", "Q4_K_M", "Q2_K")]
    assert sizes == sorted(sizes, reverse=True)
    assert 0.5 < sizes[0] / whole < 0.51


def test_a_build_without_a_dry_run_says_so(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_cffi.binding import compat
    from llama_cffi.binding.model.quantize import plan_quantize

    monkeypatch.setattr(compat, "has_dry_run", lambda library: False)
    with pytest.raises(ValidationError, match=r"no dry run of quantizing \(.*\); quantize without"):
        plan_quantize(tiny_model, "Q8_0")
