"""Decisions as rows of tokens, made by the code of llama_cffi that asks them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llama_cffi import Model
from llama_cffi.decisions.prompts import LabelledPrompt, PromptMaker
from llama_cffi.generation.chat_renderer import ChatRenderer

from .kinds_decisions import DecisionItem, decision

N_CTX = 768
# The weight of a token is 1 / sqrt(of this): the label counts, the end of the turn hardly.
_LABEL, _END = 1, 16


class DecisionRows:
    """Makes rows of decisions.

    Args:
        vocabulary: A GGUF with the vocabulary and the chat template; weights are not read.
    """

    def __init__(self, vocabulary: Path) -> None:
        self._model = Model(vocabulary, vocab_only=True)
        self._maker = PromptMaker(self._model, ChatRenderer(self._model), N_CTX)
        self._end = self._model.vocab.tokenize("<|im_end|>\n", False, True)

    def prompt(self, item: DecisionItem, rng: random.Random) -> LabelledPrompt:
        """Return the prompt of a decision with its options in one of both orders."""
        orders = self._maker.prompts(item.input, item.question, average_orders=True)
        return orders[rng.randrange(len(orders))]

    def training_row(self, rng: random.Random) -> NDArray[np.int32]:
        """Draw a training decision: (2, n), ids and weights as `Encoder.encode` gives them."""
        item = decision(rng)
        prompt = self.prompt(item, rng)
        tokens = [*prompt.tokens, prompt.labels[item.answer], *self._end]
        said = [0] * len(prompt.tokens) + [_LABEL, _END] + [0] * (len(self._end) - 1)
        return np.array([tokens, said], np.int32)
