"""A very small chat model, included in the package for first steps, tests and `doctor`.

It has two million parameters and was trained from scratch on synthetic English conversations;
`tools/train_demo` in the repository generates the data, trains and exports it. It can add and
subtract numbers below 100, multiply up to 12 x 12, count, repeat and reverse words or digits, work
with dates, recall facts stated earlier, answer commands with a JSON object that ends in
`"done": true`, call tools in the Hermes format, tell tiny stories and make small talk. With
`/think` at the end of a sum it reasons first. It has no knowledge of the world: other questions get
nonsense.

Beside it lies a model for pictures of coloured shapes, with its projector: it says what a picture
shows, counts, and answers questions such as "What is left of the red circle?".
`tools/train_demo/pictures` makes it.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path", "picture_model_path", "picture_projector_path", "recorded_path"]

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """Return the path of the demo model, a GGUF file (llama architecture, Q8_0, ChatML)."""
    return _HERE / "demo.gguf"


def picture_model_path() -> Path:
    """Return the path of the picture model, a GGUF file (llama architecture, Q8_0, ChatML).

    It needs the projector at `picture_projector_path`, and answers questions about pictures only.
    """
    return _HERE / "pictures.gguf"


def picture_projector_path() -> Path:
    """Return the path of the picture model's projector, a GGUF file (`janus_pro`, F16).

    A picture of any size becomes 36 tokens.
    """
    return _HERE / "pictures-mmproj.gguf"


def recorded_path() -> Path:
    """Return the path of the recorded prompt: token ids and their greedy continuation, JSON.

    Every build on every device must generate the same continuation: at each step, the best token
    leads by far more than builds differ.
    """
    return _HERE / "recorded.json"
