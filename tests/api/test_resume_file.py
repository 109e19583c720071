"""ResumeFile: what is written can be read, whoever else writes; see test_map.py for the rest."""

from __future__ import annotations

from pathlib import Path

from llama_cffi.api.resume_file import ResumeFile

HEAD = {"model": "m #1", "schema": "#2", "n_rows": 9, "inputs": "#3"}


def test_two_runs_can_use_one_file(tmp_path: Path) -> None:
    first, second = (ResumeFile(tmp_path / "r", HEAD, len) for _ in range(2))
    first.add(0, "a" * 20_000)
    second.add(1, "b\n\u2028\ud800")
    first.add(2, "c")
    second.add(2, "d")
    for file in (first, second):
        file.close()
        file.close()
    third = ResumeFile(tmp_path / "r", HEAD, len)
    third.close()
    assert third.answers == {0: "a" * 20_000, 1: "b\n\u2028\ud800", 2: "c"}


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.touch()
    file = ResumeFile(path, HEAD, len)
    file.add(8, "x")
    file.close()
    assert len(path.read_bytes().splitlines()) == 2
