"""Compare libmtmd with PyTorch: ``python -m tools.train_demo.pictures.compare --work DIR``.

The embeddings of held-out pictures of many sizes, as libmtmd computes them from an F32 and an F16
export, against those of the trained encoder; the resizing is compared with it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from llama_cffi.binding import MediaChunk, Model, Projector

from .drawing import draw, resize
from .export import export, load_checkpoint
from .scenes import draw_scene

#: Largest difference, in standard deviations of the embeddings. libmtmd computes the GELU and the
#: keys and values of the attention in F16, in an F32 export too.
ALLOWED = 1e-2


def main() -> int:
    """Parse the command line, compare, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the folder of train.py")
    parser.add_argument("-n", type=int, default=100, help="pictures")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    trained = load_checkpoint(args.work / "model.pt")
    size, worst = trained.vision.config.image_size, 0.0
    rng = random.Random(args.seed)
    pictures = [draw(draw_scene(rng, heldout=True)) for _ in range(args.n)]
    with torch.no_grad():
        fitted = np.stack([resize(picture, size) for picture in pictures])
        expected = trained.vision(torch.from_numpy(fitted)).numpy()
    for exact in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            text, path = export(trained, Path(folder), exact)
            with (
                Model(text, n_gpu_layers=0) as model,
                Projector(model, path, use_gpu=False) as mtmd,
            ):
                largest = 0.0
                for picture, wanted in zip(pictures, expected, strict=True):
                    (chunk,) = mtmd.image_chunks(picture)
                    assert isinstance(chunk, MediaChunk)
                    found = mtmd.encode(chunk)
                    largest = max(largest, float(np.abs(found - wanted).max()))
        print(
            f"{'F32' if exact else 'F16'}: largest difference {largest:.1e} of {args.n} pictures "
            f"(standard deviation of the embeddings {expected.std():.2f})"
        )
        worst = max(worst, largest / float(expected.std()))
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
