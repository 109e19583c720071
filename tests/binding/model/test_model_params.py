from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValue
from gguf import GGUFValueType as Kind
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.split_gguf import write_split
from support.tiny_gguf import write_tiny

from llama_cffi.binding import Model
from llama_cffi.errors import ValidationError

BUILDS = pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])


@BUILDS
def test_numa_once(child: Child, tiny_model: Path, build: str) -> None:
    """C prints to stderr if it is called twice."""
    code = """
        import sys
        from llama_cffi import Model, ValidationError, get_library
        library = get_library()
        library.numa_init("disabled")
        library.numa_init("distribute")
        library.numa_init("distribute")
        for strategy in ("isolate", "disabled", "nonsense", "count"):
            try:
                library.numa_init(strategy)
            except ValidationError as e:
                print(e)
        Model(sys.argv[1]).close()
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    said = result.stdout.splitlines()
    assert len(said) == 4
    assert all("'distribute' is set for the lifetime" in line for line in said[:2])
    assert all("disabled, distribute, isolate, mirror, numactl" in line for line in said[2:])


SCORES = """
import json, sys
from llama_cffi import LlamaError
from llama_cffi.binding import Batch, Context, Model

def score(path, **options):
    # the logits of a short text, or what was wrong
    try:
        with Model(path, **options) as model, Context(model, n_ctx=32, n_threads=1) as context:
            batch = Batch(3)
            for i in range(3):
                batch.add(i, i, logits=i == 2)
            context.decode(batch)
            return [float(x) for x in context.logits()]
    except LlamaError as e:
        return [type(e).__name__, str(e)]
"""


@BUILDS
def test_split_models(child: Child, tmp_path: Path, build: str) -> None:
    paths = write_split(tmp_path)
    (tmp_path / "lone").mkdir()
    lone = tmp_path / "lone" / paths[0].name
    lone.write_bytes(paths[0].read_bytes())
    odd = [p.rename(p.with_name(f"{i}.gguf")) for i, p in enumerate(write_split(tmp_path, 2, "n"))]
    changes = [
        {"split.no": GGUFValue(2, Kind.UINT16)},
        {"split.no": GGUFValue(1, Kind.UINT32)},  # C asserts 16 bits
        {"split.no": GGUFValue("1", Kind.STRING)},
        {"general.alignment": GGUFValue(33, Kind.UINT32)},
    ]
    wrongs = [write_split(tmp_path, 2, f"w{i}", wrong)[0] for i, wrong in enumerate(changes)]
    cut = write_split(tmp_path, 2, "cut")
    cut[1].write_bytes(cut[1].read_bytes()[:-100])
    wrongs.append(cut[0])
    code = (
        SCORES
        + """
whole, parts, odd, wrongs, lone = json.loads(sys.argv[1])
answers = [score(p) for p in (whole, parts[0], parts, odd, lone, parts[1], odd[0])]
answers += [score(p) for p in (parts[:2], [parts[1], parts[0], parts[2]], [])]
print(json.dumps([answers, [score(p) for p in wrongs]]))
"""
    )
    files: list[Any] = [str(tmp_path / "whole.gguf")]
    files += [[str(p) for p in part] for part in (paths, odd, wrongs)]
    result = child(code, json.dumps([*files, str(lone)]), LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    answers, refused = json.loads(result.stdout)
    whole, named, listed, odd_list, lonely, second, odd_first, few, disorder, none = answers
    assert len(whole) == 259
    assert whole == named == listed
    if build == OLD:
        assert "cannot load a list of parts" in odd_list[1]
    else:
        assert odd_list == whole
    assert "m-00002-of-00003.gguf is missing: part 2 of 3" in lonely[1]
    assert "load m-00001-of-00003.gguf" in second[1]
    assert "pass a list of all parts" in odd_first[1]
    assert "in 3 parts; the list has 2" in few[1]
    assert "split.no is 1" in disorder[1]
    assert none[0] == "ValidationError"
    assert [kind for kind, _ in refused] == ["ModelLoadError"] * 5
    assert "cut-00002-of-00002.gguf is truncated" in refused[4][1]


@BUILDS
def test_overrides_reach_c(child: Child, tmp_path: Path, build: str) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    same = write_tiny(tmp_path / "b.gguf", edit=lambda w: w.add_rope_freq_base(500.0))
    asked = {
        "llama.context_length": 77,
        "llama.rope.freq_base": 500.0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.pre": "gpt-2",
        "llama.rope.scaling.type": "linear",
        "general.name": "x" * 127,
    }
    code = (
        SCORES
        + """
