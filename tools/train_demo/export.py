"""Write the trained model as GGUF: ``python -m tools.train_demo.export --work DIR OUT.gguf``."""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Quant
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .model import Config, Llama
from .template import CHAT_TEMPLATE
from .tokenizer import CONTROL, USER_DEFINED, token_id, vocabulary

TYPES = {
    "f32": (Quant.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Quant.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Quant.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
NAME = "llama_cffi demo"
DESCRIPTION = (
    "A very small chat model for trying and testing llama_cffi: arithmetic, counting, copying, "
    "reversing, dates, facts to look up, JSON actions, tool calls and a little small talk. "
    "Trained from scratch on synthetic conversations by tools/train_demo."
)
PICTURES_NAME = "llama_cffi demo pictures"
PICTURES_DESCRIPTION = (
    "A very small chat model for trying and testing pictures with llama_cffi: it answers questions "
    "about coloured shapes, with the projector beside it. Trained on synthetic pictures by "
    "tools/train_demo/pictures."
)


def _metadata(
    writer: gguf.GGUFWriter,
    config: Config,
    file_type: gguf.LlamaFileType,
    name: str,
    description: str,
) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_author("The llama_cffi authors")
    writer.add_version("1")
    writer.add_description(description)
    writer.add_license("mit")
    writer.add_size_label("3M")
    writer.add_languages(["en"])
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.n_vocab)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_ff)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_freq_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    tokens, merges = vocabulary(tokenizer)
    types = [int(gguf.TokenType.NORMAL)] * len(tokens)
    for names, kind in (
        (CONTROL, gguf.TokenType.CONTROL),
        (USER_DEFINED, gguf.TokenType.USER_DEFINED),
    ):
        for name in names:
            types[token_id(tokenizer, name)] = int(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(token_id(tokenizer, "<|im_end|>"))
    writer.add_eot_token_id(token_id(tokenizer, "<|im_end|>"))
    writer.add_pad_token_id(token_id(tokenizer, "<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def export_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """Write a file without weights, of which llama.cpp loads the vocabulary and the template."""
    writer = gguf.GGUFWriter(path, "llama")
    config = Config(n_vocab=tokenizer.get_vocab_size())
    _metadata(writer, config, gguf.LlamaFileType.ALL_F32, NAME, DESCRIPTION)
    _vocabulary(writer, tokenizer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(model: Llama) -> dict[str, NDArray[np.float32]]:
    """Name the weights as llama.cpp does; the output matrix is the embedding, hence absent."""
    found = {}
    for name, weight in model.state_dict().items():
        gguf_name = name if name.endswith(".weight") else f"{name}.weight"
        found[gguf_name] = weight.detach().float().numpy()
    return found


def export(
    model: Llama, tokenizer: Tokenizer, path: Path, kind: str, *, pictures: bool = False
) -> None:
    """Write ``model`` to ``path``.

    Args:
        model: The trained model.
        tokenizer: Its vocabulary.
        path: The file to write.
        kind: ``f32``, ``f16`` or ``q8_0``: the type of the matrices; norms stay F32.
        pictures: Whether it is the model that reads pictures.
    """
    quant, file_type = TYPES[kind]
    writer = gguf.GGUFWriter(path, "llama")
    name, description = (PICTURES_NAME, PICTURES_DESCRIPTION) if pictures else (NAME, DESCRIPTION)
    _metadata(writer, model.config, file_type, name, description)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _vocabulary(writer, tokenizer)
    for name, weight in tensors(model).items():
        wanted = quant if weight.ndim == 2 else Quant.F32
        writer.add_tensor(name, gguf.quantize(weight, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_checkpoint(work: Path) -> tuple[Llama, Tokenizer]:
    """Load ``model.pt`` and ``tokenizer.json`` of a training run."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    model = Llama(Config(n_vocab=tokenizer.get_vocab_size()))
    saved = torch.load(work / "model.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    return model.eval(), tokenizer


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the folder of train.py")
    parser.add_argument("--type", choices=sorted(TYPES), default="q8_0")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    model, tokenizer = load_checkpoint(args.work)
    export(model, tokenizer, args.output, args.type)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
