"""The child processes that measure, one for each CPU variant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors
from ..child_process import LineChild, child_environment, error_of
from .timing import Request, Sample

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..binding.tuned import TunedSettings

__all__ = ["Children"]


class Children:
    """Measures settings in child processes, which keep the model loaded between measurements.

    Args:
        library: The library that they load.
        path: The model.
        n_gpu_layers: Layers on the GPU.
        most: How many may run, by memory; the one that was idle longest makes way.
    """

    def __init__(self, library: Path, path: Path, n_gpu_layers: int, most: int = 1) -> None:
        self._library, self.most = library, most
        self._job = {"path": os.fsdecode(path), "n_gpu_layers": n_gpu_layers}
        self._running: dict[str | None, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._running:
            self._running.popitem()[1].close()

    def facts(self, variant: str | None = None) -> dict[str, Any]:
        """Return what a child with this CPU variant says about its defaults.

        Raises:
            LlamaError: It cannot load the model.
        """
        return self._child(variant).facts

    def measure(self, settings: TunedSettings, request: Request) -> Sample:
        """Time a request with settings.

        Raises:
            LlamaError: The child cannot do it, or it died.
        """
        options, variant = settings.given(), settings.cpu_variant
        options.pop("cpu_variant", None)
        child = self._child(variant)
        try:
            answer = child.ask(options=options, request=request)
        except errors.LlamaError:
            if child.is_dead:
                del self._running[variant]
            raise
        return Sample(*answer["sample"])

    def _child(self, variant: str | None) -> _Child:
        child = self._running.pop(variant, None)
        if child is None:
            while len(self._running) >= self.most:
                self._running.pop(next(iter(self._running))).close()
            child = _Child(self._library, variant, self._job)
        self._running[variant] = child  # the last one is the one used last
        return child


class _Child:
    def __init__(self, library: Path, variant: str | None, job: dict[str, Any]) -> None:
        environment = child_environment()
        environment |= {"LLAMA_CFFI_LIB": os.fsdecode(library), "LLAMA_CFFI_TUNED": "0"}
        if variant is not None:
            environment["LLAMA_CFFI_CPU_VARIANT"] = variant
        try:
            self._process = LineChild("llama_cffi.tuning.child_main", job, environment)
        except OSError as e:
            raise errors.LlamaError(f"no child process could be started to measure: {e}") from None
        self.is_dead = False
        try:
            self.facts = self._checked(self._process.read())
        except BaseException:
            self.close()
            raise

    def ask(self, **request: object) -> dict[str, Any]:
        return self._checked(self._process.ask(request))

    def close(self) -> None:
        self._process.close()

    def _checked(self, answer: dict[str, Any] | None) -> dict[str, Any]:
        if answer is None:
            self.is_dead = True
            raise errors.LlamaError(f"the process that measures ended: {self._process.end()}")
        if error := error_of(answer):
            raise error
        return answer
