"""Tiny random encoders (BERT, T5) and the same computations in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from support.tiny_gguf import byte_alphabet

__all__ = ["N_POSITIONS", "bert_embeddings", "t5_encoded", "t5_logits", "write_bert", "write_t5"]

N_POSITIONS = 64
_N_EMBD, _N_HEAD, _N_FF, _N_LAYER, _N_BUCKETS = 32, 2, 64, 2, 8
_EPS = 1e-5

Weights = dict[str, NDArray[np.float32]]


def _weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(
            float(name.endswith("norm.weight")),
            0.3 if len(shape) == 1 else shape[-1] ** -0.5,
            shape,
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def _write(
    path: Path, architecture: str, weights: Weights, more: Callable[[gguf.GGUFWriter], object]
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(N_POSITIONS)
    writer.add_embedding_length(_N_EMBD)
    writer.add_block_count(_N_LAYER)
    writer.add_feed_forward_length(_N_FF)
    writer.add_head_count(_N_HEAD)
    more(writer)
    for name, data in weights.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_bert(
    path: Path, *, pooling: gguf.PoolingType | None = None, head: bool = False
) -> tuple[Path, Weights]:
    """Write a BERT of 120 tokens; *head* adds the classification head of a reranker."""
    tokens = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [f"\u2581{c}" for c in "abcdefghijklmnop"]
    n, both = _N_EMBD, ("weight", "bias")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), n),
        "token_types.weight": (2, n),
        "position_embd.weight": (N_POSITIONS, n),
        **{f"token_embd_norm.{p}": (n,) for p in both},
    }
    for i in range(_N_LAYER):
        for part, (rows, columns) in {
            "attn_q": (n, n),
            "attn_k": (n, n),
            "attn_v": (n, n),
            "attn_output": (n, n),
            "ffn_up": (_N_FF, n),
            "ffn_down": (n, _N_FF),
        }.items():
            shapes[f"blk.{i}.{part}.weight"] = (rows, columns)
            shapes[f"blk.{i}.{part}.bias"] = (rows,)
        for part in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"blk.{i}.{part}.{p}": (n,) for p in both}
    if head:
        shapes |= {"cls.weight": (n, n), "cls.bias": (n,)}
        shapes |= {"cls.output.weight": (1, n), "cls.output.bias": (1,)}

    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_layer_norm_eps(_EPS)
        writer.add_causal_attention(False)
        if pooling is not None:
            writer.add_pooling_type(pooling)
        writer.add_tokenizer_model("bert")
        writer.add_token_type_count(2)
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))

    weights = _weights(shapes, 1)
    return _write(path, "bert", weights, more), weights


def write_t5(path: Path, *, decoder: bool = True) -> tuple[Path, Weights]:
    """Write a T5 without positions in its attention, or only its encoder."""
    tokens = [*byte_alphabet(), "<|endoftext|>"]
    n = _N_EMBD
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens), n)}
    for half in ("enc", "dec") if decoder else ("enc",):
        shapes[f"{half}.output_norm.weight"] = (n,)
        for i in range(_N_LAYER):
            for part in ("attn", "cross_attn") if half == "dec" else ("attn",):
                shapes[f"{half}.blk.{i}.{part}_norm.weight"] = (n,)
                shapes |= {f"{half}.blk.{i}.{part}_{x}.weight": (n, n) for x in "qkvo"}
            shapes[f"{half}.blk.{i}.ffn_norm.weight"] = (n,)
            shapes[f"{half}.blk.{i}.ffn_up.weight"] = (_N_FF, n)
            shapes[f"{half}.blk.{i}.ffn_down.weight"] = (n, _N_FF)
    weights = _weights(shapes, 2)
    if decoder:
        weights["output.weight"] = weights["token_embd.weight"][::-1].copy()
    for half in ("enc", "dec") if decoder else ("enc",):
        for i in range(_N_LAYER):
            name = f"{half}.blk.{i}.attn_rel_b.weight"
            weights[name] = np.zeros((_N_BUCKETS, _N_HEAD), np.float32)

    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_layer_norm_rms_eps(_EPS)
        writer.add_relative_attn_buckets_count(_N_BUCKETS)
        writer.add_decoder_start_token_id(0)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
        writer.add_token_merges(["! !"])

    return _write(path, "t5" if decoder else "t5encoder", weights, more), weights


def _softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _attend(
    x: NDArray[np.float32],
    over: NDArray[np.float32],
    linear: Callable[[str, NDArray[np.float32]], NDArray[np.float32]],
    out: str,
    scale: float,
    causal: bool = False,
) -> NDArray[np.float32]:
    def heads(y: NDArray[np.float32]) -> NDArray[np.float32]:
        return y.reshape(len(y), _N_HEAD, -1).transpose(1, 0, 2)

    q, k, v = heads(linear("q", x)), heads(linear("k", over)), heads(linear("v", over))
    scores = q @ k.transpose(0, 2, 1) * scale
    if causal:
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    mixed = (_softmax(scores) @ v).transpose(1, 0, 2).reshape(len(x), -1)
    return linear(out, mixed)


def bert_embeddings(w: Weights, tokens: list[int]) -> NDArray[np.float32]:
    """Return the embedding of each token, (len(tokens), n_embd)."""

    def norm(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + _EPS)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["token_embd.weight"][tokens] + w["token_types.weight"][0]
    x = norm("token_embd_norm", x + w["position_embd.weight"][: len(tokens)])
    scale = (_N_EMBD / _N_HEAD) ** -0.5
    for i in range(_N_LAYER):
        b = f"blk.{i}"
        y = _attend(x, x, lambda part, z, b=b: linear(f"{b}.attn_{part}", z), "output", scale)  # type: ignore[misc]
        x = norm(f"{b}.attn_output_norm", x + y)
        y = linear(f"{b}.ffn_up", x)
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = norm(f"{b}.layer_output_norm", x + linear(f"{b}.ffn_down", y))
    return x


def _t5(
    w: Weights, half: str, tokens: list[int], encoded: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    def norm(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + _EPS)
        return scaled * w[f"{half}.{name}.weight"]

    x = w["token_embd.weight"][tokens]
    for i in range(_N_LAYER):

        def linear(part: str, z: NDArray[np.float32], i: int = i) -> NDArray[np.float32]:
            return z @ w[f"{half}.blk.{i}.{part}.weight"].T

        h = norm(f"blk.{i}.attn_norm", x)
        x = x + _attend(h, h, lambda p, z: linear(f"attn_{p}", z), "o", 1, encoded is not None)
        if encoded is not None:
            h = norm(f"blk.{i}.cross_attn_norm", x)
            x = x + _attend(h, encoded, lambda p, z: linear(f"cross_attn_{p}", z), "o", 1)
        x = x + linear("ffn_down", np.maximum(linear("ffn_up", norm(f"blk.{i}.ffn_norm", x)), 0))
    return norm("output_norm", x)


def t5_encoded(w: Weights, tokens: list[int]) -> NDArray[np.float32]:
    """Return the encoder's output for *tokens*, (len(tokens), n_embd)."""
    return _t5(w, "enc", tokens, None)


def t5_logits(w: Weights, encoded_tokens: list[int], tokens: list[int]) -> NDArray[np.float32]:
    """Return the decoder's logits for each of *tokens*, (len(tokens), n_vocab)."""
    return _t5(w, "dec", tokens, t5_encoded(w, encoded_tokens)) @ w["output.weight"].T
