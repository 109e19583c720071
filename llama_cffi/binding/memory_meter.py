"""Measure the memory of a context before anything is allocated, in a child process."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..child_process import LineChild, can_start, child_environment, error_of
from ..errors import ModelLoadError, ValidationError
from . import compat
from .loading.library import Library
from .memory_lines import MemoryLines, parse_lines

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MemoryMeter"]

_SECONDS = 120
_log = logging.getLogger(__name__)


class MemoryMeter:
    """Measures contexts of one model.

    llama.cpp loads the model without its weights and computes the size of each buffer. It does so
    in a child process, because such a model would end the process that decodes with it, and a
    graph that C cannot build may end it as well.

    Args:
        paths: The files of the model.
        library: The build.

    Attributes:
        reason: Why nothing can be measured; empty if it can.
    """

    def __init__(self, paths: Sequence[Path], library: Library) -> None:
        self._paths = [os.fsdecode(path.absolute()) for path in paths]
        self._library = library
        self._child: LineChild | None = None
        self.reason = ""
        if not compat.plans_memory(library):
            build = library.name
            self.reason = f"build {build} cannot measure (b7698 and later can)"
        elif not can_start():
            self.reason = "no child process can be started here"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(
        self, model: Mapping[str, object], context: Mapping[str, object]
    ) -> MemoryLines | None:
        """Return what C logs about a context; None if it cannot be measured, see `reason`.

        Args:
            model: Arguments of `Model` about devices and metadata.
            context: Arguments of `Context`.

        Raises:
            ModelLoadError: The build cannot load the model.
            ValidationError: An option is not supported by the model or the build.
        """
        if self.reason:
            return None
        answer = self._ask({"model": dict(model), "context": dict(context)})
        if answer is None:
            return None
        if error := error_of(answer):
            if not isinstance(error, (ModelLoadError, ValidationError)):
                self.reason = str(answer["message"])
                return None
            raise error
        found = parse_lines(map(str, answer["lines"]))
        if not any(kind == "compute" for kind, _ in found.buffers) or not found.layers:
            build = self._library.name
            self.reason = f"build {build} does not log the sizes of its buffers as known"
            return None
        return found

    def close(self) -> None:
        """End the child process."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _ask(self, question: Mapping[str, object]) -> dict[str, list[object]] | None:
        child = self._start()
        if child is None:
            return None
        timer = threading.Timer(_SECONDS, child.kill)
        timer.daemon = True
        timer.start()
        try:
            answer = child.ask(question)
        finally:
            timer.cancel()
        if answer is None:
            self._child = None
            self.reason = f"the process that measures ended with {child.end()}"
            _log.debug("%s", self.reason)
        return answer

    def _start(self) -> LineChild | None:
        if self._child is None:
            job = {"library": str(self._library.path), "paths": self._paths}
            environment = child_environment()
            if self._library.cpu_variant:  # they pack weights in different ways
                environment["LLAMA_CFFI_CPU_VARIANT"] = self._library.cpu_variant
            try:
                self._child = LineChild("llama_cffi.binding.memory_meter_child", job, environment)
            except OSError as e:
                self.reason = f"no child process could be started: {e}"
        return self._child
