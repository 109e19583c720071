"""Runs the tests in multimodal/, in a process whose llama.cpp has libmtmd."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.network
def test_with_a_library_that_has_libmtmd(foreign_library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "multimodal")],
        cwd=HERE.parent,
        env={**os.environ, "LLAMA_CFFI_TEST_MTMD": str(foreign_library)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4_000:]
    assert " passed" in done.stdout
