"""Pictures and sounds: valid files of every kind, then damaged; no build of llama.cpp is used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from support.media_files import mutated, valid_media

from llama_cffi import ValidationError
from llama_cffi.media import Audio, Image, MediaPolicy, load_audio, load_image

__all__ = ["cases", "run"]

POLICY = MediaPolicy(urls=False, max_pixels=2_000_000)


def cases(seed: int, count: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield *count* damaged pictures and sounds."""
    rng = random.Random(seed)
    for i in range(count):
        name, data = rng.choice(list(valid_media().items()))
        path = folder / f"{i}-{name}"
        path.write_bytes(mutated(rng, data))
        yield f"damaged {name}", path


def run(path: Path) -> str:
    """Load a file, within the limits or not at all."""
    try:
        found: Image | Audio
        if path.suffix == ".wav":
            found = load_audio(path, policy=POLICY)
            found = found.resampled(16_000)
        else:
            found = load_image(path, POLICY)
            assert found.width * found.height <= POLICY.max_pixels
    except ValidationError:
        return "ValidationError"
    assert len(found.digest) == 32
    return "loaded"
