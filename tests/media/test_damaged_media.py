"""Damaged pictures and sounds; python -m tools.fuzz media_files=20000 tries many more."""

from __future__ import annotations

import random
import warnings

import pytest
from support.media_files import mutated, valid_media

from llama_cffi import ValidationError
from llama_cffi.media import MediaPolicy, load_audio, load_image


@pytest.mark.parametrize("name", valid_media())
def test_damaged_media_load_or_are_refused(name: str) -> None:
    rng, data = random.Random(name), valid_media()[name]
    policy = MediaPolicy(max_pixels=1_000_000)
    load = load_audio if name.endswith(".wav") else load_image
    n_refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about EXIF data and palettes
        load(data, policy=policy)
        for _ in range(50):
            try:
                load(mutated(rng, data), policy=policy)
            except ValidationError:
                n_refused += 1
    assert n_refused
