"""Write a quantized copy of a model file."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import LlamaError, ValidationError
from ...gguf.reader import tensor_bytes
from ...progress import Progress, reporting
from .. import compat
from ..context.threadpool import thread_count
from ..loading.library import Library, get_library
from .files import AnyPath, ModelFiles, open_files
from .preflight import check_model

__all__ = ["quantize"]

_ABORT = re.compile(r"GGML_ASSERT|\.(c|cpp|h):\d+: |what\(\)|Error: ")
_FAILED = "failed to quantize: "
_DONE = re.compile(r"\[ *(\d+)/ *(\d+)\]")
# The child imports from where this process does, and not from the current folder.
_START = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); "
    "from llama_cffi.binding.model.quantize_child import main; main()"
)
_log = logging.getLogger("llama_cffi.native")


def quantize(
    source: AnyPath,
    target: AnyPath,
    ftype: str = "Q4_K_M",
    *,
    n_threads: int = 0,
    allow_requantize: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    only_copy: bool = False,
    keep_split: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
    library: Library | None = None,
) -> Path:
    """Write a quantized copy of a model, in a process of its own: minutes for a large one.

    Ctrl-C, an exception of *progress* or a crash in C leave no file behind.

    Args:
        source: The GGUF file; of a split model the first part.
        target: The new file, which appears when it is whole.
        ftype: As llama-quantize names it: `Q4_K_M`, `Q8_0`, `F16`, ...
        n_threads: 0 = one for each physical core.
        allow_requantize: Take a source that is quantized already; the quality suffers.
        output_tensor_type: Another type for `output.weight`, such as `Q8_0`.
        token_embedding_type: Another type for `token_embd.weight`.
        pure: The same type for all matrices instead of llama.cpp's mixture.
        only_copy: Change no tensor; joins the parts of a split model.
        keep_split: Write as many parts as the source has, `TARGET-00001-of-00003.gguf`.
        overwrite: Replace what is at *target*.
        progress: True shows a bar on stderr; a function is called with 0.0 to 1.0, and stops it
            by returning False.
        library: The build; None = `get_library()`.

    Returns:
        The new file; of a split model the first part.

    Raises:
        ValidationError: No such type, or the target cannot be written.
        ModelLoadError: The source is missing or damaged.
        LlamaError: C failed, with its reason; or *progress* stopped it.
    C: llama_model_quantize
    """
    files = open_files(source)
    library = library or get_library()
    check_model(files.paths[0], files.summary, library)
    known = compat.file_types(library)
    name = str(ftype).upper()
    if name not in known:
        raise ValidationError(f"ftype={ftype!r} is not one of {', '.join(known)}")
    values: dict[str, Any] = {
        "ftype": known[name],
        "nthread": thread_count("n_threads", n_threads),
        "output_tensor_type": _tensor_type(library, "output_tensor_type", output_tensor_type),
        "token_embedding_type": _tensor_type(library, "token_embedding_type", token_embedding_type),
        "allow_requantize": bool(allow_requantize),
        "pure": bool(pure),
        "only_copy": bool(only_copy),
        "keep_split": bool(keep_split),
    }
    path = Path(os.fsdecode(target)).expanduser()
    made = _made(path, len(files.paths) if keep_split else 0)
    _check_target(path, made, files, overwrite, "" if only_copy else name)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:50]}.", dir=path.parent) as folder:
        inside = Path(folder) / (path.stem if keep_split else path.name)
        job = {
            "library": str(library.path),
            "source": str(files.paths[0]),
            "target": str(inside),
            "values": {key: value for key, value in values.items() if value is not None},
        }
        with reporting(progress, path.name) as report:
            _run(job, report)
        for file in made:
            os.replace(Path(folder) / file.name, file)
    return made[0]


def _tensor_type(library: Library, name: str, kind: str | None) -> int | None:
    if kind is None:
        return None
    known = {name: number for number, name in compat.tensor_types(library).items()}
    if str(kind).upper() not in known:
        raise ValidationError(f"{name}={kind!r} is not one of {', '.join(known)}")
    return known[str(kind).upper()]


def _made(target: Path, n_parts: int) -> list[Path]:
    """The files that C makes; *n_parts* is 0 when it is told to join them."""
    if not n_parts:
        return [target]
    names = (f"{target.stem}-{i + 1:05d}-of-{n_parts:05d}.gguf" for i in range(n_parts))
    return [target.with_name(name) for name in names]


def _check_target(
    target: Path, made: list[Path], files: ModelFiles, overwrite: bool, ftype: str
) -> None:
    if not target.name or not target.parent.is_dir():
        raise ValidationError(f"there is no folder {target.parent} to write {target.name!r} into")
    for file in made:
        if file.exists() and any(file.samefile(part) for part in files.paths):
            raise ValidationError(f"{file} is the source; give another target")
        if file.is_dir() or (file.exists() and not overwrite):
            raise ValidationError(f"{file} is there already; overwrite=True replaces a file")
    need = tensor_bytes(files.summary.tensors, ftype)
    free = shutil.disk_usage(target.parent).free
    if need > free:
        raise ValidationError(
            f"{target.name} needs at least {need / 1e9:.2f} GB, and {target.parent} has "
            f"{free / 1e9:.2f} GB free"
        )


def _run(job: dict[str, Any], report: Callable[[float], bool]) -> None:
    """Run the child until it has the result; whatever happens, it is gone after this."""
    command = [sys.executable, "-c", _START, "\n".join(sys.path), json.dumps(job)]
    # Without a debugger that GGML_ABORT would look for.
    env = {**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONUNBUFFERED": "1"}
    said: deque[str] = deque(maxlen=4)
    result = None
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=env
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                told = json.loads(line)
                result = told.get("result", result)
                if "line" in told:
                    _follow(told, said, report)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        errors.seek(0)
        printed = errors.read().decode("utf-8", "replace").strip().splitlines()
        # Old builds print a debugger's backtrace after the assertion.
        said.extend(([p for p in printed if _ABORT.search(p)] or printed)[-3:])
    if result == 0:
        return
    reason = re.sub(r"[=\s]+", " ", "; ".join(said)) or "llama.cpp gave no reason"
    if "imatrix" in reason or "importance matrix" in reason:
        reason += ". Types below 3 bits need an importance matrix; take Q2_K or a larger one"
    how = (
        f"ended by signal {-code}" if code < 0 else f"returned {code if result is None else result}"
    )
    raise LlamaError(f"cannot quantize {job['source']}: {reason} (the process {how})")


def _follow(told: dict[str, Any], said: deque[str], report: Callable[[float], bool]) -> None:
    """Pass on a line that C logged."""
    line = told["line"]
    _log.log(told["level"], "%s", line)
    # The reason may continue the unfinished line of a tensor.
    if told["level"] >= logging.WARNING or _FAILED in line:
        said.append(line.split(_FAILED)[-1].split(": ", 1)[-1].strip())
    done = _DONE.match(line)
    if done and not report(int(done[1]) / max(int(done[2]), 1)):
        raise LlamaError(
            f"quantizing stopped at {line.split('-')[0].strip()}: progress returned False"
        )
