"""The models of the benchmarks: random weights, generated once, always the same bytes.

    python benchmarks/models.py [--models DIR] [NAME ...]

The text is meaningless, but time and memory are realistic, because they depend on shapes and types.
The models never generate an end-of-generation token, so every run generates the requested number
of tokens.
"""

from __future__ import annotations

import argparse
import itertools
import os
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import platformdirs
from tqdm import tqdm

from llama_cffi.binding.model.quantize import quantize

VERSION = 1  # part of the file names; increase when the content changes
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEFAULT_FOLDER = Path(platformdirs.user_cache_dir("llama_cffi-benchmarks", appauthor=False))


@dataclass(frozen=True)
class Shape:
    """The shape of a model, and the type of its weights."""

    architecture: str
    n_vocab: int
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    tied: bool  # whether the output matrix is the embedding
    quantized: str | None = None  # None: F16
    n_ctx: int = 4096

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of each tensor, in the order of llama.cpp's converters."""
        q, kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        yield "token_embd.weight", (self.n_vocab, self.n_embd)
        if not self.tied:
            yield "output.weight", (self.n_vocab, self.n_embd)
        yield "output_norm.weight", (self.n_embd,)
        for i in range(self.n_layer):
            yield f"blk.{i}.attn_norm.weight", (self.n_embd,)
            yield f"blk.{i}.attn_q.weight", (q, self.n_embd)
            yield f"blk.{i}.attn_k.weight", (kv, self.n_embd)
            yield f"blk.{i}.attn_v.weight", (kv, self.n_embd)
            yield f"blk.{i}.attn_output.weight", (self.n_embd, q)
            if self.architecture == "qwen3":
                yield f"blk.{i}.attn_q_norm.weight", (self.head_dim,)
                yield f"blk.{i}.attn_k_norm.weight", (self.head_dim,)
            yield f"blk.{i}.ffn_norm.weight", (self.n_embd,)
            yield f"blk.{i}.ffn_gate.weight", (self.n_ff, self.n_embd)
            yield f"blk.{i}.ffn_up.weight", (self.n_ff, self.n_embd)
            yield f"blk.{i}.ffn_down.weight", (self.n_embd, self.n_ff)

    @property
    def n_parameters(self) -> int:
        """The number of parameters."""
        return sum(int(np.prod(shape)) for _, shape in self.tensors())


SHAPES = {
    "tiny": Shape("llama", 1_536, 4, 128, 512, 2, 2, 64, tied=False),
    "small": Shape("llama", 151_936, 4, 192, 512, 3, 3, 64, tied=True),
    "0.6B": Shape("qwen3", 151_936, 28, 1024, 3072, 16, 8, 128, tied=True, quantized="Q4_K_M"),
}


def model_path(name: str, folder: Path = DEFAULT_FOLDER) -> Path:
    """Return the file of the model *name*, generating it if necessary."""
    shape = SHAPES[name]
    kind = shape.quantized or "F16"
    path = folder / f"{name}-{kind}-v{VERSION}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        write(part, shape)
        if shape.quantized:
            quantize(part, path, shape.quantized, progress=True)
        else:
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write(path: Path, shape: Shape) -> None:
    """Write *shape* with random weights, F16, one tensor in memory at a time."""
    tokens, merges = vocabulary(shape.n_vocab)
    # Their rows are 0, and so are their logits, far below the largest: they are never sampled.
    silent = [i for i, token in enumerate(tokens) if not token.isascii() and len(token) == 1]
    silent += range(shape.n_vocab - len(SPECIAL), shape.n_vocab)
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    normal = [gguf.TokenType.NORMAL] * (shape.n_vocab - len(SPECIAL))
    writer.add_token_types([*normal, *[gguf.TokenType.CONTROL] * len(SPECIAL)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(shape.n_vocab - 3)
    writer.add_eos_token_id(shape.n_vocab - 1)
    writer.add_add_bos_token(False)
    for name, size in shape.tensors():
        kind = np.dtype(np.float32 if len(size) == 1 else np.float16)
        writer.add_tensor_info(name, size, kind, int(np.prod(size)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    with tqdm(total=shape.n_parameters, unit="", unit_scale=True, desc=shape.architecture) as bar:
        for _, size in shape.tensors():
            if len(size) == 1:
                data = np.ones(size, np.float32)
            else:
                data = rng.standard_normal(size, np.float32)
                data *= size[1] ** -0.5
                if size[0] == shape.n_vocab:
                    data[silent] = 0
                data = data.astype(np.float16)
            writer.write_tensor_data(data)
            bar.update(data.size)
    writer.close()


def vocabulary(n_tokens: int) -> tuple[list[str], list[str]]:
    """Return the tokens and merges of a byte-level BPE: bytes, ` a`, `ab`, `abcd`, control tokens.

    A text of single letters with spaces between has as many tokens as letters.
    """
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    tokens = [chr(b) if b in keep else chr(next(extra)) for b in range(256)]
    letters = string.ascii_lowercase
    space = tokens[ord(" ")]
    pairs = ["".join(p) for p in itertools.product(letters, repeat=2)]
    joined = itertools.chain(
        ((space, letter) for letter in letters),
        ((pair[0], pair[1]) for pair in pairs),
        itertools.product(pairs, repeat=2),
    )
    new = list(itertools.islice(joined, n_tokens - len(tokens) - len(SPECIAL)))
    return [*tokens, *(a + b for a, b in new), *SPECIAL], [f"{a} {b}" for a, b in new]


def prompt(n_tokens: int) -> str:
    """Return a text of *n_tokens* tokens for each of the models."""
    letters = itertools.cycle("abcdefghijklmnopqrstuvwxyz")
    return " ".join(itertools.islice(letters, n_tokens))


def main() -> None:
    """Generate the models and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--models", type=Path, default=DEFAULT_FOLDER, help="folder of the models")
    args = parser.parse_args()
    for name in args.names or SHAPES:
        path = model_path(name, args.models)
        size, n = path.stat().st_size, SHAPES[name].n_parameters
        print(f"{name:6} {n:13,} parameters {size:13,} bytes  {path}")


if __name__ == "__main__":
    main()