path, same, asked = json.loads(sys.argv[1])
with Model(path, kv_overrides=asked) as model:
    print(json.dumps([model.n_ctx_train, model.vocab.add_bos, model.gguf.values["general.name"],
                      model.vocab.tokenize("a")]))
rope = {k: v for k, v in asked.items() if "freq_base" in k}
print(json.dumps([score(path), score(path, kv_overrides=rope), score(same)]))
"""
    )
    result = child(code, json.dumps([str(path), str(same), asked]), LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    facts, (plain, overridden, written) = map(json.loads, result.stdout.splitlines())
    assert facts == [77, True, "x" * 127, [256, 97]]
    assert len(plain) == 259
    assert plain != overridden
    assert overridden == written


# The first twelve are refused; C may take the others.
HARMFUL: list[dict[str, Any]] = [
    {"llama.block_count": 0},
    {"llama.block_count": 10**6},
    {"llama.expert_count": 2**32 - 1},
    {"llama.expert_used_count": 5},
    {"llama.expert_count": 8, "llama.expert_used_count": True},
    {"llama.attention.layer_norm_rms_epsilon": 0.0},
    {"llama.attention.layer_norm_rms_epsilon": -1.0},
    {"llama.rope.scaling.type": "nonsense"},
    {"tokenizer.ggml.model": "rwkv"},
    {"general.architecture": "nonsense"},
    {"general.architecture": "mamba"},
    {"llama.embedding_length": 2**31},
    {"tokenizer.ggml.model": "bert"},
    {"tokenizer.ggml.model": "llama"},
    {"llama.attention.head_count": 0},
    {"llama.attention.head_count": 3},
    {"llama.context_length": 0},
    {"tokenizer.ggml.bos_token_id": 10**6},
    {"tokenizer.ggml.eos_token_id": -1},
]


@BUILDS
def test_harmful_overrides(child: Child, tiny_model: Path, build: str) -> None:
    """Whatever C asserts, Python gets a result or a LlamaError."""
    code = (
        SCORES
        + """
for override in json.loads(sys.argv[2]):
    answer = score(sys.argv[1], kv_overrides=override)
    print(json.dumps(answer if len(answer) == 2 else "fine"))
"""
    )
    result = child(code, tiny_model, json.dumps(HARMFUL), LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == len(HARMFUL)
    assert [a[0] for a in answers[:12]] == ["ModelLoadError"] * 12


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"": 1}, "a key must be a str"),
        ({"a" * 128: 1}, "a key must be a str"),
        ({"a\0b": 1}, "a key must be a str"),
        ({5: 1}, "a key must be a str"),
        ({"x": None}, "must be an int, float, bool or str"),
        ({"x": [1]}, "must be an int, float, bool or str"),
        ({"x": np.float32(1)}, "must be an int, float, bool or str"),
        ({"x": "é" * 64}, "127 bytes"),
        ({"x": "a\0b"}, "no NUL"),
        ({"x": "\ud800"}, "cannot be encoded"),
        ({"\ud800": 1}, "cannot be encoded"),
        ({"x": float("nan")}, "outside"),
        ({"x": float("inf")}, "outside"),
        ({"x": 2**32}, "outside"),
        ({"x": -(2**31) - 1}, "outside"),
        ({"llama.block_count": 2.0}, "must be of type int"),
        ({"llama.block_count": True}, "must be of type int"),
        ({"tokenizer.ggml.add_bos_token": 1}, "must be of type bool"),
        ({"tokenizer.ggml.tokens": "a"}, "has an array there"),
        ({"split.count": 2}, "how the file is read"),
        ({"general.alignment": 64}, "how the file is read"),
    ],
)
def test_invalid_overrides(tiny_model: Path, overrides: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Model(tiny_model, kv_overrides=overrides)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"tensor_split": [1.0] * 1000}, "1000 shares"),
        ({"tensor_split": [0.0, 0.0]}, "at least one device"),
        ({"tensor_split": []}, "at least one device"),
        ({"tensor_split": [-1.0]}, "outside"),
        ({"tensor_split": [float("nan")]}, "outside"),
        ({"tensor_split": [float("inf")]}, "outside"),
        ({"tensor_split": ["a"]}, "must be a number"),
        ({"devices": ["CPU"]}, "CPU is always used"),
        ({"devices": ["CUDA99"]}, "'CUDA99' is not one of"),
        ({"devices": "CUDA0"}, "must be a list of names"),
        ({"progress": 5}, "must be a bool or a function"),
    ],
)
def test_invalid_arguments(tiny_model: Path, arguments: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Model(tiny_model, **arguments)


@BUILDS
def test_devices_and_shares(child: Child, tiny_model: Path, build: str) -> None:
    code = (
        SCORES
        + """
