"""Models on the hub that are planned for by their headers, without downloading them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..binding.model.files import ModelFiles, Override
from ..errors import FetchError
from ..gguf.remote import read_remote_header
from ..hub import HubSpec, cached_model, remote_files, resolve_model

__all__ = ["remote_model_files", "resolve_if_here"]


def resolve_if_here(source: str | os.PathLike[str]) -> Path | None:
    """Return the file that *source* names; None: it is on the hub and not in its cache.

    Raises:
        ModelLoadError: It is a path, and there is no such file.
        ValidationError: It is not the name of a model.
    """
    if not (isinstance(source, str) and source.startswith("hf:")):
        return resolve_model(source)
    try:
        return cached_model(HubSpec.parse(source))
    except FetchError:
        return None


def remote_model_files(source: str, overrides: Mapping[str, Override] | None = None) -> ModelFiles:
    """Return the files of a model on the hub, of which only the headers are read, by ranges.

    Args:
        source: `hf:owner/repo[@revision][:file or quantization]`.
        overrides: Metadata that replaces the file's.

    Raises:
        FetchError: The repository cannot be reached, or its server does not send parts of files.
        ModelLoadError: A file is not a GGUF, or damaged.
        ValidationError: No file or several files match.
    """
    files = remote_files(HubSpec.parse(source))
    headers = [read_remote_header(file.name, file.size, file.read).summary for file in files]
    if overrides:
        headers[0] = replace(headers[0], values={**headers[0].values, **overrides})
    return ModelFiles(tuple(Path(file.name) for file in files), tuple(headers), False)
