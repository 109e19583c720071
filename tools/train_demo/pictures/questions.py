"""Questions about a scene, and their answers. What a scene leaves open is not asked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from ..items import pick
from .scenes import ASKED_BACKGROUNDS, COLOURS, SHAPES, Scene, Thing

# Centres nearer than this lie in one column or row; farther apart than that, in two.
_SAME, _APART = 0.1, 0.2
_SIDES: dict[str, tuple[str, int, int]] = {
    "left": ("left of", -1, 0),
    "right": ("right of", 1, 0),
    "above": ("above", 0, -1),
    "below": ("below", 0, 1),
}
_MOST_DESCRIBED = 3
_COUNTS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class Question:
    """One question about a picture, with the answer that counts.

    Attributes:
        kind: One of ``KINDS``.
        text: What the user asks.
        answer: The whole answer.
    """

    kind: str
    text: str
    answer: str


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _alone(scene: Scene, thing: Thing) -> str | None:
    """Name a thing so that only it is meant, as briefly as possible; None if that cannot be."""
    same = [other for other in scene.things if other.shape == thing.shape]
    if len(same) == 1:
        return thing.shape
    return None if sum(other.name == thing.name for other in same) > 1 else thing.name


def _refer(scene: Scene, rng: random.Random, long: float) -> tuple[Thing, str] | None:
    thing = pick(rng, *scene.things)
    name = _alone(scene, thing)
    if name is not None and rng.random() < long:
        name = thing.name
    return None if name is None else (thing, name)


def _colour(scene: Scene, rng: random.Random) -> Question | None:
    thing = pick(rng, *scene.things)
    if _alone(scene, thing) != thing.shape:
        return None
    word = pick(rng, "colour", "colour", "color")
    text = pick(rng, f"What {word} is the {thing.shape}?", f"Which {word} is the {thing.shape}?")
    return Question("colour", text, _capital(f"{thing.colour}."))


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    thing = pick(rng, *scene.things)
    if sum(other.colour == thing.colour for other in scene.things) > 1:
        return None
    text = pick(rng, f"What shape is {thing.colour}?", f"Which shape is {thing.colour}?")
    return Question("shape", text, f"The {thing.shape}.")


def _count(scene: Scene, rng: random.Random) -> Question | None:
    if rng.random() < 0.4:
        n, things = len(scene.things), "shapes"
    else:
        shape = pick(rng, *SHAPES, *(3 * [thing.shape for thing in scene.things]))
        n = sum(thing.shape == shape for thing in scene.things)
        things = _plural(shape)
    text = pick(
        rng,
        f"How many {things} are there?",
        f"How many {things} are in the picture?",
        f"How many {things} do you see?",
    )
    return Question("count", text, _COUNTS[n])


def _exists(scene: Scene, rng: random.Random) -> Question | None:
    names = {thing.name for thing in scene.things}
    name, absent = pick(rng, *scene.things).name, rng.random() < 0.5
    while absent and name in names:
        colour, shape = name.split()
        if rng.random() < 0.5:  # a colour and a shape of the picture, put together wrongly
            shape = pick(rng, *scene.things).shape
        elif rng.random() < 0.5:
            shape = pick(rng, *SHAPES)
        else:
            colour = pick(rng, *COLOURS)
        name = f"{colour} {shape}"
    name_with_article = _article(name)
    text = pick(
        rng,
        f"Is there {name_with_article}?",
        f"Is there {name_with_article}?",
        f"Is there {name_with_article} in the picture?",
        f"Do you see {name_with_article}?",
    )
    return Question("exists", text, "Yes." if name in names else "No.")


def _side(kind: str, scene: Scene, rng: random.Random) -> Question | None:
    words, dx, dy = _SIDES[kind]
    found = _refer(scene, rng, 0.6)
    if found is None:
        return None
    thing, name = found
    steps = [
        ((other.x - thing.x) * dx + (other.y - thing.y) * dy, other)
        for other in scene.things
        if other is not thing
    ]
    there = [other for step, other in steps if step > _APART]
    if len(there) > 1 or any(_SAME < step <= _APART for step, _ in steps):
        return None
    if not there and rng.random() < 0.85:
        return None
    text = f"What is {words} the {name}?"
    if dx and rng.random() < 0.3:
        text = f"What is to the {words} the {name}?"
    return Question(kind, text, f"The {there[0].name}." if there else "Nothing.")


def _left(scene: Scene, rng: random.Random) -> Question | None:
    return _side("left", scene, rng)


def _right(scene: Scene, rng: random.Random) -> Question | None:
    return _side("right", scene, rng)


def _above(scene: Scene, rng: random.Random) -> Question | None:
    return _side("above", scene, rng)


def _below(scene: Scene, rng: random.Random) -> Question | None:
    return _side("below", scene, rng)


def _where(scene: Scene, rng: random.Random) -> Question | None:
    found = _refer(scene, rng, 0.4)
    if found is None:
        return None
    thing, name = found
    words = []
    for value, low, high in ((thing.y, "top", "bottom"), (thing.x, "left", "right")):
        if value < 0.25 or value > 0.75:
            words.append(low if value < 0.25 else high)
        elif not 0.41 < value < 0.59:
            return None
    return Question("where", f"Where is the {name}?", _capital(" ".join(words) or "middle") + ".")


def _describe(scene: Scene, rng: random.Random) -> Question | None:
    """Name up to three things from left to right, those in one column from top to bottom."""
    if len(scene.things) > _MOST_DESCRIBED:
        return None
    for i, thing in enumerate(scene.things):
        for other in scene.things[i + 1 :]:
            dx, dy = abs(thing.x - other.x), abs(thing.y - other.y)
            if _SAME < dx < _APART or (dx <= _SAME and dy < _APART):
                return None
    ordered = sorted(scene.things, key=lambda thing: thing.x)
    column, rank = 0, {id(ordered[0]): 0}
    for before, thing in itertools.pairwise(ordered):
        column += thing.x - before.x > _SAME
        rank[id(thing)] = column
    ordered.sort(key=lambda thing: (rank[id(thing)], thing.y))
    names = [_article(thing.name) for thing in ordered]
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    asked = pick(
        rng,
        "What is in the picture?",
        "What is in the picture?",
        "What is in this picture?",
        "What do you see?",
        "Describe the picture.",
    )
    return Question("describe", asked, _capital(text) + ".")


def _background(scene: Scene, rng: random.Random) -> Question | None:
    if scene.background not in ASKED_BACKGROUNDS:
        return None
    word = pick(rng, "colour", "colour", "color")
    text = f"What {word} is the background?"
    return Question("background", text, _capital(f"{scene.background}."))


KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exists": _exists,
    "left": _left,
    "right": _right,
    "above": _above,
    "below": _below,
    "where": _where,
    "describe": _describe,
    "background": _background,
}


def ask(kind: str, scene: Scene, rng: random.Random, tries: int = 4) -> Question | None:
    """Ask one question of a kind, or return None where the scene has no clear answer to it."""
    for _ in range(tries):
        question = KINDS[kind](scene, rng)
        if question is not None:
            return question
    return None
