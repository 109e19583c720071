"""What C would not survive is refused before it sees the file."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from support.children import Child
from support.tiny_whisper import (
    MULTILINGUAL,
    TOKENS,
    Weights,
    random_weights,
    tensor_bytes,
    write_model,
)

from llama_cffi.binding.whisper.model_file import check_model_file
from llama_cffi.errors import ModelLoadError

VOCABULARY_AT = 4 + 44 + 8 + 4 * 80 * 201


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def good(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_model(tmp_path_factory.mktemp("w") / "good.bin", weights, ftype=1)
    return path.read_bytes()


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ModelLoadError) as caught:
        check_model_file(path)
    return str(caught.value)


def test_a_good_file_is_described(weights: Weights, good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.bin"
    path.write_bytes(good)
    file = check_model_file(path)
    assert (file.type_name, file.n_audio_state, file.size_bytes) == ("F16", 64, len(good))
    assert (file.is_multilingual, file.n_languages) == (False, 1)
    many = write_model(path, random_weights(0, MULTILINGUAL))
    file = check_model_file(many)
    assert (file.is_multilingual, file.n_languages, file.type_name) == (True, 99, "F32")


def test_quantized_files_have_a_version_in_their_type(weights: Weights, tmp_path: Path) -> None:
    """Their type is what remains of it modulo 1,000."""
    path = write_model(tmp_path / "q.bin", weights, ftype=1)
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, 44, 2001)
    path.write_bytes(data)
    assert check_model_file(path).type_name == "F16"
    struct.pack_into("<i", data, 44, 2008)
    assert "decoder.token_embedding.weight has F16, not Q5_0" in refusal(path, data)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (0, 51863, "n_vocab is 51863, not one of 51864, 51865, 51866"),
        (0, 60000, "n_vocab is 60000"),
        (1, 0, "n_audio_ctx is 0, outside 1..1500"),
        (1, 2**31 - 1, "n_audio_ctx is 2147483647"),
        (2, 128, "n_text_state is 64 and n_audio_state 128"),
        (2, -64, "n_audio_state is -64"),
        (3, 0, "n_audio_head is 0"),
        (3, 3, "n_audio_head is 3, which does not divide the width of 64"),
        (4, 33, "n_audio_layer is 33, outside 1..32"),
        (4, 2, "15 of 65 tensors are missing"),
        (5, 100_000, "n_text_ctx is 100000, outside 32..448"),
        (5, 8, "n_text_ctx is 8"),
        (7, 65, "n_text_head is 65"),
        (8, 0, "n_text_layer is 0"),
        (9, 128, "its mel filters are 80x201, not 128x201"),
        (10, 4, "ftype 4 is not one of"),
        (10, -1, "ftype 999 is not one of"),
        (10, 12, "Q4_K needs a width that is a multiple of 256"),
    ],
)
def test_hyperparameters(good: bytes, tmp_path: Path, field: int, value: int, reason: str) -> None:
    data = bytearray(good)
    struct.pack_into("<i", data, 4 + 4 * field, value)
    assert reason in refusal(tmp_path / "bad.bin", data)


@pytest.mark.parametrize("size", [0, 3, 4, 40, 48, 60, 10_000, VOCABULARY_AT + 2, -1, -3000])
def test_truncated(good: bytes, tmp_path: Path, size: int) -> None:
    message = refusal(tmp_path / "bad.bin", good[:size])
    assert "is empty" in message or "it ends after" in message


def test_trailing_bytes(good: bytes, tmp_path: Path) -> None:
    assert "it ends after" in refusal(tmp_path / "bad.bin", good + b"\0")


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    assert "starts with 0x46554747" in refusal(path, b"GGUF" + bytes(100))
    assert "a GGUF file, which whisper.cpp does not read" in refusal(path, b"GGUF" + bytes(100))
    assert "is not a model of whisper.cpp" in refusal(path, b"PK\3\4" + bytes(100))
    with pytest.raises(ModelLoadError, match="no model file at"):
        check_model_file(tmp_path / "missing.bin")
    with pytest.raises(ModelLoadError, match="no model file at"):
        check_model_file(tmp_path)


def test_vocabularies(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    write_model(path, weights, ftype=1, tokens=[t for t in TOKENS if t != b" "])
    assert "no token for a space" in refusal(path, path.read_bytes())
    write_model(path, weights, ftype=1, tokens=[*TOKENS, b"x" * 1025])
    assert "has 1025 bytes, more than 1024" in refusal(path, path.read_bytes())
    write_model(path, weights, ftype=1)
    data = bytearray(path.read_bytes())
    for count in (0, -1, 51865):
        struct.pack_into("<i", data, VOCABULARY_AT, count)
        assert f"its vocabulary has {count} of 51864 tokens" in refusal(path, data)
    struct.pack_into("<i", data, VOCABULARY_AT, len(TOKENS))
    struct.pack_into("<I", data, VOCABULARY_AT + 4, 2**32 - 1)
    assert "token 0 has 4294967295 bytes" in refusal(path, data)


def test_tensors(weights: Weights, good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    name = "decoder.ln.weight"
    tensor = tensor_bytes(name, weights[name])
    at = good.index(tensor)
    cases = {
        good + tensor: "'decoder.ln.weight', twice",
        good[:at] + good[at + len(tensor) :]: "1 of 50 tensors are missing: decoder.ln.weight",
        good + tensor_bytes("decoder.ln.wait", weights[name]): "'decoder.ln.wait', which this kind",
        good.replace(
            tensor, tensor_bytes(name, weights[name][:32])
        ): "has the shape [32], not [64]",
        good.replace(tensor, tensor[:8] + b"\1\0\0\0" + tensor[12:]): "has F16, not F32",
        good.replace(tensor, tensor[:8] + b"\x63\0\0\0" + tensor[12:]): "has type 99, not F32",
        good.replace(tensor, b"\x05" + tensor[1:]): "a tensor has 5 dimensions",
        good.replace(tensor, b"\0" + tensor[1:]): "a tensor has 0 dimensions",
        good.replace(tensor, tensor[:4] + b"\xff\xff\xff\xff" + tensor[8:]): "a name of -1 bytes",
    }
    for data, reason in cases.items():
        assert reason in refusal(path, data)


def test_mutated_files_never_end_the_process(
    child: Child, libwhisper: Path, good: bytes, tmp_path: Path
) -> None:
    """What passes the check is loaded and run: 90 files, in children with a time limit."""
    base = tmp_path / "base.bin"
    base.write_bytes(good)
    done = child(MUTATE, libwhisper, base, tmp_path / "mutated.bin", timeout=300)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    refused, ran = map(int, done.stdout.split()[-2:])
    assert refused > 30
    assert ran > 15


MUTATE = """
import random, struct, sys
from pathlib import Path

