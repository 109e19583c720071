"""Compiled declarations: cached, shared between processes, and optional."""

from __future__ import annotations

import marshal
import os
import stat
from pathlib import Path

import cffi
import pytest

from llama_cffi.binding.loading import cache_files, declarations
from llama_cffi.binding.loading.declarations import load_ffi

TEXT = "struct point { int x; double y; }; int abs(int);"


def text() -> str:
    return TEXT


def test_a_class_is_compiled_once_and_then_imported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ffi = load_ffi("point", "d1", text, tmp_path / "new")
    assert ffi.sizeof("struct point") == 16
    (made,) = (tmp_path / "new").iterdir()
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
    (made,) = folder.iterdir()
    planted = compile("raise SystemExit('code of another user ran')", "planted", "exec")
    for mode in (0o777, 0o770, 0o702):
        folder.chmod(0o700)
        cache_files.write(made, marshal.dumps(planted))
        folder.chmod(mode)
        declarations._loaded.clear()
        assert load_ffi("planted", "d1", text, folder).sizeof("struct point") == 16


def damaged(content: bytes) -> list[bytes]:
    flipped = [
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        for at in range(0, len(content), 19)
    ]
    cut = [content[:at] for at in range(0, len(content), 19)]
    return [*flipped, *cut, b"", b"\0" * 4096, b"def", os.urandom(1000), content + b"x"]


def test_a_damaged_cache_file_is_made_anew(tmp_path: Path) -> None:
    load_ffi("point", "d1", text, tmp_path)
    (made,) = tmp_path.iterdir()
    content = made.read_bytes()
    n_read = 0

    def counted() -> str:
        nonlocal n_read
        n_read += 1
        return TEXT

    wrong = damaged(content)
    for n, data in enumerate(wrong):
        made.write_bytes(data)
        declarations._loaded.clear()
        assert load_ffi("point", "d1", counted, tmp_path).sizeof("struct point") == 16
        assert (n_read, made.read_bytes() == content) == (n + 1, True)
    assert len(wrong) > 20


def test_without_a_cache_the_declarations_are_the_same_kind(tmp_path: Path) -> None:
    """`FFI` objects that are made in memory have all that loading a library needs."""
    cached = load_ffi("kind", "d1", text, tmp_path / "new")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "declarations", Path("/proc/nowhere/declarations")):
        ffi = load_ffi("kind", "d1", text, folder)
        assert type(ffi) is type(cached)
        assert issubclass(ffi.error, Exception)
        assert ffi.dlopen(None).abs(-3) == 3


def test_a_failure_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(cffi.CDefError):
        load_ffi("broken", "d1", lambda: "struct point { unknown_t x; };", tmp_path)
    assert os.listdir(tmp_path) == []
