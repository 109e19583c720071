"""Write a quantized copy of a model file."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...child_process import child_command, child_environment
from ...errors import LlamaError, ValidationError
from ...gguf.reader import tensor_bytes
from ...progress import Progress, reporting
from .. import compat
from ..loading.library import Library, get_library
from ..processors import thread_count
from .files import AnyPath, ModelFiles, open_files
from .preflight import check_model

__all__ = ["quantize"]

_ABORT = re.compile(r"GGML_ASSERT|\.(c|cpp|h):\d+: |what\(\)|Error: ")
_FAILED = "failed to quantize: "
_DONE = re.compile(r"\[ *(\d+)/ *(\d+)\]")
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
    """Write a quantized copy of a model, in a separate process. A large one takes minutes.

    Ctrl-C, an exception in *progress* or a crash in C leaves no file behind.

    Args:
        source: The GGUF file; of a split model the first part.
        target: The new file, which appears only when complete.
        ftype: A type as llama-quantize names it: `Q4_K_M`, `Q8_0`, `F16`, ...
        n_threads: Number of threads; 0 = one per physical core.
        allow_requantize: Accept a source that is already quantized; the quality suffers.
        output_tensor_type: Another type for `output.weight`, such as `Q8_0`.
        token_embedding_type: Another type for `token_embd.weight`.
        pure: Use the same type for all matrices instead of llama.cpp's mixture.
        only_copy: Change no tensor; joins the parts of a split model.
        keep_split: Write as many parts as the source has, `TARGET-00001-of-00003.gguf`.
        overwrite: Replace a file that exists at *target*.
        progress: True shows a bar on stderr. A function is called with 0.0 to 1.0 and stops the
            process by returning False.
        library: The build; None = `get_library()`.

    Returns:
        The new file; of a split model the first part.

    Raises:
        ValidationError: The type does not exist or the target cannot be written.
        ModelLoadError: The source is missing or damaged.
        LlamaError: C failed, with its reason, or *progress* stopped it.
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
    outputs = _output_files(path, len(files.paths) if keep_split else 0)
    _check_target(path, outputs, files, overwrite, "" if only_copy else name)
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:50]}.", dir=path.parent) as folder:
        temporary = Path(folder) / (path.stem if keep_split else path.name)
        job = {
            "library": str(library.path),
            "source": str(files.paths[0]),
            "target": str(temporary),
            "values": {key: value for key, value in values.items() if value is not None},
        }
        with reporting(progress, path.name) as report:
            _run(job, report)
        for file in outputs:
            os.replace(Path(folder) / file.name, file)
    return outputs[0]


def _tensor_type(library: Library, name: str, type_name: str | None) -> int | None:
    if type_name is None:
        return None
    known = {name: number for number, name in compat.tensor_types(library).items()}
    if str(type_name).upper() not in known:
        raise ValidationError(f"{name}={type_name!r} is not one of {', '.join(known)}")
    return known[str(type_name).upper()]


def _output_files(target: Path, n_parts: int) -> list[Path]:
    """Return the files that C writes; *n_parts* is 0 if it joins the parts into one."""
    if not n_parts:
        return [target]
    names = (f"{target.stem}-{i + 1:05d}-of-{n_parts:05d}.gguf" for i in range(n_parts))
    return [target.with_name(name) for name in names]


def _check_target(
    target: Path, outputs: list[Path], files: ModelFiles, overwrite: bool, ftype: str
) -> None:
    if not target.name or not target.parent.is_dir():
        raise ValidationError(f"cannot write {target.name!r}: {target.parent} is not a folder")
    for file in outputs:
        if file.exists() and any(file.samefile(part) for part in files.paths):
            raise ValidationError(f"{file} is the source; choose another target")
        if file.is_dir() or (file.exists() and not overwrite):
            raise ValidationError(f"{file} exists; overwrite=True replaces a file")
    need = tensor_bytes(files.summary.tensors, ftype)
    free = shutil.disk_usage(target.parent).free
    if need > free:
        raise ValidationError(
            f"{target.name} needs at least {need / 1e6:,.1f} MB, and {target.parent} has "
            f"{free / 1e6:,.1f} MB free"
        )


def _run(job: dict[str, Any], report: Callable[[float], bool]) -> None:
    """Run the child until it reports the result; it never outlives this call."""
    command = child_command("llama_cffi.binding.model.quantize_child", json.dumps(job))
    reasons: deque[str] = deque(maxlen=4)
    result = None
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=child_environment(),
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                message = json.loads(line)
                result = message.get("result", result)
                if "line" in message:
                    _forward(message, reasons, report)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        errors.seek(0)
        printed = errors.read().decode("utf-8", "replace").strip().splitlines()
        # Old builds print a debugger's backtrace after the assertion.
        reasons.extend(([p for p in printed if _ABORT.search(p)] or printed)[-3:])
    if result == 0:
        return
    reason = re.sub(r"[=\s]+", " ", "; ".join(reasons)) or "llama.cpp gave no reason"
    if "imatrix" in reason or "importance matrix" in reason:
        reason += ". Types below 3 bits need an importance matrix; use Q2_K or a larger type"
    how = (
        f"ended by signal {-code}" if code < 0 else f"returned {code if result is None else result}"
    )
    raise LlamaError(f"cannot quantize {job['source']}: {reason} (the process {how})")


def _forward(message: dict[str, Any], reasons: deque[str], report: Callable[[float], bool]) -> None:
    """Log a line of C, report its progress and keep it if it may explain a failure."""
    line = message["line"]
    _log.log(message["level"], "%s", line)
    # The reason may continue the unfinished line of a tensor.
    if message["level"] >= logging.WARNING or _FAILED in line:
        reasons.append(line.split(_FAILED)[-1].split(": ", 1)[-1].strip())
    done = _DONE.match(line)
    if done and not report(int(done[1]) / max(int(done[2]), 1)):
        raise LlamaError(
            f"quantizing stopped at {line.split('-')[0].strip()}: progress returned False"
        )
