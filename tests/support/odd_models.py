"""Tiny random models whose memory is no plain KV cache."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from support.tiny_gguf import write_tiny

__all__ = ["WINDOW", "write_hybrid", "write_nextn", "write_recurrent", "write_windowed"]

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


def write_hybrid(path: Path) -> Path:
    """An LFM2 of two layers: a short convolution, which is recurrent, and attention."""
    n_embd, n_conv = 64, 3
    rng = np.random.default_rng(3)

    def edit(writer: gguf.GGUFWriter) -> None:
        tensors = writer.tensors[0]
        writer.kv_data[0]["lfm2.attention.head_count_kv"] = gguf.gguf_writer.GGUFValue(
            [0, 2], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32
        )
        writer.add_uint32("lfm2.shortconv.l_cache", n_conv)
        del tensors["output.weight"]  # it is token_embd
        tensors["token_embd_norm.weight"] = tensors.pop("output_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            del tensors[f"blk.0.{part}.weight"]
        for part in ("attn_q_norm", "attn_k_norm"):
            writer.add_tensor(f"blk.1.{part}.weight", np.ones(32, np.float32))
        for name, shape in {
            "conv": (n_embd, n_conv),
            "in_proj": (3 * n_embd, n_embd),
            "out_proj": (n_embd, n_embd),
        }.items():
            data = rng.normal(0, shape[-1] ** -0.5, shape)
            writer.add_tensor(f"blk.0.shortconv.{name}.weight", data.astype(np.float32))

    return write_tiny(path, architecture="lfm2", edit=edit)


def write_nextn(path: Path, head: str = "random", architecture: str = "glm4moe") -> Path:
    """A GLM-4.5 of two layers, one of experts, and a multi-token prediction head.

    The head is random, or says what the model says after the same token (`token`, which is always
    right: the model then looks at nothing else) or after the hidden state that it is given
    (`hidden`, so it repeats the last token).
    """
    n_embd, n_ff, n_expert = 64, 32, 4
    rng = np.random.default_rng(2)
    is_plain = head != "random"  # no layer adds anything to the token's embedding

    def edit(writer: gguf.GGUFWriter) -> None:
        tensors = writer.tensors[0]
        writer.add_uint32(f"{architecture}.nextn_predict_layers", 1)
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)
        writer.add_expert_shared_count(1)
        writer.add_expert_feed_forward_length(n_ff)
        writer.add_leading_dense_block_count(1)

        def tensor(name: str, *shape: int, zero: bool = False) -> None:
            data = rng.normal(0, shape[-1] ** -0.5, shape) if len(shape) > 1 else np.ones(shape)
            writer.add_tensor(name, (0 if zero else 1) * data.astype(np.float32))

        for i in range(3):
            block = f"blk.{i}."
            del tensors[f"{block}ffn_norm.weight"]
            tensor(f"{block}post_attention_norm.weight", n_embd)
            if is_plain:
                tensors[f"{block}attn_output.weight"].tensor *= 0
                tensors[f"{block}ffn_down.weight"].tensor *= 0
            if i == 0:
                continue
            for part in ("gate", "up", "down"):
                del tensors[f"{block}ffn_{part}.weight"]
            tensor(f"{block}ffn_gate_inp.weight", n_expert, n_embd)
            tensor(f"{block}exp_probs_b.bias", n_expert)
            for kind, first in (("exps", (n_expert,)), ("shexp", ())):
                for part in ("gate", "up"):
                    tensor(f"{block}ffn_{part}_{kind}.weight", *first, n_ff, n_embd)
                tensor(f"{block}ffn_down_{kind}.weight", *first, n_embd, n_ff, zero=is_plain)
        one, none = np.eye(n_embd, dtype=np.float32), np.zeros((n_embd, n_embd), np.float32)
        mix = {"token": [one, none], "hidden": [none, one], "random": [one, one]}[head]
        writer.add_tensor("blk.2.nextn.eh_proj.weight", np.concatenate(mix, 1))
        tensor("blk.2.nextn.enorm.weight", n_embd)
        tensor("blk.2.nextn.hnorm.weight", n_embd)

    return write_tiny(path, architecture=architecture, n_layer=3, edit=edit)
