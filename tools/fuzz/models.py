"""Small models of several kinds, for files that go with a model; written once per process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import gguf
import numpy as np
from support.odd_models import write_hybrid, write_recurrent, write_windowed
from support.tiny_encoders import write_bert
from support.tiny_gguf import write_tiny

from llama_cffi import Batch, Context, Model
from llama_cffi.demo import model_path

__all__ = ["MODELS", "decode", "model", "path_of"]


def _write_tied(path: Path) -> Path:
    return write_tiny(path, edit=lambda writer: writer.tensors[0].pop("output.weight"))


def _write_experts(path: Path) -> Path:
    n_embd, n_ff, n_expert = 64, 128, 4
    rng = np.random.default_rng(4)

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)
        for i in range(2):
            for part in ("gate", "up", "down"):
                del writer.tensors[0][f"blk.{i}.ffn_{part}.weight"]
            for name, shape in {
                "ffn_gate_inp": (n_expert, n_embd),
                "ffn_gate_exps": (n_expert, n_ff, n_embd),
                "ffn_up_exps": (n_expert, n_ff, n_embd),
                "ffn_down_exps": (n_expert, n_embd, n_ff),
            }.items():
                data = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
                writer.add_tensor(f"blk.{i}.{name}.weight", data)

    return write_tiny(path, edit=edit)


MODELS = {
    "llama": write_tiny,
    "tied": _write_tied,
    "experts": _write_experts,
    "mamba": write_recurrent,
    "gemma2": write_windowed,
    "bert": lambda path: write_bert(path)[0],
    "lfm2": write_hybrid,  # old builds do not know it
}


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())  # within the folder of the worker, which is removed


@functools.cache
def path_of(name: str) -> Path:
    """Return the file of one of `MODELS`, or of the demo model."""
    return model_path() if name == "demo" else MODELS[name](_folder() / f"{name}.gguf")


@functools.cache
def model(name: str) -> Model:
    """Return an open model.

    Raises:
        ModelLoadError: This build does not know its architecture.
    """
    return Model(path_of(name))


def decode(context: Context, tokens: list[int], pos: int, seq_id: int = 0) -> None:
    """Decode tokens, and look at the last output."""
    batch = Batch(len(tokens))
    batch.fill(tokens, pos, seq_id)
    context.decode(batch)
    context.logits()
