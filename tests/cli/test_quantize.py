"""`llama-cffi quantize`: the bytes of C's own call, and sizes told before."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import PROGRAM, Runner
from support.tiny_gguf import write_tiny

from llama_cffi import read_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model with rows long enough for K-quants."""
    return write_tiny(tmp_path_factory.mktemp("models") / "f32.gguf", n_embd=256)


def test_the_file_has_the_bytes_that_c_writes(run: Runner, source: Path, tmp_path: Path) -> None:
    from llama_cffi.binding import get_library
    from llama_cffi.binding.compat import file_types, quantize_model

    library, direct, target = get_library(), tmp_path / "direct.gguf", tmp_path / "out.gguf"
    values = {"ftype": file_types(library)["Q4_K_M"], "nthread": 1}
    assert quantize_model(library, bytes(source), bytes(direct), values) == 0
    told = run.json("quantize", source, target, "q4_k_m", "1")
    assert target.read_bytes() == direct.read_bytes()
    tensors = read_gguf(target).tensors
    assert told["new_size_bytes"] == sum(tensor.size_bytes or 0 for tensor in tensors)
    dry = run.json("quantize", source, "Q4_K_M", "--dry-run")
    assert {t["name"]: t["new_type"] for t in dry["tensors"]} == {
        tensor.name: tensor.type_name for tensor in tensors
    }
    same = ("size_bytes", "new_size_bytes", "bits_per_weight", "type")
    assert {k: dry[k] for k in same} == {k: told[k] for k in same}
    assert 4 < dry["bits_per_weight"] < 9
    assert dry["file"] is None


def test_a_dry_run_writes_nothing(run: Runner, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    table = run.text("quantize", source, target, "Q8_0", "--dry-run")
    assert "blk.0.attn_q.weight" in table
    assert table.splitlines()[-1].endswith("as Q8_0, 8.52 bits per weight")
    assert not target.exists()


def test_the_types_are_those_of_the_build(run: Runner) -> None:
    names = run.text("quantize", "--list").split()
    assert {"Q4_K_M", "Q8_0", "F16", "BF16"} <= {*names}
    assert run.json("quantize", "--list")["types"] == names


def test_progress_and_size_are_told_on_a_terminal(source: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    main_end, terminal = pty.openpty()
    with open(terminal, "wb", buffering=0) as stderr:
        command = [PROGRAM, "quantize", source, tmp_path / "out.gguf", "Q8_0", "1"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=True)
        with open(main_end, "rb", buffering=0) as shown:
            text = shown.read(65536).decode()
    assert "bits per weight" in text
    assert done.stdout.decode().splitlines()[0] == str(tmp_path / "out.gguf")


def test_wrong_input_is_one_sentence(run: Runner, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert "no model file at" in run.error("quantize", tmp_path / "no.gguf", out, "Q8_0")
    assert "ftype='Q9' is not one of" in run.error("quantize", source, out, "Q9")
    assert "ftype='Q9' is not one of" in run.error("quantize", source, "Q9", "--dry-run")
    assert "is the source; choose another" in run.error("quantize", source, source, "Q8_0")
    missing = tmp_path / "no" / "out.gguf"
    assert "is not a folder" in run.error("quantize", source, missing, "Q8_0")
    assert "is a folder; name the new file" in run.error("quantize", source, tmp_path, "Q8_0")
    kind = ("--output-tensor-type", "q9")
    assert "output_tensor_type='q9'" in run.error("quantize", source, out, "Q8_0", *kind)
    assert not out.exists()


def test_an_existing_file_is_replaced_only_on_request(
    run: Runner, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    assert "add --overwrite to replace it" in run.error("quantize", source, out, "Q8_0")
    assert out.read_bytes() == b"mine"
    assert run.text("quantize", source, out, "Q8_0", "--overwrite").startswith(str(out))
    assert out.read_bytes()[:4] == b"GGUF"
    again = tmp_path / "again.gguf"
    assert "add --allow-requantize" in run.error("quantize", out, again, "Q4_0")
    assert run.text("quantize", out, "Q4_0", "--dry-run")  # nothing is lost by looking
    copy = run.json("quantize", out, again, "copy")
    assert copy["new_size_bytes"] == copy["size_bytes"]


@pytest.mark.parametrize("args", [[], ["x.gguf"], ["x.gguf", "y.gguf"], ["x.gguf", "--dry-run"]])
def test_too_few_arguments_are_a_usage_error(args: list[str], run: Runner) -> None:
    assert "give IN, OUT and TYPE" in run.usage("quantize", *args)
