"""The functions that `doctor` runs in child processes, so that a crash is just a finding.

They report each step as a marked line of JSON as soon as it is done, so that a crash loses only
what would have come after it.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LlamaError

if TYPE_CHECKING:
    import ctypes

__all__ = ["MARK", "dlopen", "generate", "scores"]

MARK = "@llama-cffi-doctor "


def _report(step: str, **facts: Any) -> None:
    print(MARK + json.dumps({"step": step, **facts}), flush=True)


def generate(model: str, tokens: Sequence[int], n_predict: int, n_gpu_layers: int) -> None:
    """Load the library, then the model, and continue *tokens* greedily, reporting each step."""
    lines = _collect_log()
    try:
        from ..binding import get_library

        started = time.perf_counter()
        library = get_library()
        _report(
            "library",
            seconds=round(time.perf_counter() - started, 3),
            path=str(library.path),
            abi=library.abi.as_dict(),
            abi_text=str(library.abi),
            no_multimodal=library.no_multimodal,
            devices=[asdict(device) for device in library.devices],
            notes=list(library.backend_notes),
            system_info=library.system_info,
            mapped=_mapped(library.path.parent),
        )
        from ..engine.engine import Engine

        started = time.perf_counter()
        n_ctx = len(tokens) + n_predict + 8
        # One thread: ggml's threads spin while they wait, which costs seconds on a busy machine.
        with Engine(model, n_ctx=n_ctx, n_threads=1, n_gpu_layers=n_gpu_layers) as engine:
            loaded = time.perf_counter()
            _report("model", seconds=round(loaded - started, 3))
            generated = engine.generate_tokens(tokens, n_predict, temperature=0)
            seconds = time.perf_counter() - loaded
            # The recording may end with an end-of-generation token, which generation leaves out.
            is_eog = engine.model.vocab.is_eog
            eog_tokens = [t for t in range(len(engine.model.vocab)) if is_eog(t)]
            text = engine.detokenize(generated)
        _report(
            "generation",
            tokens=generated,
            text=text,
            eog_tokens=eog_tokens,
            seconds=seconds,
            offloaded=[line for line in lines if "offloaded" in line],
        )
    except LlamaError as e:
        _report("error", type=type(e).__name__, message=str(e), log=lines[-30:])


def dlopen(path: str, before: Sequence[str]) -> None:
    """Open the backend library at *path* with ctypes, after *before*, and report any error."""
    _open_first(before)
    library = _open(path)
    if isinstance(library, OSError):
        _report("dlopen", message=str(library))
        return
    _report("dlopen", message="")
    if (score := _score(library)) is not None:
        _report("score", score=score)


def scores(paths: Sequence[str], before: Sequence[str]) -> None:
    """Open the CPU backends at *paths*, after *before*; report for each its score or an error."""
    _open_first(before)
    for path in paths:
        library = _open(path)
        if isinstance(library, OSError):
            _report(path, message=str(library))
        else:
            _report(path, message="", score=_score(library))


def _open_first(paths: Sequence[str]) -> None:
    import ctypes

    for path in paths:
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as e:
            _report("dependency", path=path, message=str(e))


def _open(path: str) -> ctypes.CDLL | OSError:
    import ctypes

    try:
        return ctypes.CDLL(path, mode=getattr(ctypes, "RTLD_LOCAL", 0) | _RTLD_NOW)
    except OSError as e:
        return e


def _score(library: ctypes.CDLL) -> int | None:
    """Return how well the backend fits this CPU; 0: the CPU lacks instructions; None: unknown."""
    try:
        return int(library.ggml_backend_score())
    except AttributeError:
        return None


_RTLD_NOW = 2  # the same on Linux and macOS; Windows ignores it


def _collect_log() -> list[str]:
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("llama_cffi")
    logger.addHandler(Collector())
    logger.setLevel(logging.DEBUG)
    return lines


def _mapped(folder: Path) -> list[str] | None:
    """Return the names of *folder*'s files that are mapped into this process; None if unknown."""
    try:
        text = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    paths = {Path(found) for found in re.findall(r" (/[^\n]*)$", text, re.MULTILINE)}
    return sorted(path.name for path in paths if path.parent == folder)


def main() -> None:
    """Run the function that the JSON on stdin names, with the arguments in it."""
    faulthandler.enable()
    request = json.load(sys.stdin)
    functions: dict[str, Callable[..., None]] = {
        "generate": generate,
        "dlopen": dlopen,
        "scores": scores,
    }
    functions[request.pop("run")](**request)
