"""Seeded chunks of tokenized conversations, batched by length, and a teacher-forced check."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from .conversations import EVALUATED, heldout, training_text
from .decision_rows import DecisionRows
from .kinds_decisions import DECISIONS, decision
from .model import Llama
from .tokenizer import token_id

CHUNK_CONVERSATIONS = 6000
MAX_TOKENS = 768
_SHORT_SHARE = 0.92


@dataclass(frozen=True)
class Batch:
    """Inputs, targets (batch, n_tokens) int64, and the positions that carry loss.

    Attributes:
        tokens: Ids, (batch, n_tokens).
        targets: The ids that follow, (batch, n_tokens).
        where: Whether the target is said by the assistant, bool, (batch, n_tokens).
        weights: The weight of each such target, (number of them,), summing to 1.
    """

    tokens: Tensor
    targets: Tensor
    where: Tensor
    weights: Tensor


class Encoder:
    """Turns conversation text into ids and marks what the assistant says."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.opening = tokenizer.encode("<|im_start|>assistant\n").ids
        self.im_end = token_id(tokenizer, "<|im_end|>")

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return (2, n): ids, and the length of the assistant's turn an id belongs to, else 0."""
        ids = self.tokenizer.encode(text).ids
        return self._mark(ids)

    def encode_all(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Encode many texts."""
        return [self._mark(e.ids) for e in self.tokenizer.encode_batch_fast(texts)]

    def _mark(self, ids: list[int]) -> NDArray[np.int32]:
        said = np.zeros(len(ids), np.int32)
        n = len(self.opening)
        i = 0
        while i < len(ids):
            if ids[i] == self.opening[0] and ids[i : i + n] == self.opening:
                end = ids.index(self.im_end, i)
                said[i + n : end + 1] = end + 1 - i - n
                i = end
            i += 1
        return np.array([ids, said], np.int32)


def collate(rows: list[NDArray[np.int32]]) -> Batch:
    """Pad rows of (2, n) on the right; padding carries no loss.

    A token weighs 1 / sqrt(length of its turn): else the long answers, which are easy, would drown
    the two digits of a sum.
    """
    width = max(row.shape[1] for row in rows)
    padded = np.zeros((2, len(rows), width), np.int64)
    for i, row in enumerate(rows):
        padded[:, i, : row.shape[1]] = row
    ids, said = torch.from_numpy(padded)
    where = said[:, 1:] > 0
    weights = said[:, 1:][where].float() ** -0.5
    targets = ids[:, 1:].contiguous()
    return Batch(ids[:, :-1].contiguous(), targets, where, weights / weights.sum())


def batch_rows(
    rows: list[NDArray[np.int32]], batch_tokens: int
) -> Iterator[list[NDArray[np.int32]]]:
    """Group rows that are sorted by length into batches of about ``batch_tokens``."""
    group: list[NDArray[np.int32]] = []
    for row in rows:
        if group and (len(group) + 1) * row.shape[1] > batch_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def chunk(
    encoder: Encoder,
    decisions: DecisionRows,
    share: float,
    short_chunks: int,
    seed: int,
    index: int,
    *,
    batch_tokens: int,
) -> list[Batch]:
    """Make chunk ``index`` of the training data: always the same for the same arguments.

    Args:
        encoder: Encodes conversations.
        decisions: Makes rows of decisions.
        share: The share of decisions among the rows.
        short_chunks: How many chunks at the beginning teach what labels are: mostly short
            decisions, some with the option spelled out, and lists of labels.
        seed: Of the run.
        index: The number of the chunk.
        batch_tokens: The size of a batch.
    """
    rng, short = random.Random(f"{seed}:{index}"), index < short_chunks
    draw = partial(decisions.training_row, short=short)
    sorts = (decisions.lookup_row, partial(draw, spelled=True), draw)
    weights = (0.1, 0.2, 0.7) if short else (0.0, 0.0, 1.0)
    n_decisions = round(CHUNK_CONVERSATIONS * (_SHORT_SHARE if short else share))
    texts = [training_text(rng) for _ in range(CHUNK_CONVERSATIONS - n_decisions)]
    rows = [
        *encoder.encode_all(texts),
        *(row(rng) for row in rng.choices(sorts, weights, k=n_decisions)),
    ]
    rows = sorted((r for r in rows if r.shape[1] <= MAX_TOKENS), key=lambda row: row.shape[1])
    batches = [collate(group) for group in batch_rows(rows, batch_tokens)]
    rng.shuffle(batches)
    return batches


@torch.no_grad()
def heldout_accuracy(
    model: Llama, encoder: Encoder, decisions: DecisionRows, n: int, seed: int
) -> dict[str, tuple[int, int]]:
    """Count held-out answers that greedy decoding would get exactly right.

    Greedy decoding gives the answer exactly when, with the answer fed in, every position's
    arg max is the next token of it: one pass instead of a generation. Stories, where several
    answers count, are left to ``evaluate.py``.

    Returns:
        Kind, and kind/sort for mixed kinds, to (correct, asked).
    """
    rng = random.Random(seed)
    counts: dict[str, list[int]] = {}
    for kind in EVALUATED:
        if kind == "story":
            continue
        asked = [heldout(kind, rng) for _ in range(n)]
        prompts = [encoder.tokenizer.encode(c.prompt()).ids for c in asked]
        rows = []
        for conversation, prompt in zip(asked, prompts, strict=True):
            answer = [*encoder.tokenizer.encode(conversation.answers[0]).ids, encoder.im_end]
            said = [0] * len(prompt) + [1] * len(answer)
            rows.append(np.array([prompt + answer, said], np.int32))
        for start in range(0, n, 16):
            batch = collate(rows[start : start + 16])
            best = model(batch.tokens).argmax(-1)
            right = ((best == batch.targets) | ~batch.where).all(1).tolist()
            for conversation, ok in zip(asked[start : start + 16], right, strict=True):
                names = [kind]
                if kind in ("arithmetic", "dates", "facts"):
                    names.append(f"{kind}/{conversation.key.split(':')[0]}")
                for name in names:
                    entry = counts.setdefault(name, [0, 0])
                    entry[0] += int(ok)
                    entry[1] += 1
    for kind in DECISIONS:
        counts[kind] = [_n_decided(model, decisions, kind, n, seed), n]
    return {name: (right, total) for name, (right, total) in counts.items()}


def _n_decided(model: Llama, decisions: DecisionRows, kind: str, n: int, seed: int) -> int:
    """Count the clear held-out decisions whose right label is the most probable one."""
    rng, right = random.Random(f"{seed}:{kind}"), 0
    for _ in range(n):
        item = decision(rng, kind, True)
        while not item.is_clear:
            item = decision(rng, kind, True)
        prompt = decisions.prompt(item, rng)
        logits = model(torch.tensor([prompt.tokens]))[0, -1, list(prompt.labels)]
        right += int(logits.argmax()) == item.answer
    return right
