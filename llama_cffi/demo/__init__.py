"""A very small chat model, included in the package for first steps, tests and `doctor`.

It has two million parameters and was trained from scratch on synthetic English conversations;
`tools/train_demo` in the repository generates the data, trains and exports it. It can add and
subtract numbers below 100, multiply up to 12 x 12, count, repeat and reverse words or digits, work
with dates, recall facts stated earlier, answer commands with a JSON object that ends in
`"done": true`, call tools in the Hermes format, tell tiny stories and make small talk. With
`/think` at the end of a sum it reasons first. It has no knowledge of the world: other questions get
nonsense.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["model_path", "recorded_path"]

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """Return the path of the demo model, a GGUF file (llama architecture, Q8_0, ChatML)."""
    return _HERE / "demo.gguf"


def recorded_path() -> Path:
    """Return the path of the recorded prompt: token ids and their greedy continuation, JSON.

    Every build on every device must generate the same continuation: at each step, the best token
    leads by far more than builds differ.
    """
    return _HERE / "recorded.json"
