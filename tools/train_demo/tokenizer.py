"""The byte-level BPE vocabulary: trained with the split that llama.cpp calls ``qwen2``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .conversations import training_text

VOCAB_SIZE = 1536
#: Never produced by text: they end turns and documents.
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
#: Part of the text that callers see, and yet one token each.
USER_DEFINED = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
# The regular expression of LLAMA_VOCAB_PRE_TYPE_QWEN2: every digit stands alone.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of a token that exists."""
    index = tokenizer.token_to_id(text)
    if index is None:
        raise KeyError(text)
    return int(index)


def _corpus(n: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    return (training_text(rng) for _ in range(n))


def train_tokenizer(path: Path, n_conversations: int = 30_000, seed: int = 11) -> Tokenizer:
    """Train the vocabulary on training conversations and save it to ``path``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*CONTROL, *USER_DEFINED],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(n_conversations, seed), trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in USER_DEFINED])
    tokenizer.save(str(path))
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Return (tokens by id, merges as ``"left right"``) the way GGUF stores them."""
    content = json.loads(tokenizer.to_str())["model"]
    tokens = [""] * tokenizer.get_vocab_size()
    for token, index in tokenizer.get_vocab().items():
        tokens[index] = token
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["merges"]]
    return tokens, merges
