"""Files are complete or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_cffi.atomic_files import replacing


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path, ".tmp") as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        (unfinished,) = tmp_path.glob("*.tmp")
    assert path.read_bytes() == b"new"
    assert not unfinished.exists()


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=repr)
def test_after_an_error_all_is_as_before(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"

    def write() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "file"):
        pass
