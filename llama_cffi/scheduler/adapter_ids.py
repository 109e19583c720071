"""AdapterIds: names of LoRA adapters and scales that other processes understand, too."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable
from typing import Any

from ..errors import ValidationError

__all__ = ["AdapterIds"]


class AdapterIds:
    """Identifies LoRA adapters by their files, as these were when first seen."""

    def __init__(self) -> None:
        self._files: dict[str, list[object]] = {}

    def of(self, lora_key: Hashable) -> str | None:
        """Return the id of a key (see `Request`), empty without adapters; None: a file is missing.

        Args:
            lora_key: Paths and scales.
        """
        adapters: Any = lora_key or ()
        facts = []
        for path, scale in sorted(adapters):
            file = self._file(path)
            if file is None:
                return None
            facts.append([*file, scale])
        return json.dumps(facts) if facts else ""

    def key_of(self, id: str, paths: Iterable[str]) -> Hashable:
        """Return the key that an id stands for here.

        Args:
            id: From `of`.
            paths: The adapters that are loaded.

        Raises:
            ValidationError: One is not loaded, or its file has changed.
        """
        known = {json.dumps(self._file(path)): path for path in [*paths]}
        found = []
        for *file, scale in json.loads(id) if id else ():
            path = known.get(json.dumps(file))
            if path is None:
                raise ValidationError(
                    f"the prompt was computed with the LoRA adapter {file[0]}, which is not loaded "
                    "or has changed; load it, for example with scale 0"
                )
            found.append((path, scale))
        return frozenset(found) or None

    def _file(self, path: str) -> list[object] | None:
        if path not in self._files:  # later changes do not reach a loaded adapter
            try:
                status = os.stat(path)
            except OSError:
                return None
            self._files[path] = [os.path.realpath(path), status.st_size, status.st_mtime_ns]
        return self._files[path]
