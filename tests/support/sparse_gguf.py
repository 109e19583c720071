"""Models of any size that take no space: a complete header, and weights that are a hole."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np

from support.tiny_gguf import byte_alphabet

__all__ = ["KINDS", "write_sparse"]

# Kind of memory -> architecture.
KINDS = {
    "dense": "llama",
    "gqa": "qwen3",
    "swa": "gemma3",
    "moe": "qwen3moe",
    "recurrent": "mamba",
    "hybrid": "lfm2",
}
_D_CONV, _D_STATE = 4, 16


def write_sparse(
    path: Path,
    kind: str = "dense",
    *,
    n_layer: int = 6,
    n_embd: int = 512,
    n_head: int = 8,
    n_head_kv: int | None = None,
    n_ff: int = 1536,
    n_vocab: int = 4096,
    n_expert: int = 8,
    n_ctx: int = 32768,
    type_: str = "F16",
) -> Path:
    """Write a model of a kind in `KINDS`; its matrices have the type *type_*."""
    architecture = KINDS[kind]
    if n_head_kv is None:
        n_head_kv = n_head if kind in ("dense", "swa") else n_head // 4
    head = n_embd // n_head
    writer = gguf.GGUFWriter(path, architecture)
    tokens = [*byte_alphabet(), "<|endoftext|>"]
    tokens += [f"x{i}" for i in range(n_vocab - len(tokens))]
    recurrent = kind == "recurrent"
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(0 if recurrent else n_ff)
    writer.add_head_count(0 if recurrent else n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * n_vocab)
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(256)
    if not recurrent:
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
        writer.add_value_length(head)
    if kind == "hybrid":  # every third layer has attention
        kv = [n_head_kv if i % 3 == 2 else 0 for i in range(n_layer)]
        writer.add_head_count_kv(kv)
        writer.add_uint32("lfm2.shortconv.l_cache", 3)
    else:
        writer.add_head_count_kv(0 if recurrent else n_head_kv)
    if kind == "swa":
        writer.add_sliding_window(512)
    if kind == "moe":
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(n_ff // 2)
    if recurrent:
        writer.add_ssm_conv_kernel(_D_CONV)
        writer.add_ssm_inner_size(2 * n_embd)
        writer.add_ssm_state_size(_D_STATE)
        writer.add_ssm_time_step_rank(n_embd // 16)
    _add_tensors(writer, kind, type_, n_layer, n_embd, n_head, n_head_kv, n_ff, n_vocab, n_expert)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = sum(
        -(-info.nbytes // 32) * 32 for tensors in writer.tensors for info in tensors.values()
    )
    os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)
    return path


def _add_tensors(
    writer: gguf.GGUFWriter,
    kind: str,
    type_: str,
    n_layer: int,
    n_embd: int,
    n_head: int,
    n_head_kv: int,
    n_ff: int,
    n_vocab: int,
    n_expert: int,
) -> None:
    matrix_type = gguf.GGMLQuantizationType[type_]
    head = n_embd // n_head

    def tensor(name: str, *shape: int, exact: bool = False) -> None:
        """Add a tensor; of one dimension, or if *exact*, in F32."""
        if len(shape) == 1 or exact:
            writer.add_tensor_info(f"{name}", shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
            return
        stored = gguf.quants.quant_shape_to_byte_shape(shape, matrix_type)
        dtype = np.dtype(np.uint8)
        writer.add_tensor_info(name, stored, dtype, int(np.prod(stored)), matrix_type)

    norm = "token_embd_norm" if kind == "hybrid" else "output_norm"
    tensor("token_embd.weight", n_vocab, n_embd)
    tensor(f"{norm}.weight", n_embd)
    if kind in ("dense", "gqa", "moe", "recurrent"):
        tensor("output.weight", n_vocab, n_embd)
    for i in range(n_layer):
        block = f"blk.{i}."
        tensor(f"{block}attn_norm.weight", n_embd)
        if kind == "recurrent":
            inner, rank = 2 * n_embd, n_embd // 16
            tensor(f"{block}ssm_in.weight", 2 * inner, n_embd)
            tensor(f"{block}ssm_conv1d.weight", inner, _D_CONV, exact=True)
            tensor(f"{block}ssm_conv1d.bias", inner)
            tensor(f"{block}ssm_x.weight", rank + 2 * _D_STATE, inner)
            tensor(f"{block}ssm_dt.weight", inner, rank, exact=True)
            tensor(f"{block}ssm_dt.bias", inner)
            tensor(f"{block}ssm_a", inner, _D_STATE, exact=True)
            tensor(f"{block}ssm_d", inner)
            tensor(f"{block}ssm_out.weight", n_embd, inner)
            continue
        tensor(f"{block}ffn_norm.weight", n_embd)
        if kind == "hybrid" and i % 3 != 2:
            tensor(f"{block}shortconv.conv.weight", n_embd, 3, exact=True)
            tensor(f"{block}shortconv.in_proj.weight", 3 * n_embd, n_embd)
            tensor(f"{block}shortconv.out_proj.weight", n_embd, n_embd)
        else:
            tensor(f"{block}attn_q.weight", n_head * head, n_embd)
            tensor(f"{block}attn_k.weight", n_head_kv * head, n_embd)
            tensor(f"{block}attn_v.weight", n_head_kv * head, n_embd)
            tensor(f"{block}attn_output.weight", n_embd, n_head * head)
            if kind != "dense":
                tensor(f"{block}attn_q_norm.weight", head)
                tensor(f"{block}attn_k_norm.weight", head)
        if kind == "swa":
            tensor(f"{block}post_attention_norm.weight", n_embd)
            tensor(f"{block}post_ffw_norm.weight", n_embd)
        if kind == "moe":
            tensor(f"{block}ffn_gate_inp.weight", n_expert, n_embd, exact=True)
            for part in ("gate", "up"):
                tensor(f"{block}ffn_{part}_exps.weight", n_expert, n_ff // 2, n_embd)
            tensor(f"{block}ffn_down_exps.weight", n_expert, n_embd, n_ff // 2)
        else:
            tensor(f"{block}ffn_gate.weight", n_ff, n_embd)
            tensor(f"{block}ffn_up.weight", n_ff, n_embd)
            tensor(f"{block}ffn_down.weight", n_embd, n_ff)
