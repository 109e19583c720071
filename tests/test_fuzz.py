"""tools/fuzz: a quick run, and what it says of deaths, hangs and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD

ROOT = Path(__file__).parents[1]
ODD = """
import os, signal, sys, time

def cases(seed, count, folder):
    for i in range(count):
        path = folder / f"{i}.bin"
        path.write_bytes(bytes([seed]))
        yield f"number {i}", path

def run(path):
    number = int(path.stem)
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        time.sleep(600)
    if number == 5:
        raise TypeError("not of the API")
    return "fine"
"""
PROGRAM = """
STEPS = 7

def program(seed, steps):
    return f"{steps} steps"

def run(seed, steps):
    assert steps == STEPS
    if seed == 50 * 3 + 1:  # seed 3, the second one
        raise SystemExit(9)
    return "ended"
"""


def fuzz(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.fuzz", *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_deaths_hangs_and_errors_are_reported_with_their_case(tmp_path: Path) -> None:
    module = tmp_path / "odd.py"
    module.write_text(ODD)
    arguments = ("--builds", NEWEST, "--seed", 3, "--keep", tmp_path / "kept", "--seconds", 2)
    done = fuzz(f"{module}=9", *arguments, "--jobs", 1)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[1].split()[:7] == [NEWEST, "odd", "9", "1", "1", "1", "fine"]
    assert f"death (SIGSEGV): {module} 3:2 on {NEWEST}: number 2" in done.stdout
    assert f"hang (SIGABRT): {module} 3:4 on {NEWEST}: number 4" in done.stdout
    assert f"error (TypeError: not of the API): {module} 3:5 on {NEWEST}" in done.stdout
    assert done.stdout.count(f'"{module}", line') >= 3  # where it was
    assert "seeds 3 to 3, 9 cases, 3 failures" in done.stdout
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert kept == {f"odd-3-{i}.bin": b"\3" for i in (2, 4, 5)}
    for number, status in (("3:2", 1), ("3:3", 0)):  # one case again
        again = fuzz(module, "--builds", NEWEST, "--case", number)
        assert again.returncode == status, again.stdout
        assert "1 cases" in again.stdout


def test_programs_have_seeds_and_no_files(tmp_path: Path) -> None:
    module = tmp_path / "programs.py"
    module.write_text(PROGRAM)
    done = fuzz(f"{module}=4", "--builds", NEWEST, "--seed", 3)
    assert done.returncode == 1, done.stderr
    assert "ended 3" in done.stdout
    assert f"death (exit status 9): {module} 3:1 on {NEWEST}: 7 steps" in done.stdout


def test_an_unknown_kind_is_named() -> None:
    done = fuzz("nonsense")
    assert done.returncode == 1
    assert "no such kind" in done.stderr


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_damaged_files_kill_nothing(build: str) -> None:
    done = fuzz("adapters=36", "states=24", "control_vectors=12", "--builds", build, "--jobs", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("72 cases, 0 failures\n")
    assert "loaded" in done.stdout
