"""Sounds at another sample rate."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["resample"]

_ZEROS = 32  # of the sinc on each side; with this window, aliasing stays below -80 dB
_BETA = 9.0  # of the Kaiser window
_PASS = 0.92  # the part of the band that passes unchanged
_BLOCK = 2**21  # samples around outputs at a time


def resample(samples: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    """Return a sound at *new_rate*, by soxr if it is installed, else by a windowed sinc.

    Shapes: (n,) float32 to (ceil(n * new_rate / rate),) float32.

    Source: Julius O. Smith, https://ccrma.stanford.edu/~jos/resample/
    """
    try:
        soxr: Any = import_module("soxr")
    except ImportError:
        return windowed_sinc(samples, rate, new_rate)
    found: NDArray[np.float32] = soxr.resample(samples, rate, new_rate)
    return found


def windowed_sinc(samples: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    """Return a sound at *new_rate*; each output is a weighted sum of the samples around it.

    Shapes: see `resample`.
    """
    import numpy as np

    divisor = math.gcd(rate, new_rate)
    up, down = new_rate // divisor, rate // divisor
    cutoff = _PASS * min(1.0, new_rate / rate)  # of the sampled band
    half = math.ceil(_ZEROS / cutoff)
    n = -(-len(samples) * up // down)
    padded = np.concatenate([np.zeros(half, np.float32), samples, np.zeros(half + 1, np.float32)])
    step = max(1, _BLOCK // (2 * half))
    # One filter for each phase, the place of an output between two samples.
    filters = np.empty((up, 2 * half), np.float32)
    for start in range(0, up, step):
        phases = np.arange(start, min(start + step, up))
        filters[start : start + step] = _filters(phases / up, half, cutoff)
    found = np.empty(n, np.float32)
    all_around = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)[1:]
    for start in range(0, n, step):
        places = np.arange(start, min(start + step, n)) * down
        at, phase = places // up, places % up
        found[start : start + step] = np.einsum("ij,ij->i", all_around[at], filters[phase])
    return found


def _filters(places: NDArray[np.float64], half: int, cutoff: float) -> NDArray[np.float64]:
    """Return the weights of the samples around places between 0 and 1: (n, 2 * half)."""
    import numpy as np

    distance = np.arange(-half + 1, half + 1) - places[:, None]
    window = np.i0(_BETA * np.sqrt(np.clip(1 - (distance / half) ** 2, 0, None))) / np.i0(_BETA)
    found: NDArray[np.float64] = np.sinc(cutoff * distance) * window
    found /= found.sum(axis=1, keepdims=True)
    return found
