"""A sample of tools/fuzz/projectors.py: files changed at random end no process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_mutated_projectors_kill_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.fuzz", "projectors=150", "--builds", "of-this-process"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("150 cases, 0 failures\n")
    assert "encoded" in done.stdout
    assert "ModelLoadError" in done.stdout
