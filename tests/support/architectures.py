"""A tiny random model of each of many architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from .odd_models import write_hybrid, write_nextn, write_recurrent, write_windowed
from .tiny_encoders import write_bert, write_t5
from .tiny_gguf import write_tiny

__all__ = ["WRITE"]

_N_EMBD, _N_HEAD_DIM = 64, 32


def _tensor(writer: gguf.GGUFWriter, name: str, *shape: int) -> None:
    rng = np.random.default_rng(len(writer.tensors[0]))
    data = np.ones(shape) if name.endswith("norm.weight") else rng.normal(0, 0.1, shape)
    writer.add_tensor(name, data.astype(np.float32))


def _without(writer: gguf.GGUFWriter, block: str, *parts: str) -> None:
    for part in parts:
        del writer.tensors[0][f"{block}{part}.weight"]


def _qwen3(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(_N_HEAD_DIM)
    writer.add_value_length(_N_HEAD_DIM)
    for i in range(2):
        for part in ("attn_q_norm", "attn_k_norm"):
            _tensor(writer, f"blk.{i}.{part}.weight", _N_HEAD_DIM)


def _gemma3(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(32)
    writer.add_key_length(_N_HEAD_DIM)
    writer.add_value_length(_N_HEAD_DIM)
    _without(writer, "", "output")  # it is token_embd
    for i in range(6):
        for part in ("post_attention_norm", "post_ffw_norm"):
            _tensor(writer, f"blk.{i}.{part}.weight", _N_EMBD)
        for part in ("attn_q_norm", "attn_k_norm"):
            _tensor(writer, f"blk.{i}.{part}.weight", _N_HEAD_DIM)


def _gpt2(writer: gguf.GGUFWriter) -> None:
    writer.add_layer_norm_eps(1e-5)
    _tensor(writer, "position_embd.weight", 256, _N_EMBD)
    _tensor(writer, "output_norm.bias", _N_EMBD)
    for block in ("blk.0.", "blk.1."):
        _without(writer, block, "attn_q", "attn_k", "attn_v", "ffn_gate")
        _tensor(writer, f"{block}attn_qkv.weight", 3 * _N_EMBD, _N_EMBD)
        _tensor(writer, f"{block}attn_qkv.bias", 3 * _N_EMBD)
        for part in ("attn_output", "ffn_down", "attn_norm", "ffn_norm"):
            _tensor(writer, f"{block}{part}.bias", _N_EMBD)
        _tensor(writer, f"{block}ffn_up.bias", 2 * _N_EMBD)


def _phi3(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(16)
    for block in ("blk.0.", "blk.1."):
        _without(writer, block, "attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")
        _tensor(writer, f"{block}attn_qkv.weight", 3 * _N_EMBD, _N_EMBD)
        _tensor(writer, f"{block}ffn_up.weight", 4 * _N_EMBD, _N_EMBD)


def _qwen2moe(writer: gguf.GGUFWriter) -> None:
    n_expert, n_ff = 4, 32
    writer.add_expert_count(n_expert)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(n_ff)
    writer.add_expert_shared_feed_forward_length(n_ff)
    for block in ("blk.0.", "blk.1."):
        _without(writer, block, "ffn_gate", "ffn_up", "ffn_down")
        for part in ("attn_q", "attn_k", "attn_v"):
            _tensor(writer, f"{block}{part}.bias", _N_EMBD)
        _tensor(writer, f"{block}ffn_gate_inp.weight", n_expert, _N_EMBD)
        _tensor(writer, f"{block}ffn_gate_inp_shexp.weight", _N_EMBD)
        for kind, first in (("exps", (n_expert,)), ("shexp", ())):
            for part in ("gate", "up"):
                _tensor(writer, f"{block}ffn_{part}_{kind}.weight", *first, n_ff, _N_EMBD)
            _tensor(writer, f"{block}ffn_down_{kind}.weight", *first, _N_EMBD, n_ff)


def _sentencepiece(writer: gguf.GGUFWriter) -> None:
    keys = writer.kv_data[0]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    del keys["tokenizer.ggml.pre"], keys["tokenizer.ggml.merges"]
    for key, value in {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }.items():
        keys[f"tokenizer.ggml.{key}"].value = value
    writer.add_token_scores([0.0] * len(tokens))


def _mamba2(writer: gguf.GGUFWriter) -> None:
    n_inner, n_state, n_group, n_head = 128, 16, 1, 4
    keys, tensors = writer.kv_data[0], writer.tensors[0]
    for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        keys[f"mamba2.{name}"].value = 0
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(n_inner)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_time_step_rank(n_head)
    writer.add_ssm_group_count(n_group)
    for name in [n for n in tensors if n.startswith("blk.") and "attn_norm" not in n]:
        del tensors[name]
    n_conv = n_inner + 2 * n_group * n_state
    for block in ("blk.0.", "blk.1."):
        _tensor(writer, f"{block}ssm_in.weight", n_inner + n_conv + n_head, _N_EMBD)
        _tensor(writer, f"{block}ssm_conv1d.weight", n_conv, 4)
        _tensor(writer, f"{block}ssm_conv1d.bias", n_conv)
        _tensor(writer, f"{block}ssm_dt.bias", n_head)
        _tensor(writer, f"{block}ssm_a", n_head, 1)
        tensors[f"{block}ssm_a"].tensor = -np.abs(tensors[f"{block}ssm_a"].tensor)  # it decays
        _tensor(writer, f"{block}ssm_d", n_head, 1)
        _tensor(writer, f"{block}ssm_norm.weight", n_group, n_inner // n_group)
        _tensor(writer, f"{block}ssm_out.weight", _N_EMBD, n_inner)


def _tiny(**options: Any) -> Callable[[Path], object]:
    return lambda path: write_tiny(path, **options)


# Name -> writes it. `spm` is a llama with a SentencePiece vocabulary, `rank` a BERT reranker.
WRITE: dict[str, Callable[[Path], object]] = {
    "llama": _tiny(),
    "spm": _tiny(edit=_sentencepiece),
    "qwen3": _tiny(architecture="qwen3", edit=_qwen3),
    "gemma3": _tiny(architecture="gemma3", n_layer=6, edit=_gemma3),
    "gemma2": write_windowed,
    "gpt2": _tiny(architecture="gpt2", edit=_gpt2),
    "phi3": _tiny(architecture="phi3", edit=_phi3),
    "qwen2moe": _tiny(architecture="qwen2moe", edit=_qwen2moe),
    "glm4moe": write_nextn,
    "mamba": write_recurrent,
    "mamba2": _tiny(architecture="mamba2", edit=_mamba2),
    "lfm2": write_hybrid,
    "bert": lambda path: write_bert(path, pooling=gguf.PoolingType.MEAN),
    "rank": lambda path: write_bert(path, pooling=gguf.PoolingType.RANK, head=True),
    "t5": write_t5,
}
