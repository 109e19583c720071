"""Old, middle, newest and foreign builds: the same tokens, and wrong classes refused.

`nox -s builds` runs the same command over every build on the registry.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD

SCRIPT = Path(__file__).parents[1] / "tools" / "builds.py"


def run(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *args], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.model
def test_the_cli_gives_the_same_token_ids_on_every_build() -> None:
    printed = run("generate", "--builds", ",".join([OLD, MIDDLE, NEWEST, "xllamacpp"]))
    assert printed.count("'42'") + printed.count("42") >= 4
    assert "all as expected" in printed


@pytest.mark.lib
@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST, "xllamacpp"])
def test_every_other_class_forced_is_refused(build: str, tiny_model: Path) -> None:
    printed = run("forced", "--builds", build, "--model", os.fspath(tiny_model))
    assert "31 other classes tried" in printed


@pytest.mark.lib
@pytest.mark.parametrize(
    ("build", "outcome"),
    [(OLD, "refused"), (MIDDLE, "refused"), (NEWEST, "compatible with v0.4.0")],
)
def test_a_hidden_class_is_compatible_or_refused_and_user_mode_works(
    build: str, outcome: str, tiny_model: Path
) -> None:
    printed = run("hidden", "--builds", build, "--model", os.fspath(tiny_model))
    assert outcome in printed
    assert "user mode ok" in printed
