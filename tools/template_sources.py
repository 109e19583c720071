"""The chat templates in llama.cpp's sources, which the npm package `node-llama-cpp` contains."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs
from collect_headers import NPM, from_bundle, npm_pack
from filelock import FileLock

TAG = "v0.5.0"


def fetch(cache: Path | None = None) -> list[Path]:
    """Return the paths of all chat templates at TAG, fetched unless they are in the cache.

    Args:
        cache: A folder for downloads; None: the cache of the tests.

    Raises:
        RuntimeError: npm is missing, or the package contains other sources.
    """
    if cache is None:
        given = os.environ.get("LLAMA_CFFI_TEST_CACHE")
        cache = Path(given or platformdirs.user_cache_dir("llama_cffi-tests"))
    folder = cache / "chat-templates"
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
