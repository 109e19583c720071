"""Fixtures of the commands."""

from __future__ import annotations

import pytest
from support.command_line import Runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run a command in this process."""
    return Runner(capsys, monkeypatch)