plain = score(sys.argv[1])
print(plain == score(sys.argv[1], tensor_split=[3]))
answer = score(sys.argv[1], devices=[])
print(plain == answer or answer[1])
"""
    )
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    shares, alone = result.stdout.splitlines()
    assert shares == "True"
    assert alone == "True" if build != OLD else "cannot choose devices" in alone


def test_properties_from_the_file(tmp_path: Path) -> None:
    labels = "llama.classifier.output_labels"
    path = write_tiny(tmp_path / "a.gguf", edit=lambda w: w.add_array(labels, ["yes", "no"]))
    with Model(path) as model:
        assert (model.n_head, model.n_head_kv, model.n_swa) == (2, 2, 0)
        assert (model.n_embd_inp, model.n_embd_out, model.rope_freq_scale_train) == (64, 64, 1.0)
        assert (model.has_encoder, model.has_decoder) == (False, True)
        assert model.decoder_start_token is None
        assert (model.is_recurrent, model.is_hybrid, model.is_diffusion) == (False, False, False)
        assert model.classifier_labels == ("yes", "no")
        assert model.n_cls_out >= 1
        assert model.paths == (path,)
        assert model.fingerprint is model.fingerprint
    with Model(write_tiny(tmp_path / "other.gguf", seed=1)) as other:
        assert other.classifier_labels == ()
        assert other.fingerprint != model.fingerprint


@BUILDS
def test_properties_on_every_build(child: Child, tmp_path: Path, build: str) -> None:
    """C aborts if asked for the heads of a model without layers."""
    heads = {"llama.attention.head_count_kv": GGUFValue([2, 2], Kind.ARRAY, Kind.INT32)}
    path = write_tiny(tmp_path / "gqa.gguf", edit=lambda w: w.kv_data[0].update(heads))
    code = """
        import sys
        from llama_cffi import ValidationError
        from llama_cffi.binding import Model
        def facts(m):
            return (m.n_swa, m.n_embd_inp, m.n_embd_out, m.has_encoder, m.has_decoder,
                    m.decoder_start_token, m.is_recurrent, m.is_hybrid, m.is_diffusion,
                    m.classifier_labels, m.rope_freq_scale_train, m.n_cls_out)
        with Model(sys.argv[1]) as m:
            print(m.n_head, m.n_head_kv, *facts(m)[:6])
        with Model(sys.argv[1], vocab_only=True) as m:
            print(len(facts(m)))
            for name in ("n_head", "n_head_kv"):
                try:
                    getattr(m, name)
                except ValidationError as e:
                    print(e)
    """
    result = child(code, path, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    whole, part, *refused = result.stdout.splitlines()
    assert (whole, part) == ("2 2 0 64 64 False True None", "12")
    assert len(refused) == 2
    assert all("vocab_only" in line for line in refused)


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@BUILDS
@pytest.mark.parametrize("place", ["progress", "log"])
def test_ctrl_c_stops_the_load(child: Child, tmp_path: Path, build: str, place: str) -> None:
    """C cancels the load: in the caller's function or, without one, during a log line."""
    path = write_tiny(tmp_path / "deep.gguf", n_layer=12)
    code = """
        import logging, os, signal, sys
        from llama_cffi.binding import Model
        lines = []
        class Handler(logging.Handler):
            def emit(self, record):
                lines.append(record.getMessage())
                if sys.argv[2] == "log" and "buffer size" in lines[-1]:
                    os.kill(os.getpid(), signal.SIGINT)
        logging.getLogger("llama_cffi.native").addHandler(Handler())
        logging.getLogger("llama_cffi.native").setLevel(logging.DEBUG)
        calls = []
        def report(done):
            calls.append(done)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
        try:
            progress = report if sys.argv[2] == "progress" else None
            Model(sys.argv[1], use_mmap=False, progress=progress)
            print("loaded")
        except KeyboardInterrupt:
            print("interrupted", len(calls) <= 3, any("cancelled" in line for line in lines))
        logging.getLogger("llama_cffi.native").handlers.clear()
        Model(sys.argv[1]).close()
        print("fine")
    """
    result = child(code, path, place, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["interrupted", "True", "True", "fine"]


def test_progress_bar(child: Child, tiny_model: Path) -> None:
    code = """
        import sys
        from llama_cffi.binding import Model
        Model(sys.argv[1], progress=True).close()
    """
    result = child(code, tiny_model)
    assert result.stdout == ""
    assert "tiny.gguf: 100%" in result.stderr
