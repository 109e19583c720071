"""The `user` ABI mode: declarations generated from a build's own headers.

The generator takes most of a second, so its result is cached by the digest of the headers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ... import __version__, cdefs
from . import cache_files

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
    cached = cache_files.read(path)
    if cached is None:
        cached = json.dumps(_generate(headers)).encode()
        cache_files.write(path, cached)
    data = json.loads(cached)
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
