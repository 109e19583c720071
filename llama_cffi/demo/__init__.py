"""A very small chat model that comes with the package, for first steps, tests and ``doctor``.

It has two million parameters and was really trained, from scratch, on synthetic English
conversations (`tools/train_demo` in the repository makes the data, trains and exports it). It can
add and subtract numbers below 100, multiply up to 12 x 12, count, repeat and reverse words or
digits, work with dates, look up facts that were stated before, answer commands with a JSON object
that ends in ``"done": true``, call tools in the Hermes format, tell a tiny story and make small
talk; asked with ``/think`` at the end it shows a thought before a sum. It knows nothing about the
world: everything else is answered with nonsense.
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

    Every build on every device has to give the same continuation; the lead of the chosen token at
    each step is far larger than the differences between builds.
    """
    return _HERE / "recorded.json"
