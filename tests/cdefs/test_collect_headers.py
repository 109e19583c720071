"""The stored declarations compared with upstream's headers, fetched from the npm registry.

One build by default; `CDEFS_CLASSES=all` takes every known build (1 GB of downloads), and
`CDEFS_HEADERS=ROOT` reads what `tools/collect_headers.py ROOT` has collected.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from llama_cffi import cdefs
from llama_cffi.cdefs import audit, class_files, generator
from llama_cffi.errors import ValidationError

BUILDS = tuple(tag for c in cdefs.all_classes() for tag in c.builds)
SOME = BUILDS if os.environ.get("CDEFS_CLASSES") == "all" else ("v0.5.0",)
HEADERS = os.environ.get("CDEFS_HEADERS")

pytestmark = pytest.mark.network


def load_tool() -> Any:
    path = Path(__file__).parents[2] / "tools" / "collect_headers.py"
    spec = importlib.util.spec_from_file_location("collect_headers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(shared_cache: Path) -> Path:
    """One folder of headers per tag, kept in the tests' cache."""
    if HEADERS:
        return Path(HEADERS)
    folder = shared_cache / "headers"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        assert load_tool().main([str(folder), *SOME]) == 0
    return folder


@pytest.mark.parametrize("tag", SOME)
def test_regenerating_a_class_changes_nothing(root, tag):
    (name,) = [c.name for c in cdefs.all_classes() if tag in c.builds]
    assert generator.generate(root / tag) == cdefs.declarations(name)


@pytest.mark.parametrize("tag", SOME)
def test_the_compiler_sees_the_same_layouts(root, tag):
    cc = audit.compiler()
    if cc is None:
        assert not os.environ.get("CI"), "no C compiler on this machine"
        pytest.skip("no C compiler on this machine")
    result = audit.audit(root / tag, generator.generate(root / tag), cc)
    assert result.problems == []
    assert result.checks > 1000


def test_adding_a_known_build_again_changes_nothing(root, monkeypatch, tmp_path):
    written: list[Any] = []
    monkeypatch.setattr(class_files, "write", lambda classes, **_: written.extend(classes))
    monkeypatch.setattr(class_files, "known_texts", lambda _table: dict(known))
    known = {name: cdefs.declarations(name) for name in ("b10361", "v0.5.0", "b11549")}
    added = class_files.add("v0.5.0", root / "v0.5.0", after="b10361")
    assert added == cdefs.abi_class("v0.5.0")
    assert [(c.name, text) for c, text in written] == list(known.items())


def test_a_new_tag_with_known_declarations_joins_their_class(root, monkeypatch):
    known = {"v0.5.0": cdefs.declarations("v0.5.0")}
    monkeypatch.setattr(class_files, "write", lambda classes, **_: None)
    monkeypatch.setattr(class_files, "known_texts", lambda _table: dict(known))
    assert class_files.add("v0.5.1", root / "v0.5.0").builds == ("v0.5.0", "v0.5.1")


def test_adding_after_an_unknown_tag(root):
    with pytest.raises(ValidationError, match="no build 'b1' in the table; the newest is b11549"):
        class_files.add("b2", root / "v0.5.0", after="b1")


def test_declarations_with_long_are_refused(root, tmp_path, monkeypatch):
    headers = tmp_path / "headers"
    headers.mkdir()
    for path in (root / "v0.5.0").glob("*.h"):
        (headers / path.name).write_bytes(path.read_bytes())
    text = (headers / "gguf.h").read_text()
    assert "bool no_alloc;" in text
    (headers / "gguf.h").write_text(text.replace("bool no_alloc;", "long long a; long no_alloc;"))
    monkeypatch.setattr(class_files, "known_texts", lambda _table: {})
    with pytest.raises(ValidationError, match="b2 uses `long`, whose size differs"):
        class_files.add("b2", headers)


def test_check_reports_what_is_missing(root, tmp_path):
    with pytest.raises(ValidationError, match=r"missing \['b10068'.*not in the table.*\[\]"):
        class_files.check(tmp_path)
    assert class_files.main(["check", str(tmp_path)]) == 1
