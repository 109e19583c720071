"""Tiny random models whose memory is no plain KV cache."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tiny_gguf import write_tiny

__all__ = ["WINDOW", "write_recurrent", "write_windowed"]

WINDOW = 32


def write_windowed(path: Path) -> Path:
    """A gemma2 whose first layer of two sees only the last `WINDOW` tokens."""

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(WINDOW)
        del writer.tensors[0]["output.weight"]  # it is token_embd
        for i in range(2):
            for part in ("post_attention_norm", "post_ffw_norm"):
                writer.add_tensor(f"blk.{i}.{part}.weight", np.ones(64, np.float32))

    return write_tiny(path, architecture="gemma2", n_ctx=2048, edit=edit)


def write_recurrent(path: Path) -> Path:
    """A mamba of two layers."""
    n_embd, n_inner, n_state, n_conv, rank = 64, 128, 16, 4, 4
    rng = np.random.default_rng(1)

    def edit(writer: gguf.GGUFWriter) -> None:
        for name in ("head_count", "head_count_kv"):
            writer.kv_data[0][f"mamba.attention.{name}"].value = 0
        writer.kv_data[0]["mamba.feed_forward_length"].value = 0
        writer.add_ssm_conv_kernel(n_conv)
        writer.add_ssm_inner_size(n_inner)
        writer.add_ssm_state_size(n_state)
        writer.add_ssm_time_step_rank(rank)
        tensors = writer.tensors[0]
        for name in [n for n in tensors if n.startswith("blk.") and "attn_norm" not in n]:
            del tensors[name]
        for i in range(2):
            for name, shape in {
                "ssm_in.weight": (2 * n_inner, n_embd),
                "ssm_conv1d.weight": (n_inner, n_conv),
                "ssm_conv1d.bias": (n_inner,),
                "ssm_x.weight": (rank + 2 * n_state, n_inner),
                "ssm_dt.weight": (n_inner, rank),
                "ssm_dt.bias": (n_inner,),
                "ssm_a": (n_inner, n_state),
                "ssm_d": (n_inner,),
                "ssm_out.weight": (n_embd, n_inner),
            }.items():
                data = rng.normal(0, shape[-1] ** -0.5, shape)
                data = -np.abs(data) if name == "ssm_a" else data  # it decays
                writer.add_tensor(f"blk.{i}.{name}", data.astype(np.float32))

    return write_tiny(path, architecture="mamba", edit=edit)
