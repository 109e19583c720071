"""A tiny random model with a vocabulary of any size."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from support.tiny_gguf import write_tiny

__all__ = ["write_wide"]


def write_wide(path: Path, n_vocab: int, n_embd: int = 16) -> Path:
    """Write `write_tiny`'s model with more tokens: x0, x1, ..."""

    def edit(writer: gguf.GGUFWriter) -> None:
        values = writer.kv_data[0]
        more = n_vocab - len(values["tokenizer.ggml.tokens"].value)
        values["tokenizer.ggml.tokens"].value += [f"x{i}" for i in range(more)]
        values["tokenizer.ggml.token_type"].value += [gguf.TokenType.NORMAL] * more
        values["llama.vocab_size"].value = n_vocab
        rng = np.random.default_rng(5)
        for name in ("token_embd.weight", "output.weight"):
            del writer.tensors[0][name]
            data = rng.normal(0, n_embd**-0.5, (n_vocab, n_embd))
            writer.add_tensor(name, data.astype(np.float32))

    return write_tiny(path, n_embd=n_embd, edit=edit)
