"""Each promise of the server has a test, and docs/server-behaviour.md says which."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from server_behaviour import PAGE, marked, names, page  # noqa: E402
from support.server_behaviours import UNTESTED  # noqa: E402


def test_each_promise_has_a_test_or_is_listed_as_untested() -> None:
    assert len(set(names())) == len(names())
    assert {*names()} - marked().keys() == UNTESTED, "adapt UNTESTED, or mark a test"


def test_each_marker_names_a_promise() -> None:
    assert marked().keys() <= {*names()}


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(marked()), "run tools/server_behaviour.py"
