"""The chat templates in llama.cpp's sources, which the npm package `node-llama-cpp` contains."""

from __future__ import annotations

import tempfile
from pathlib import Path

from collect_headers import NPM, from_bundle, npm_pack
from filelock import FileLock

TAG = "v0.5.0"


def fetch(folder: Path) -> list[Path]:
    """Return the paths of all chat templates at TAG, fetched to *folder* unless they are there.

    Raises:
        RuntimeError: npm is missing, or the package contains other sources.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / TAG
    with FileLock(folder / ".lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                tarball = npm_pack(NPM[TAG], Path(scratch))
                part = Path(scratch, TAG)
                part.mkdir()
                for path, content in from_bundle(tarball, TAG, is_template):
                    (part / Path(path).name).write_bytes(content)
                part.replace(target)
    return sorted(target.glob("*.jinja"))


def is_template(path: str) -> bool:
    """Return whether *path* in a llama.cpp tree is one of its models' chat templates."""
    return path.startswith("models/templates/") and path.endswith(".jinja")
