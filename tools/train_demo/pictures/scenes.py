"""Scenes: which coloured shapes a picture shows, and where."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ..items import pick
from ..split import is_heldout

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross")
#: Names, and the values that a colour of that name is drawn near.
COLOURS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (205, 25, 35), (230, 60, 50)),
    "green": ((0, 128, 0), (0, 190, 0), (50, 160, 75)),
    "blue": ((0, 0, 255), (30, 70, 205), (50, 110, 230)),
    "yellow": ((255, 255, 0), (245, 220, 30), (250, 210, 50)),
    "orange": ((255, 165, 0), (255, 140, 0), (240, 130, 40)),
    "purple": ((128, 0, 128), (120, 50, 170), (140, 40, 190)),
    "black": ((0, 0, 0), (25, 25, 25)),
    "white": ((255, 255, 255), (245, 245, 245)),
}
#: Names, shares, and values. Only the first three are asked for.
BACKGROUNDS: dict[str, tuple[float, tuple[RGB, ...]]] = {
    "white": (0.45, ((255, 255, 255), (250, 250, 250), (244, 244, 244))),
    "black": (0.12, ((0, 0, 0), (16, 16, 16))),
    "grey": (0.18, ((128, 128, 128), (150, 150, 150), (105, 105, 105))),
    "pale": (0.25, ((250, 240, 220), (225, 238, 250), (230, 245, 230), (248, 228, 235))),
}
ASKED_BACKGROUNDS = ("white", "black", "grey")
_NOISE = 10
_CONTRAST = 110.0
_CELLS = tuple((x, y) for x in range(3) for y in range(3))


@dataclass(frozen=True)
class Thing:
    """One coloured shape.

    Attributes:
        shape: One of ``SHAPES``.
        colour: One of ``COLOURS``.
        x: Centre, from 0 (left edge) to 1 (right edge).
        y: Centre, from 0 (top edge) to 1 (bottom edge).
        radius: In parts of the picture's shorter side.
        angle: Rotation in radians.
        rgb: The exact colour.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: RGB

    @property
    def name(self) -> str:
        """For example "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        things: One to four shapes that do not touch.
        background: One of ``BACKGROUNDS``.
        rgb: The exact colour of the background.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
    """

    things: tuple[Thing, ...]
    background: str
    rgb: RGB
    width: int
    height: int

    @property
    def key(self) -> str:
        """The content that decides the split: which coloured shapes, in any arrangement."""
        return "picture:" + ",".join(sorted(thing.name for thing in self.things))


def _near(rng: random.Random, values: tuple[RGB, ...]) -> RGB:
    red, green, blue = (
        min(255, max(0, value + rng.randint(-_NOISE, _NOISE))) for value in pick(rng, *values)
    )
    return red, green, blue


def _size(rng: random.Random) -> tuple[int, int]:
    """Draw width and height; one in four pictures is square, the others up to 4:3 or 3:4."""
    longer = pick(rng, 64, 80, 96, 96, 112, 128, 128, 160, 192, 256, 320)
    shorter = longer if rng.random() < 0.25 else round(longer * pick(rng, 0.75, 0.75, 0.8, 0.9))
    return (longer, shorter) if rng.random() < 0.7 else (shorter, longer)


def _places(rng: random.Random, n: int) -> list[tuple[float, float]]:
    """Draw ``n`` centres: in a jittered 3 x 3 grid, or three times in ten freely."""
    if rng.random() < 0.7:
        return [
            ((x + 0.5) / 3 + rng.uniform(-0.035, 0.035), (y + 0.5) / 3 + rng.uniform(-0.035, 0.035))
            for x, y in rng.sample(_CELLS, n)
        ]
    places: list[tuple[float, float]] = []
    while len(places) < n:
        place = (rng.uniform(0.14, 0.86), rng.uniform(0.14, 0.86))
        if all(math.dist(place, other) > 0.31 for other in places):
            places.append(place)
        elif rng.random() < 0.02:
            places.clear()
    return places


def scene(rng: random.Random, max_things: int = 4) -> Scene:
    """Draw a scene of at most ``max_things`` shapes, of either side of the split."""
    width, height = _size(rng)
    background = rng.choices(list(BACKGROUNDS), [share for share, _ in BACKGROUNDS.values()])[0]
    rgb = _near(rng, BACKGROUNDS[background][1])
    n = rng.choices((1, 2, 3, 4), (0.15, 0.25, 0.3, 0.3))[0]
    things: list[Thing] = []
    alike = rng.random()
    common = rng.uniform(0.118, 0.152)
    for x, y in _places(rng, min(n, max_things)):
        while True:
            shape, colour = pick(rng, *SHAPES), pick(rng, *COLOURS)
            if things and alike < 0.3 and rng.random() < 0.6:
                shape = things[0].shape
            if things and alike > 0.75 and rng.random() < 0.6:
                colour = things[0].colour
            exact = _near(rng, COLOURS[colour])
            if math.dist(exact, rgb) > _CONTRAST:
                break
        radius = common * rng.uniform(0.92, 1.08)
        angle = 0.0 if rng.random() < 0.4 else rng.uniform(-0.2, 0.2)
        things.append(Thing(shape, colour, x, y, radius, angle, exact))
    return Scene(tuple(things), background, rgb, width, height)


def draw_scene(rng: random.Random, heldout: bool, max_things: int = 4) -> Scene:
    """Draw scenes until one lies on the wanted side of the split."""
    while True:
        drawn = scene(rng, max_things)
        if is_heldout(drawn.key) == heldout:
            return drawn
