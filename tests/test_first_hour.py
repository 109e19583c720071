"""docs/first-hour.md is the transcript of the README as it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from first_hour import PAGE, Step, steps  # noqa: E402


def test_the_transcript_has_every_line_of_the_readme_in_order() -> None:
    text = PAGE.read_text("utf-8")
    shown = [
        Step("sh", line) if line else Step("python", program.rstrip())
        for line, program in re.findall(r"^\$ ([^\n]*)$|^```py\n(.*?)^```$", text, re.S | re.M)
    ]
    assert len(shown) > 8
    assert shown == [*steps()]


def test_nothing_in_the_transcript_ended_in_a_traceback() -> None:
    assert "Traceback" not in PAGE.read_text("utf-8")
