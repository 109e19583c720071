"""Write a quantized copy of a model file, or tell what it would be."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...child_process import child_command, child_environment
from ...errors import LlamaError, ValidationError
from ...gguf.reader import GgufTensor, bytes_of, tensor_bytes
from ...progress import Progress, reporting
from .. import compat
from ..loading.library import Library, get_library
from ..processors import thread_count
from .files import AnyPath, ModelFiles, open_files
from .preflight import check_model

__all__ = ["QuantizePlan", "QuantizedTensor", "file_types", "plan_quantize", "quantize"]

_ABORT = re.compile(r"GGML_ASSERT|\.(c|cpp|h):\d+: |what\(\)|Error: ")
_FAILED = "failed to quantize: "
_DONE = re.compile(r"\[ *(\d+)/ *(\d+)\]")
# A line of a dry run: a tensor that gets another type.
_CHANGED = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- .*-> .* MiB \((\w+)\)")
_log = logging.getLogger("llama_cffi.native")


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor before and after quantizing.

    Attributes:
        name: Its name.
        shape: Its shape in ggml's order, the row length first.
        type_name: The ggml type before.
        new_type_name: The ggml type after.
        size_bytes: Size of its data before.
        new_size_bytes: Size of its data after.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    new_type_name: str
    size_bytes: int
    new_size_bytes: int


@dataclass(frozen=True)
class QuantizePlan:
    """What quantizing would write.

    Attributes:
        ftype: The type of the file, such as `Q4_K_M`.
        tensors: All tensors.
    """

    ftype: str
    tensors: tuple[QuantizedTensor, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the data of all tensors before."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def new_size_bytes(self) -> int:
        """Size of the data of all tensors after."""
        return sum(tensor.new_size_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean size of a weight after, in bits."""
        return 8 * self.new_size_bytes / sum(math.prod(tensor.shape) for tensor in self.tensors)


def file_types(library: Library | None = None) -> tuple[str, ...]:
    """Return the types to which the build quantizes a model, such as `Q4_K_M`.

    Args:
        library: The build; None = `get_library()`.
    """
    return tuple(compat.file_types(library or get_library()))


def plan_quantize(
    source: AnyPath,
    ftype: str = "Q4_K_M",
    *,
    allow_requantize: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    library: Library | None = None,
) -> QuantizePlan:
    """Return what `quantize` would write, computed by llama.cpp; nothing is written.

    Args:
        source: See `quantize` for the arguments.
        ftype: See `quantize`.
        allow_requantize: See `quantize`.
        output_tensor_type: See `quantize`.
        token_embedding_type: See `quantize`.
        pure: See `quantize`.
        library: See `quantize`.

    Raises:
        ValidationError: The type does not exist, or the build has no dry run.
        ModelLoadError: The source is missing or damaged.
        LlamaError: C failed, with its reason.
    C: llama_model_quantize
    """
    files = open_files(source)
    library = library or get_library()
    check_model(files.paths[0], files.summary, library)
    if not compat.has_dry_run(library):
        raise ValidationError(
            f"this build has no dry run of quantizing ({compat.newer_build(library)}); quantize "
            "without it"
        )
    values = _values(
        library, ftype, 1, allow_requantize, output_tensor_type, token_embedding_type, pure
    )
    lines: list[str] = []
    # C opens no target in a dry run.
    _run(_job(library, files, files.paths[0], {**values, "dry_run": True}), lambda _: True, lines)
    changed = {found[1]: found[2].upper() for line in lines if (found := _CHANGED.match(line))}
    tensors = (_quantized(t, changed.get(t.name)) for t in files.summary.tensors)
    return QuantizePlan(str(ftype).upper(), tuple(tensors))


def _quantized(tensor: GgufTensor, new_type: str | None) -> QuantizedTensor:
    size = tensor.size_bytes or 0
    after = size if new_type is None else bytes_of(tensor, new_type)
    return QuantizedTensor(
        tensor.name, tensor.shape, tensor.type_name, new_type or tensor.type_name, size, after
    )


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
    values = _values(
        library, ftype, n_threads, allow_requantize, output_tensor_type, token_embedding_type, pure
    )
    values |= {"only_copy": bool(only_copy), "keep_split": bool(keep_split)}
    path = Path(os.fsdecode(target)).expanduser()
    outputs = _output_files(path, len(files.paths) if keep_split else 0)
    _check_target(path, outputs, files, overwrite, "" if only_copy else str(ftype).upper())
    with tempfile.TemporaryDirectory(prefix=f".{path.name[:50]}.", dir=path.parent) as folder:
        temporary = Path(folder) / (path.stem if keep_split else path.name)
        with reporting(progress, path.name) as report:
            _run(_job(library, files, temporary, values), report, [])
        for file in outputs:
            os.replace(Path(folder) / file.name, file)
    return outputs[0]


def _values(
    library: Library,
    ftype: str,
    n_threads: int,
    allow_requantize: bool,
    output_tensor_type: str | None,
    token_embedding_type: str | None,
    pure: bool,
) -> dict[str, Any]:
    """Return the checked fields of C's parameters."""
    known = compat.file_types(library)
    name = str(ftype).upper()
    if name not in known:
        raise ValidationError(f"ftype={ftype!r} is not one of {', '.join(known)}")
    return {
        "ftype": known[name],
        "nthread": thread_count("n_threads", n_threads),
        "output_tensor_type": _tensor_type(library, "output_tensor_type", output_tensor_type),
        "token_embedding_type": _tensor_type(library, "token_embedding_type", token_embedding_type),
        "allow_requantize": bool(allow_requantize),
        "pure": bool(pure),
    }


def _job(
    library: Library, files: ModelFiles, target: Path, values: dict[str, Any]
) -> dict[str, Any]:
    """Return what the child reads."""
    return {
        "library": str(library.path),
        "source": str(files.paths[0]),
        "target": str(target),
        "values": {key: value for key, value in values.items() if value is not None},
    }


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


def _run(job: dict[str, Any], report: Callable[[float], bool], lines: list[str]) -> None:
    """Run the child until it reports the result; it never outlives this call.

    *lines* gets the lines of C.
    """
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
                    lines.append(message["line"])
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
