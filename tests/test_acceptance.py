"""The features of other libraries work with the oldest, a middle and the newest build."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD

FOLDER = Path(__file__).parents[1] / "tools" / "acceptance"
CASES = [(OLD, "cpu"), (MIDDLE, "cpu"), (NEWEST, "cpu")]
# With Mesa's software Vulkan driver, if the machine has it.
if ctypes.util.find_library("vulkan") and [*Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json")]:
    CASES.append((NEWEST, "vulkan"))


@pytest.mark.parametrize(("build", "backend"), CASES)
def test_every_feature(build: str, backend: str) -> None:
    env = {**os.environ, "LLAMA_CFFI_BUILD": build, "LLAMA_CFFI_BACKEND": backend}
    env["GGML_VK_VISIBLE_DEVICES"] = "0"  # includes software drivers
    run = subprocess.run(
        [sys.executable, str(FOLDER)], env=env, capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    assert f"({backend})" in run.stdout
    n_features = sum(p.read_text().count("\n@line(") for p in FOLDER.glob("*.py"))
    assert run.stdout.count("\n  [OK] ") == n_features > 50
    assert "FAILED" not in run.stdout
    assert run.stdout.endswith("all passed\n")
