"""Seeded batches: each picture stands once, and several conversations about it see only it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..conversations import SYSTEM_PROMPTS
from ..tokenizer import token_id
from .drawing import draw, resize
from .model import VisionConfig
from .questions import KINDS, Question, ask
from .scenes import COLOURS, SHAPES, Scene, draw_scene

#: The share of each kind among the questions.
SHARES = {
    "colour": 0.4,
    "shape": 0.4,
    "count": 2.2,
    "exists": 0.9,
    "left": 1.0,
    "right": 1.0,
    "above": 1.0,
    "below": 1.0,
    "where": 0.5,
    "describe": 3.0,
    "background": 0.2,
}
N_TOKENS = 192
IGNORED = -1


@dataclass(frozen=True)
class Batch:
    """One batch; see ``PictureModel.hidden`` for the shapes.

    Attributes:
        pictures: RGB, uint8, (batch, image_size, image_size, 3).
        tokens: Ids, (batch, n_tokens).
        starts: First position of the picture, (batch,).
        positions: Position of every token in its conversation, (batch, n_tokens).
        mask: Which tokens see which, (batch, n_tokens, n_tokens).
        targets: The id that follows where the assistant speaks, else ``IGNORED``.
        weights: The weight of each target, 0 where there is none.
        things: Per patch, what has its centre there, see ``centres``; (batch, n_patches, 4).
    """

    pictures: Tensor
    tokens: Tensor
    starts: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor
    things: Tensor


def centres(scene: Scene, config: VisionConfig) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Say for every patch which shape has its centre there.

    Returns:
        (n_patches, 4): shape, colour, and the third of the picture's width and height in which it
        stands, each from 1; 0 where no shape has its centre.
    """
    n = config.image_size // config.patch_size
    longer = max(scene.width, scene.height)
    found = np.zeros((n * n, 4), np.int64)
    for thing in scene.things:
        x = 0.5 + (thing.x - 0.5) * scene.width / longer
        y = 0.5 + (thing.y - 0.5) * scene.height / longer
        at = min(int(y * n), n - 1) * n + min(int(x * n), n - 1)
        shape, colour = SHAPES.index(thing.shape), list(COLOURS).index(thing.colour)
        found[at] = 1 + np.array([shape, colour, int(thing.x * 3), int(thing.y * 3)])
    return found


def picture(
    scene: Scene, rng: random.Random, config: VisionConfig
) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Draw a scene as the encoder sees it; one in eight is resized as older builds do."""
    return resize(draw(scene), config.image_size, bilinear=rng.random() < 0.12)


class Maker:
    """Makes batches of training pictures and their questions."""

    def __init__(self, tokenizer: Tokenizer, config: VisionConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.im_end = token_id(tokenizer, "<|im_end|>")
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Encode a text that occurs often."""
        if text not in self._cache:
            self._cache[text] = self.tokenizer.encode(text).ids
        return self._cache[text]

    def prefix(self, system: str | None) -> list[int]:
        """Encode what stands before a picture."""
        opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        return self.encode(f"{opening}<|im_start|>user\n")

    def turn(self, question: Question) -> tuple[list[int], list[int]]:
        """Encode a question behind a picture, and its answer."""
        asked = self.encode(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
        return asked, [*self.encode(question.answer), self.im_end]

    def batch(self, seed: str, n: int, heldout: bool = False, kind: str | None = None) -> Batch:
        """Make a batch, always the same for the same arguments.

        Args:
            seed: Of this batch.
            n: Number of pictures.
            heldout: Take scenes that are held out.
            kind: Ask this kind only, one question per picture; else a mixture.
        """
        rng, patches = random.Random(seed), self.config.n_patches
        tokens = np.zeros((n, N_TOKENS), np.int64)
        positions, owner = np.zeros_like(tokens), np.full_like(tokens, -1)
        targets, weights = np.full_like(tokens, IGNORED), np.zeros(tokens.shape, np.float32)
        starts, pictures, things = [], [], []
        for row in range(n):
            drawn, questions = self._questions(rng, heldout, kind)
            pictures.append(picture(drawn, rng, self.config))
            things.append(centres(drawn, self.config))
            prefix = self.prefix(rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.3 else None)
            starts.append(len(prefix))
            at = begin = len(prefix) + patches
            tokens[row, : len(prefix)] = prefix
            positions[row, :at], owner[row, :at] = np.arange(at), 0
            position = begin
            for number, question in enumerate(questions, 1):
                asked, answer = self.turn(question)
                follows = number > 1 and rng.random() < 0.15
                if follows:  # a further turn of the conversation before it
                    asked = [*self.encode("\n<|im_start|>user\n"), *asked]
                else:
                    position, conversation = begin, number
                ids = asked + answer
                end = at + len(ids)
                if end > N_TOKENS:
                    break
                tokens[row, at:end], owner[row, at:end] = ids, conversation
                positions[row, at:end] = np.arange(position, position + len(ids))
                said = slice(at + len(asked) - 1, end - 1)
                targets[row, said], weights[row, said] = answer, len(answer) ** -0.5
                position += len(ids)
                at = end
        order = np.tri(N_TOKENS, dtype=bool)
        mask = order & ((owner[:, None] == 0) | (owner[:, None] == owner[:, :, None]))
        arrays = (
            np.stack(pictures),
            tokens,
            np.array(starts),
            positions,
            mask,
            targets,
            weights / weights.sum(),
            np.stack(things),
        )
        return Batch(*map(torch.from_numpy, arrays))

    @staticmethod
    def _questions(
        rng: random.Random, heldout: bool, kind: str | None
    ) -> tuple[Scene, list[Question]]:
        while True:
            drawn = draw_scene(rng, heldout)
            kinds = [kind] if kind else rng.choices(list(SHARES), list(SHARES.values()), k=9)
            found = [ask(each, drawn, rng) for each in kinds]
            questions = list({q.text: q for q in found if q}.values())
            if questions:
                return drawn, questions


@torch.no_grad()
def heldout_accuracy(hidden: object, maker: Maker, n: int, seed: int) -> dict[str, float]:
    """Measure, per kind, how many held-out answers greedy decoding would get exactly right."""
    found = {}
    for kind in KINDS:
        right = 0
        for start in range(0, n, 16):
            batch = maker.batch(f"{seed}:{kind}:{start}", 16, heldout=True, kind=kind)
            best = hidden(batch)  # type: ignore[operator]
            right += int(((best == batch.targets) | (batch.targets == IGNORED)).all(1).sum())
        found[kind] = right / n
    return found
