"""Headless Chromium, for the files that `nox -s page` runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

__all__ = ["chromium"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium of the system. One Playwright at a time: fixtures are a module's."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "install Chromium first: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
