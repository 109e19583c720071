"""A tiny split model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFValue
from gguf import GGUFValueType as Kind

from .tiny_gguf import write_tiny


def write_split(
    folder: Path, n_parts: int = 3, name: str = "m", wrong: dict[str, Any] | None = None
) -> list[Path]:
    """Write a tiny split model; *wrong* replaces keys of the second part."""
    whole: list[str] = []
    write_tiny(folder / "whole.gguf", edit=lambda w: whole.extend(w.tensors[0]))
    paths = []
    for i in range(n_parts):

        def edit(writer: gguf.GGUFWriter, i: int = i) -> None:
            keys, tensors = writer.kv_data[0], writer.tensors[0]
            for at, tensor in enumerate(whole):
                if at % n_parts != i:
                    del tensors[tensor]
            if i:
                for key in [k for k in keys if k != "general.architecture"]:
                    del keys[key]
            keys["split.no"] = GGUFValue(i, Kind.UINT16)
            keys["split.count"] = GGUFValue(n_parts, Kind.UINT16)
            keys["split.tensors.count"] = GGUFValue(len(whole), Kind.INT32)
            if i == 1:
                keys.update(wrong or {})

        paths.append(write_tiny(folder / f"{name}-{i + 1:05d}-of-{n_parts:05d}.gguf", edit=edit))
    return paths
