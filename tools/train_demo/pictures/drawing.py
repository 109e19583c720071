"""Pictures of scenes, antialiased, and the resizing that libmtmd does before it encodes one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .scenes import Scene, Thing

Pixels = NDArray[np.uint8]
_Real = NDArray[np.float32]
#: What libmtmd fills up a picture of another aspect ratio with.
PAD = 127


def _distance(shape: str, u: _Real, v: _Real, r: float) -> _Real:
    """Compute the signed distance in pixels to the outline of a shape of radius ``r``, at 0, 0."""
    if shape == "circle":
        return np.hypot(u, v) - np.float32(r)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.88 * r)
    if shape == "triangle":
        side = np.abs(u) * np.float32(3**0.5 / 2) - v * np.float32(0.5)
        return np.maximum(v, side) - np.float32(0.6 * r)
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.maximum(np.minimum(a, b) - np.float32(0.34 * r), np.maximum(a, b) - np.float32(r))
    # A star of five points: fold the plane into half a point, a line from its tip inwards.
    fifth = np.float32(2 * np.pi / 5)
    angle = np.arctan2(u, -v)
    folded = np.abs(angle - fifth * np.round(angle / fifth))
    rho = np.hypot(u, v)
    tip, inner = 1.18 * r, 0.48 * r
    dx, dy = inner * np.cos(np.pi / 5) - tip, inner * np.sin(np.pi / 5)
    length = np.hypot(dx, dy)
    along = rho * np.cos(folded) - np.float32(tip)
    return np.asarray((along * dy - rho * np.sin(folded) * dx) / length, np.float32)


def _paint(canvas: _Real, thing: Thing) -> None:
    height, width, _ = canvas.shape
    r = thing.radius * min(width, height)
    cx, cy = thing.x * width, thing.y * height
    reach = 1.3 * r + 1
    left, right = max(0, int(cx - reach)), min(width, int(cx + reach) + 1)
    top, bottom = max(0, int(cy - reach)), min(height, int(cy + reach) + 1)
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - cx))[None]
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - cy))[:, None]
    cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    cover = np.clip(0.5 - _distance(thing.shape, x * cos + y * sin, y * cos - x * sin, r), 0, 1)
    part = canvas[top:bottom, left:right]
    part += cover[..., None] * (np.array(thing.rgb, np.float32) - part)


def draw(scene: Scene) -> Pixels:
    """Draw a scene.

    Returns:
        RGB, (height, width, 3).
    """
    canvas = np.empty((scene.height, scene.width, 3), np.float32)
    canvas[:] = scene.rgb
    for thing in scene.things:
        _paint(canvas, thing)
    return np.asarray(canvas + np.float32(0.5), np.uint8)


@lru_cache(maxsize=512)
def _bicubic(n_in: int, n_out: int) -> _Real:
    """Compute the weights of an antialiased bicubic resize, (n_out, n_in)."""
    scale = n_in / n_out
    support = max(scale, 1.0)
    centres = (np.arange(n_out) + 0.5) * scale
    x = np.abs((np.arange(n_in) + 0.5 - centres[:, None]) / support)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


@lru_cache(maxsize=512)
def _bilinear(n_in: int, n_out: int) -> _Real:
    """Compute the weights of the bilinear resize of older builds, without antialiasing."""
    at = np.arange(n_out) * (n_in - 1) / n_out
    return np.asarray(np.maximum(0, 1 - np.abs(np.arange(n_in) - at[:, None])), np.float32)


def _round(values: _Real) -> _Real:
    return np.clip(np.floor(values + np.float32(0.5)), 0, 255)


def resize(pixels: Pixels, size: int, bilinear: bool = False) -> Pixels:
    """Fit a picture into a square as libmtmd does for this kind of projector.

    Args:
        pixels: RGB, (height, width, 3).
        size: The side of the square.
        bilinear: As builds before 2026 did it; bicubic otherwise.

    Returns:
        RGB, (size, size, 3), the rest of the square filled with ``PAD``.
    """
    height, width, _ = pixels.shape
    if (height, width) == (size, size):
        return pixels
    weights = _bilinear if bilinear else _bicubic
    scale = np.float32(min(np.float32(size) / width, np.float32(size) / height))
    new_width = min(size, int(np.ceil(np.float32(width) * scale)))
    new_height = min(size, int(np.ceil(np.float32(height) * scale)))
    wide = np.einsum("ow,hwc->hoc", weights(width, new_width), pixels, optimize=True)
    tall = np.tensordot(weights(height, new_height), _round(wide), 1)
    fitted = np.full((size, size, 3), PAD, np.uint8)
    left, top = (size - new_width) // 2, (size - new_height) // 2
    fitted[top : top + new_height, left : left + new_width] = _round(tall)
    return fitted
