"""Control vectors: files for a few models, then changed."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llama_cffi import Context, LlamaError, load_control_vector
from llama_cffi.gguf.reader import read_gguf
from tools.fuzz import models
from tools.fuzz.gguf_codec import STRING, U32, Gguf, Tensor, Value
from tools.fuzz.gguf_edits import Edit, resize, write_cases

__all__ = ["cases", "run"]

BASES = ("llama", "experts", "gemma2", "mamba", "bert", "lfm2")


def cases(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield *count* control vectors, most of them damaged."""
    yield from write_cases({name: _valid(name) for name in BASES}, OWN, seed, count, folder)


def run(path: Path) -> str:
    """Load a control vector, decode with it, and without it."""
    try:
        model = models.model(path.stem.split("-")[1])
        vector = load_control_vector(model, path)
        with Context(model, n_ctx=64, n_threads=1) as context:
            context.set_control_vector(vector)
            models.decode(context, [1, 2, 3], 0)
            context.set_control_vector(None)
            context.memory.clear()
            models.decode(context, [4], 0)
            context.set_control_vector(vector * 1e30)
            models.decode(context, [4], 1)
    except LlamaError as error:
        return type(error).__name__
    return "used"


@functools.cache
def _valid(name: str) -> Gguf:
    """Return a direction for each layer of a model."""
    file, rng = read_gguf(models.path_of(name)), np.random.default_rng(6)
    n_embd = file.metadata[f"{file.architecture}.embedding_length"]
    assert isinstance(n_embd, int)
    data = rng.normal(0, 0.1, n_embd).astype(np.float32).tobytes()
    keys = {
        "general.architecture": Value(STRING, "controlvector"),
        "controlvector.model_hint": Value(STRING, file.architecture),
        "controlvector.layer_count": Value(U32, 1),
    }
    return Gguf(keys, [Tensor(b"direction.1", [n_embd], 0, data)])


def _another(rng: random.Random, gguf: Gguf) -> str:
    """Add a direction, of a layer that may not exist."""
    first = gguf.tensors[0] if gguf.tensors else Tensor(b"direction.1", [64], 0, bytes(256))
    number = rng.choice((
        b"0", b"1", b"01", b"2", b"3", b"99", b"-1", b"", b" 1", b"1 ", b"1\0", b"1.0", b"0x1",
        b"2147483648", b"9" * 40, b"9" * 5000, "\u0661".encode(), "\u00b2".encode(), b"\xff",
    ))  # fmt: skip
    name = rng.choice((b"direction.", b"direction.", b"direction", b"Direction.", b"x.direction."))
    gguf.tensors.append(Tensor(name + number, list(first.shape), 0, first.data))
    return f"also {(name + number)[:30]!r}"


def _wide(rng: random.Random, gguf: Gguf) -> str:
    """Change the width of every direction."""
    width = rng.choice((1, 2, 32, 63, 65, 128, 2**20))
    for tensor in gguf.tensors:
        tensor.shape = [width, *tensor.shape[1:]]
        resize(tensor)
    return f"directions of {width} numbers"


OWN: list[Edit] = [_another, _another, _wide]
