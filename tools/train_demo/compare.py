"""Compare llama.cpp with PyTorch, number by number: ``python -m tools.train_demo.compare [GGUF]``.

The weights of the GGUF are read back as F32 into the PyTorch model and exported again as F32 and
F16. Over held-out conversations every export's logits, computed through llama_cffi, are compared
with PyTorch's at every position; the GGUF itself is compared too. The vocabulary is checked on the
same texts: llama.cpp has to find the token ids that training saw.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llama_cffi import Batch, Context, Model
from llama_cffi.demo import model_path

from .conversations import EVALUATED, heldout
from .export import export
from .restore import read_model, read_tokenizer

REQUIRED = 0.995


def logits(path: Path, sequences: list[list[int]]) -> list[NDArray[np.float32]]:
    """Compute the logits of every position through llama_cffi, each (n_tokens, n_vocab)."""
    found = []
    with Model(path, n_gpu_layers=0) as model:
        longest = max(len(tokens) for tokens in sequences)
        for tokens in sequences:
            batch = Batch(longest, library=model.library)
            exact = Context(
                model,
                n_ctx=1024,
                n_batch=1024,
                n_ubatch=1024,
                type_k="f32",
                type_v="f32",
                flash_attn=False,  # it rounds to F16
            )
            with exact as context:
                indices = [batch.add(t, pos, logits=True) for pos, t in enumerate(tokens)]
                context.decode(batch)
                found.append(np.stack([context.logits(i).copy() for i in indices]))
    return found


def _texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    drawn = (heldout(kind, rng) for _ in range(n) for kind in EVALUATED)
    return [f"{c.prompt()}{c.answers[0]}<|im_end|>\n" for c in drawn]


def check_vocabulary(path: Path, tokenizer: Tokenizer, texts: list[str]) -> int:
    """Count the texts that llama.cpp tokenizes differently from the training tokenizer."""
    odd = [
        "naïve café — 你好 😀",
        "  two  spaces\n\n\ttab 12345 it's I'LL",
        "a\r\nb <tool_call>x</tool_call>",
    ]
    with Model(path, vocab_only=True) as model:
        return sum(
            model.vocab.tokenize(text, False, True) != tokenizer.encode(text).ids
            for text in [*texts, *odd]
        )


def main() -> int:
    """Parse the command line, compare, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("-n", type=int, default=8, help="conversations per kind")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.model)
    tokenizer, model = read_tokenizer(reader), read_model(reader)
    texts = _texts(args.n, args.seed)
    different = check_vocabulary(args.model, tokenizer, texts)
    print(f"vocabulary: {different} of {len(texts) + 3} texts tokenized differently")
    sequences = [tokenizer.encode(text).ids for text in texts]
    with torch.no_grad():
        expected = [model(torch.tensor([tokens]))[0].numpy() for tokens in sequences]
    failed = different > 0
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder) / f"{kind}.gguf" for kind in ("f32", "f16")}
        for kind, path in files.items():
            export(model, tokenizer, path, kind)
        for kind, path in {**files, "as shipped": args.model}.items():
            pairs = list(zip(expected, logits(path, sequences), strict=True))
            same = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
            largest = max(float(np.abs(a - b).max()) for a, b in pairs)
            spread = float(np.std(np.concatenate([a.ravel() for a, _ in pairs])))
            print(
                f"{kind:<11}top-1 equal at {same.mean():.3%} of {same.size} positions, "
                f"largest difference {largest:.2e} (standard deviation of the logits {spread:.2f})"
            )
            failed |= kind in files and bool(same.mean() < REQUIRED)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
