from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_cffi.errors import FetchError
from llama_cffi.libs_fetch import archive
from llama_cffi.libs_fetch.archive import extract, safe_name


def everything(paths: list[str]) -> Callable[[str], str | None]:
    return lambda path: path


def unpack(tmp_path: Path, body: bytes) -> Path:
    packed, target = tmp_path / "a.bin", tmp_path / "target"
    packed.write_bytes(body)
    target.mkdir(exist_ok=True)
    extract(packed, target, everything)
    return target


BAD_NAMES = ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil", "..", "a/.."]


@pytest.mark.parametrize("kind", ["tgz", "zipped"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_path_that_leaves_the_folder_is_refused(
    tmp_path: Path, make: Any, kind: str, name: str
) -> None:
    body = getattr(make, kind)({"good": b"1", name: b"2"})
    if kind == "zipped" and os.sep == "/" and "\\" in name:
        name = name.replace("\\", "/")  # zipfile normalises it
    with pytest.raises(FetchError, match=r"refused: path .* Nothing was installed"):
        unpack(tmp_path, body)
    assert list((tmp_path / "target").iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", ["tgz", "zipped"])
@pytest.mark.parametrize("target", ["../../evil", "/etc/passwd", "..", "a/../../../x", "nowhere"])
def test_a_link_that_leaves_the_archive_is_refused(
    tmp_path: Path, make: Any, kind: str, target: str
) -> None:
    body = getattr(make, kind)({"lib/good": b"1", "lib/link": target})
    with pytest.raises(FetchError, match="refused: link"):
        unpack(tmp_path, body)
    assert not (tmp_path / "target" / "lib" / "link").exists()


def test_a_file_is_never_written_through_a_link(tmp_path: Path, make: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(FetchError, match="refused"):
        unpack(tmp_path, make.tgz({"dir": str(outside), "dir/evil": b"1"}))
    with pytest.raises(FetchError, match="refused"):
        unpack(tmp_path, make.tgz({"dir": "../outside", "dir/evil": b"1"}))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("kind", ["tgz", "zipped"])
def test_links_inside_are_followed_to_their_file(tmp_path: Path, make: Any, kind: str) -> None:
    members = {
        "b/libllama.so": "libllama.so.0",
        "b/libllama.so.0": "libllama.so.0.0.1",
        "b/libllama.so.0.0.1": b"library",
        "c/other": "../b/libllama.so",
    }
    target = unpack(tmp_path, getattr(make, kind)(members))
    for name in members:
        assert (target / name).read_bytes() == b"library"
        assert (target / name).resolve().is_relative_to(target.resolve())


def test_a_cycle_of_links_is_refused(tmp_path: Path, make: Any) -> None:
    with pytest.raises(FetchError, match="leads to no file"):
        unpack(tmp_path, make.tgz({"a": "b", "b": "a", "c": b"1"}))


def test_a_link_to_a_file_that_is_left_out_is_refused(tmp_path: Path, make: Any) -> None:
    (tmp_path / "x").write_bytes(make.tgz({"a": b"1", "b": "a"}))
    with pytest.raises(FetchError, match="left out"):
        extract(tmp_path / "x", tmp_path, lambda _: lambda path: "b" if path == "b" else None)


def test_hard_links_and_special_files(tmp_path: Path) -> None:
    def with_type(kind: bytes, target: str = "") -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            first = tarfile.TarInfo("file")
            first.size = 3
            tar.addfile(first, io.BytesIO(b"abc"))
            info = tarfile.TarInfo("other")
            info.type, info.linkname = kind, target
            tar.addfile(info)
        return out.getvalue()

    assert (unpack(tmp_path, with_type(tarfile.LNKTYPE, "file")) / "other").read_bytes() == b"abc"
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
        with pytest.raises(FetchError, match="special file"):
            unpack(tmp_path, with_type(kind))
    with pytest.raises(FetchError, match="leaves the archive"):
        unpack(tmp_path, with_type(tarfile.LNKTYPE, "../../etc/passwd"))


def test_the_same_path_twice_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("file"), io.BytesIO(b""))
    with pytest.raises(FetchError, match="twice"):
        unpack(tmp_path, out.getvalue())


@pytest.mark.parametrize("kind", ["tgz", "zipped"])
def test_a_damaged_archive_is_named(tmp_path: Path, make: Any, kind: str) -> None:
    body = getattr(make, kind)({"file": os.urandom(100_000)})
    for damaged in (b"", b"hello", body[:50_000], body[:-2000]):
        with pytest.raises(FetchError, match="is damaged"):
            unpack(tmp_path, damaged)


def test_a_decompression_bomb_is_stopped(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(FetchError, match="unpacks to 5,000 bytes, more than 1,000"):
        unpack(tmp_path, make.tgz({"zeros": bytes(5000)}))


@given(name=st.text(st.sampled_from("ab./\\:\0C~"), max_size=12))
def test_safe_name_never_leaves(name: str) -> None:
    try:
        safe = safe_name(name)
    except ValueError:
        return
    joined = os.path.normpath(os.path.join("/root/in", safe))
    assert joined == "/root/in" or joined.startswith("/root/in/")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.dictionaries(
        st.text(st.sampled_from("ab./"), min_size=1, max_size=8),
        st.one_of(st.binary(max_size=4), st.text(st.sampled_from("ab./"), min_size=1, max_size=8)),
        max_size=5,
    )
)
def test_nothing_is_written_outside_the_target_folder(
    tmp_path_factory: pytest.TempPathFactory, make: Any, members: dict[str, Any]
) -> None:
    room = tmp_path_factory.mktemp("room")
    (room / "canary").write_text("alive")
    try:
        target = unpack(room, make.tgz(members))
    except FetchError:
        target = room / "target"
    assert sorted(p.name for p in room.iterdir()) == ["a.bin", "canary", "target"]
    for path in target.rglob("*"):
        assert path.resolve().is_relative_to(target.resolve())
