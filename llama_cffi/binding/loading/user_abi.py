"""The `user` ABI mode: declarations generated from a build's own headers.

The generator takes most of a second, so its result is cached by the digest of the headers.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ... import __version__, cdefs

__all__ = ["generate_class"]


def generate_class(headers: Path, name: str, cache: Path) -> tuple[cdefs.AbiClass, str]:
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
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = _generate(headers)
        _store(data, path)
    layouts = {k: cdefs.Layout(size, bytes.fromhex(w)) for k, (size, w) in data["layouts"].items()}
    abi_class = cdefs.AbiClass(
        name, (), frozenset(data["functions"]), frozenset(data["optional"]), layouts, data["digest"]
    )
    return abi_class, data["text"]


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


def _store(data: dict[str, Any], path: Path) -> None:
    """Write the result atomically; ignore a cache that cannot be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(data, file)
        os.replace(temporary, path)
    except OSError:
        return
