"""Read a GGUF back: its vocabulary as the trainer's tokenizer, its weights as the PyTorch model."""

from __future__ import annotations

import gguf
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from .model import Config, Llama
from .tokenizer import CONTROL, QWEN2_SPLIT, USER_DEFINED


def _field(reader: gguf.GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    if field is None:
        raise KeyError(f"the file has no {key}")
    return field.contents()


def read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Rebuild the training tokenizer from the vocabulary in the file."""
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = _field(reader, "tokenizer.ggml.merges")
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(m.split(" ")) for m in merges]))
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in USER_DEFINED])
    return tokenizer


def read_model(reader: gguf.GGUFReader) -> Llama:
    """Load the weights of the file, dequantized to F32, into the PyTorch model."""
    config = Config(
        n_vocab=int(str(_field(reader, "llama.vocab_size"))),
        n_ctx=int(str(_field(reader, "llama.context_length"))),
        n_embd=int(str(_field(reader, "llama.embedding_length"))),
        n_layer=int(str(_field(reader, "llama.block_count"))),
        n_head=int(str(_field(reader, "llama.attention.head_count"))),
        n_ff=int(str(_field(reader, "llama.feed_forward_length"))),
    )
    model = Llama(config)
    names = {n if n.endswith(".weight") else f"{n}.weight": n for n in model.state_dict()}
    weights = {
        names[tensor.name]: torch.from_numpy(
            gguf.dequantize(tensor.data, tensor.tensor_type).copy()
        )
        for tensor in reader.tensors
    }
    model.load_state_dict(weights)
    return model.eval()
