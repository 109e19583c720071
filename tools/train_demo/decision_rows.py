"""Decisions as rows of tokens, made by the code of llama_cffi that asks them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llama_cffi import Model
from llama_cffi.decisions.labels import LETTERS
from llama_cffi.decisions.prompts import LabelledPrompt, PromptMaker
from llama_cffi.generation.chat_renderer import ChatRenderer

from .items import pick
from .kinds_decisions import WORDS_OF_OPTIONS, DecisionItem, decision

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
        (self._answer,) = self._model.vocab.tokenize("Answer", False, True)
        self._end = self._model.vocab.tokenize("<|im_end|>\n", False, True)

    def prompt(
        self, item: DecisionItem, rng: random.Random, reversed: float = 0.5
    ) -> LabelledPrompt:
        """Return the prompt of a decision, with probability *reversed* in the other order."""
        orders = self._maker.prompts(item.input, item.question, average_orders=True)
        return orders[-1 if rng.random() < reversed else 0]

    def training_row(
        self, rng: random.Random, short: bool = False, spelled: bool = False
    ) -> NDArray[np.int32]:
        """Draw a training decision: (2, n), ids and weights as `Encoder.encode` gives them.

        Args:
            rng: The source of randomness.
            short: Leave out the sentence that asks for the label, a third of the tokens, and take
                clear inputs: for the beginning, in which the model learns what labels stand for.
            spelled: Let the option itself come before its label, as a bridge to the label alone.
        """
        item = decision(rng)
        while short and not item.is_clear:
            item = decision(rng)
        prompt = self.prompt(item, rng, 0.25 if short else 0.5)
        asked = prompt.tokens
        if short:
            sentence = len(asked) - asked[::-1].index(self._answer) - 1
            end = len(asked) - asked[::-1].index(self._end[0], 1) - 1
            asked = asked[:sentence] + asked[end - len(asked) :]
        words: list[int] = []
        if spelled:
            option = item.question.options[item.answer].text
            words = self._model.vocab.tokenize(f" {option}\n", False, True)
        tokens = [*asked, *words, prompt.labels[item.answer], *self._end]
        said = [0] * len(asked) + [len(words)] * len(words) + [_LABEL, _END]
        return np.array([tokens, said + [0] * (len(tokens) - len(said))], np.int32)

    def lookup_row(self, rng: random.Random) -> NDArray[np.int32]:
        """Draw lettered options, and then the letter of each: many labels in few tokens."""
        options = rng.sample(pick(rng, *WORDS_OF_OPTIONS), pick(rng, 3, 4, 5, 6, 7, 8))
        lettered = list(zip(options, LETTERS, strict=False))
        lines = [f"{letter}. {option}" for option, letter in lettered]
        return self._listed("\n".join(lines), rng.sample(lettered, len(lettered)))

    def _listed(self, text: str, asked: list[tuple[str, str]]) -> NDArray[np.int32]:
        """Return a row of a message and a reply of words, each with the label that follows it."""
        start = f"<|im_start|>user\n{text}\n<|im_end|>\n<|im_start|>assistant\n"
        tokens = self._model.vocab.tokenize(start, False, True)
        said = [0] * len(tokens)
        for word, label in asked:
            before = self._model.vocab.tokenize(f" {word}\n", False, True)
            after = self._model.vocab.tokenize(f"{label}\n", False, True)
            tokens += before + after
            said += [0] * len(before) + [_LABEL] + [0] * (len(after) - 1)
        return np.array([tokens, said], np.int32)
