"""The Python blocks of README.md and docs/ run as they are, one file in one process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.children import Child

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(child: Child, page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M)
    result = child("import os, sys; os.chdir(sys.argv[1])\n" + "\n".join(blocks), tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