import numpy
from llama_cffi import LlamaError
from llama_cffi.whisper import Whisper

library, base, path = sys.argv[1], Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])
samples = numpy.sin(numpy.arange(20_000) / 10, dtype="float32")
names = [i for i in range(len(base)) if base[i : i + 8] in (b"encoder.", b"decoder.")]
numbers = [0, -1, 1, 2, 3, 64, 65, 1500, 51864, 51865, 51866, 1001, 2**31 - 1, -(2**31)]
refused = ran = 0
for seed in range(90):
    r, data = random.Random(seed), bytearray(base)
    kind = seed % 6
    if kind == 0:
        del data[r.randrange(len(data)) :]
    elif kind == 1:  # hyperparameters
        struct.pack_into("<i", data, 4 * r.randrange(12), r.choice(numbers))
    elif kind == 2:  # headers of tensors
        data[r.choice(names) - r.randrange(24)] = r.randrange(256)
    elif kind == 3:  # the vocabulary
        data[64_376 + r.randrange(1_500)] = r.randrange(256)
    elif kind == 4:
        for _ in range(r.randint(1, 20)):
            data[r.randrange(len(data))] = r.randrange(256)
    else:  # weights that are not finite
        at = r.choice(names) + 60
        for k in range(r.choice([1, 64, 2000])):
            struct.pack_into("<H", data, min(at + 2 * k, len(data) - 2), r.choice([0x7E00, 0xFC00]))
    path.write_bytes(data)
    print(seed, flush=True)
    try:
        with Whisper(path, library, 1) as whisper:
            whisper.transcribe(
                samples, temperature_inc=0, beam_size=2 if seed % 4 == 1 else None, deadline_s=0.5
            )
        ran += 1
    except LlamaError:
        refused += 1
print(refused, ran)
"""
