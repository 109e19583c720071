"""Print the changelog entry of a release; refuse a tag that the project does not agree with.

python tools/release_notes.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def release_notes(tag: str, changelog: str, project: str) -> str:
    """Return the text below the heading of *tag* in *changelog*.

    Args:
        tag: `v` and a version.
        changelog: CHANGELOG.md, in the format of Keep a Changelog.
        project: pyproject.toml.

    Raises:
        ValueError: The version is not the project's, or its entry is missing, undated or empty.
    """
    version = tag.removeprefix("v")
    declared = re.search(r'^version = "(.+)"$', project, re.M)
    if declared is None or tag != f"v{declared[1]}":
        raise ValueError(f"the tag is {tag}, pyproject.toml says {declared and declared[1]}")
    entry = re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)",
        changelog,
        re.M | re.S,
    )
    if entry is None or not entry[1].strip():
        raise ValueError(f"CHANGELOG.md needs an entry '## [{version}] - YYYY-MM-DD' with text")
    return entry[1].strip() + "\n"


def main() -> int:
    """Run the command."""
    if len(sys.argv) != 2:
        print("usage: release_notes.py TAG", file=sys.stderr)
        return 2
    texts = [
        (ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "pyproject.toml")
    ]
    try:
        print(release_notes(sys.argv[1], *texts), end="")
    except ValueError as e:
        print(f"release_notes.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
