"""The process that measures contexts for `MemoryMeter`."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import LlamaError
from . import compat
from .context.params import ContextParams, resolve
from .loading.library import Library, get_library
from .memory_lines import is_about_memory
from .model.kind import ModelKind
from .model.model import Model

__all__ = ["main"]


class _UnallocatedModel(Model):
    """A model without weights. Its contexts must not decode."""

    _no_alloc = True


def main() -> None:
    """Answer the questions on stdin, a line of JSON for each."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what C prints must not get into an answer
    job = json.loads(sys.argv[1])
    library = get_library(job["library"])
    meter = _Meter(library, job["paths"])
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer: dict[str, object] = {
                "lines": meter.measure(question["model"], question["context"])
            }
        except LlamaError as e:
            answer = {"error": type(e).__name__, "message": str(e)}
        print(json.dumps(answer), file=out, flush=True)


class _Meter:
    def __init__(self, library: Library, paths: list[str]) -> None:
        self._library = library
        self._path = paths[0] if len(paths) == 1 else paths
        self._options: Mapping[str, Any] = {}
        self._model: Model | None = None
        self._loading: list[str] = []

    def measure(self, options: Mapping[str, Any], context: Mapping[str, Any]) -> list[str]:
        if self._model is None or options != self._options:
            if self._model is not None:
                self._model.close()
                self._model = None
            with self._library.logs.capture(logging.DEBUG) as lines:
                self._model = _UnallocatedModel(
                    self._path, use_mmap=False, check="rules", library=self._library, **options
                )
            self._options, self._loading = options, lines
        model = self._model
        wanted = ContextParams(**context, check_memory=False)
        values = resolve(wanted, model, ModelKind.of(model))
        params = compat.context_params(self._library, **values)
        with self._library.logs.capture(logging.DEBUG) as lines:
            ptr = compat.init_context(self._library, model.ptr, params)
        if not ptr:
            raise LlamaError(f"llama.cpp could not create a context: {'; '.join(lines[-3:])}")
        self._library.lib.llama_free(ptr)
        return [line for line in (*self._loading, *lines) if is_about_memory(line)]
