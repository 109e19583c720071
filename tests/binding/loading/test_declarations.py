"""Compiled declarations: cached, shared between processes, and optional."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import cffi
import pytest

from llama_cffi.binding.loading.declarations import load_ffi

TEXT = "struct point { int x; double y; }; int abs(int);"


def text() -> str:
    return TEXT


def test_a_class_is_compiled_once_and_then_imported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ffi = load_ffi("point", "d1", text, tmp_path / "new")
    assert ffi.sizeof("struct point") == 16
    (made,) = (tmp_path / "new").glob("*.py")
    assert made.name.startswith("point_d1_cffi")
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700

    def never() -> str:
        raise AssertionError("the text was read although the cache has the class")

    assert load_ffi("point", "d1", never, tmp_path / "new") is ffi
    assert capfd.readouterr() == ("", "")


def test_another_digest_is_another_module(tmp_path: Path) -> None:
    load_ffi("shape", "d1", text, tmp_path)
    other = load_ffi("shape", "d2", lambda: "struct point { char x; };", tmp_path)
    assert other.sizeof("struct point") == 1


def test_a_cache_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    ffi = load_ffi("inline", "d1", text, blocked / "declarations")
    assert ffi.sizeof("struct point") == 16


def test_no_code_runs_from_a_folder_that_others_can_write(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    load_ffi("planted", "d1", text, folder)
    (made,) = folder.glob("*.py")
    made.write_text("raise SystemExit('code of another user ran')")
    folder.chmod(0o777)
    sys.modules.pop(f"llama_cffi.binding._compiled.{made.stem}")
    assert load_ffi("planted", "d1", text, folder).sizeof("struct point") == 16


def test_a_failure_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(cffi.CDefError):
        load_ffi("broken", "d1", lambda: "struct point { unknown_t x; };", tmp_path)
    assert os.listdir(tmp_path) == []
