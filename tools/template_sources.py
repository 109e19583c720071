"""The chat templates in llama.cpp's own sources, which the npm package `node-llama-cpp` carries."""

from __future__ import annotations

from pathlib import Path

from collect_headers import NPM, from_bundle, npm_pack

TAG = "v0.5.0"


def fetch(folder: Path) -> list[Path]:
    """Write the templates of llama.cpp's sources at TAG to *folder*."""
    tarball = npm_pack(NPM[TAG], folder)
    for path, content in from_bundle(tarball, TAG, is_template):
        (folder / Path(path).name).write_bytes(content)
    return sorted(folder.glob("*.jinja"))


def is_template(path: str) -> bool:
    """Tell whether *path* in a llama.cpp tree is one of its models' chat templates."""
    return path.startswith("models/templates/") and path.endswith(".jinja")
