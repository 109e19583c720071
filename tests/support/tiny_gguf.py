"""Write a tiny random llama GGUF: no download, the same bytes for the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_alphabet() -> list[str]:
    """Return the printable character of byte-level BPE for each byte."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in keep else chr(next(extra)) for b in range(256)]


def write_tiny(
    path: Path,
    *,
    architecture: str = "llama",
    n_layer: int = 2,
    n_embd: int = 64,
    n_ctx: int = 256,
    seed: int = 0,
    chat_template: str | Sequence[Mapping[str, str]] | None = CHATML,
    name: str | None = None,
    control: Sequence[str] = (),
    words: Sequence[str] = (),
    eos: str = "<|im_end|>",
    edit: Callable[[gguf.GGUFWriter], object] | None = None,
) -> Path:
    """Write a model of 256 byte tokens and three special ones; F32, random weights.

    *chat_template*: source, or several as `{"name": ..., "template": ...}`.
    *control* tokens and tokens of whole *words* follow; *eos* is one of the special ones.
    *edit* may change the writer's `kv_data[0]` and `tensors[0]` before they are written.
    """
    n_head, n_ff = 2, 2 * n_embd
    tokens = [*byte_alphabet(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens += [token for token in control if token not in tokens]
    types = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * (len(tokens) - 256)
    end = tokens.index(eos)
    tokens += words
    types += [gguf.TokenType.USER_DEFINED] * len(words)
    writer = gguf.GGUFWriter(path, architecture)
    if name is not None:
        writer.add_name(name)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["! !"])  # llama.cpp needs a list; this merge never applies
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> None:
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
        data = np.ones(shape) if len(shape) == 1 else rng.normal(0, scale, shape)
        writer.add_tensor(name, data.astype(np.float32))

    tensor("token_embd.weight", len(tokens), n_embd)
    tensor("output_norm.weight", n_embd)
    tensor("output.weight", len(tokens), n_embd)
    for i in range(n_layer):
        for part in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{i}.{part}.weight", n_embd)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{i}.{part}.weight", n_embd, n_embd)
        tensor(f"blk.{i}.ffn_gate.weight", n_ff, n_embd)
        tensor(f"blk.{i}.ffn_up.weight", n_ff, n_embd)
        tensor(f"blk.{i}.ffn_down.weight", n_embd, n_ff)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
