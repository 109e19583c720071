"""Draw ``docs/images/shapes.png``: ``python -m tools.train_demo.pictures.sample [PNG]``.

Needs Pillow. The combination of shapes is held out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from ..split import is_heldout
from .drawing import draw
from .scenes import Scene, Thing

SAMPLE = Scene(
    things=(
        Thing("triangle", "green", 0.8, 0.22, 0.149, 0.0, (40, 160, 80)),
        Thing("square", "blue", 0.2, 0.8, 0.145, -0.08, (45, 100, 215)),
        Thing("circle", "red", 0.8, 0.8, 0.145, 0.0, (222, 45, 45)),
    ),
    background="white",
    rgb=(250, 250, 250),
    width=320,
    height=240,
)


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[3] / "docs" / "images" / "shapes.png"
    parser.add_argument("output", type=Path, nargs="?", default=default)
    args = parser.parse_args()
    assert is_heldout(SAMPLE.key), SAMPLE.key
    Image.fromarray(draw(SAMPLE)).save(args.output, optimize=True)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
