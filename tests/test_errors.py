"""Error messages say what was wrong and what to do next: 40 commands and 50 calls."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from errors import CALLS, COMMANDS, PAGE, Case  # noqa: E402

CASES = [*COMMANDS, *CALLS]


@pytest.fixture(scope="module")
def messages() -> dict[Case, str]:
    from errors import run

    return {told.case: told.message for group in run() for told in group}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.given[:60])
def test_message_says_what_was_wrong_and_what_to_do(messages: dict[Case, str], case: Case) -> None:
    message = messages[case]
    assert case.wrong in message
    assert case.advice in message
    assert case in CALLS or "\n" not in message  # grammars show the place
    assert len(re.findall("did you mean", message)) <= 1
    assert "Traceback" not in message


def test_the_page_has_every_case() -> None:
    assert len(COMMANDS) >= 40
    assert len(CALLS) >= 40
    page = PAGE.read_text("utf-8")
    for command in COMMANDS:
        assert f"$ llama-cffi {command.given[:60]}" in page
    for call in CALLS:
        assert f">>> {call.given}\n" in page
