"""What `doctor` runs in child processes, where a crash is a finding and not the end.

Each function prints findings as marked JSON lines as soon as it has them, so that a crash loses
only what came after.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import LlamaError

__all__ = ["MARK", "dlopen", "generate"]

MARK = "@llama-cffi-doctor "


def _tell(what: str, **facts: Any) -> None:
    print(MARK + json.dumps({"what": what, **facts}), flush=True)


def generate(model: str, tokens: Sequence[int], n_predict: int, n_gpu_layers: int) -> None:
    """Load the library, then the model, and continue *tokens* greedily; tell each step."""
    lines = _collect_log()
    try:
        from ..binding import get_library

        started = time.perf_counter()
        library = get_library()
        _tell(
            "library",
            seconds=round(time.perf_counter() - started, 3),
            path=str(library.path),
            abi=library.abi.as_dict(),
            abi_text=str(library.abi),
            devices=[asdict(device) for device in library.devices],
            notes=list(library.backend_notes),
            system_info=library.system_info,
            mapped=_mapped(library.path.parent),
        )
        from ..engine import Engine

        started = time.perf_counter()
        n_ctx = len(tokens) + n_predict + 8
        # One thread: ggml's threads wait by spinning, which takes seconds on a busy machine.
        with Engine(model, n_ctx=n_ctx, n_threads=1, n_gpu_layers=n_gpu_layers) as engine:
            loaded = time.perf_counter()
            _tell("model", seconds=round(loaded - started, 3))
            said = engine.generate_tokens(tokens, n_predict, temperature=0)
            seconds = time.perf_counter() - loaded
            # The recorded text may end with the token that ends the turn; it is never generated.
            is_eog = engine.model.vocab.is_eog
            ends = [t for t in range(len(engine.model.vocab)) if is_eog(t)]
            text = engine.detokenize(said)
        offloaded = [line for line in lines if "offloaded" in line]
        _tell("generation", tokens=said, text=text, ends=ends, seconds=seconds, offloaded=offloaded)
    except LlamaError as e:
        _tell("error", type=type(error).__name__, message=str(error), log=lines[-30:])


def dlopen(path: str, before: Sequence[str]) -> None:
    """Open one backend library the hard way, after *before*, and tell what the loader said."""
    import ctypes

    for dependency in before:
        try:
            ctypes.CDLL(dependency, mode=ctypes.RTLD_GLOBAL)
        except OSError as e:
            _tell("dependency", path=dependency, message=str(error))
    try:
        library = ctypes.CDLL(path, mode=getattr(ctypes, "RTLD_LOCAL", 0) | _RTLD_NOW)
    except OSError as e:
        _tell("loader", message=str(error))
        return
    _tell("loader", message="")
    try:
        score = library.ggml_backend_score
    except AttributeError:
        return
    # 0 means that this CPU lacks instructions which the file was built for.
    _tell("score", score=int(score()))


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
    """Names of the files in *folder* that are mapped into this process; None where unknown."""
    try:
        text = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    paths = {Path(found) for found in re.findall(r" (/[^\n]*)$", text, re.MULTILINE)}
    return sorted(path.name for path in paths if path.parent == folder)


def main() -> None:
    """Run one function with the arguments that stdin has as JSON."""
    request = json.load(sys.stdin)
    run = generate if request.pop("run") == "generate" else dlopen
    run(**request)
