"""`user` ABI mode: declarations from a build's own headers, generated once and kept.

The generator takes most of a second; what it made lies in the cache by the digest of the headers.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ... import __version__, cdefs

__all__ = ["user_class"]


def user_class(headers: Path, name: str, cache: Path) -> tuple[cdefs.AbiClass, str]:
    """Return the ABI class of a folder of headers, and its declarations.

    Args:
        headers: Folder with llama.h and its companions.
        name: Name for the class.
        cache: Folder for results, owned by this user.

    Raises:
        ValidationError: The headers are incomplete or cannot be read.
    """
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(headers.rglob("*.h")):
        digest.update(path.read_bytes())
    path = cache / f"{name}_{digest.hexdigest()[:16]}.json"
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = _generate(headers)
        _keep(made, path)
    layouts = {k: cdefs.Layout(size, bytes.fromhex(w)) for k, (size, w) in made["layouts"].items()}
    described = cdefs.AbiClass(
        name, (), frozenset(made["functions"]), frozenset(made["optional"]), layouts, made["digest"]
    )
    return described, made["text"]


def _generate(headers: Path) -> dict[str, Any]:
    from ...cdefs import generator

    text = generator.generate(headers)
    c = generator.describe(text)
    return {
        "text": text,
        "digest": c.digest,
        "functions": sorted(c.functions),
        "optional": sorted(c.optional),
        "layouts": {k: (v.size, v.written.hex()) for k, v in c.layouts.items()},
    }


def _keep(made: dict[str, Any], path: Path) -> None:
    """Write the result in one step; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(made, file)
        os.replace(temporary, path)
    except OSError:
        return
