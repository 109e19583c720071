"""Every promise of Polaris Core and cyllama, kept on the oldest, a middle and the newest build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MIDDLE, NEWEST, OLD

SCRIPT = Path(__file__).parents[1] / "tools" / "acceptance.py"


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_every_line(build: str) -> None:
    env = {**os.environ, "LLAMA_CFFI_BUILD": build}
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    assert run.stdout.count("[OK] ") >= 18
    assert "FAILED" not in run.stdout
    assert run.stdout.endswith("all kept\n")
