"""Try a model in a child process before this one loads it, and remember the result."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import __version__, libs_fetch
from ...child_process import can_start, child_command, child_environment, cpu_seconds, death
from ...errors import LlamaError, ModelLoadError, ValidationError
from ..loading import cache_files
from ..loading.library import Library
from .files import ModelFiles, Override
from .preflight import is_ordinary

__all__ = ["CHECKS", "FINISHED", "STARTED", "chosen_check", "try_model", "try_projector"]

CHECKS = ("auto", "child", "rules")
STARTED, FINISHED = "@started", "@finished"  # what the child reports
_SMALL_BYTES = 64 * 2**20
_SECONDS, _BYTES_PER_SECOND = 60, 20 * 2**20
# What C says last, the most telling first.
_REASONS = (r"GGML_ASSERT\(.*", r"what\(\).*", r"[\w.-]+\.(?:c|cpp|h|cu):\d+: .*")
# The verdicts of this process: key -> why the child died, or "".
_verdicts: dict[str, str] = {}
_log = logging.getLogger(__name__)


def try_model(
    files: ModelFiles,
    library: Library,
    check: str | None,
    *,
    vocab_only: bool = False,
    overrides: Mapping[str, Override] | None = None,
) -> None:
    """Load a model and compute a few tokens in a child process, if that was not done before.

    Args:
        files: The files, which have passed the rules of `preflight`.
        library: The build.
        check: `child`; `auto`, which leaves out large files and models about which the rules
            decide; `rules`, which does nothing; None = the environment's.
        vocab_only: As for `Model`.
        overrides: As for `Model`.

    Raises:
        ModelLoadError: The child crashed, or gave no answer.
        LlamaError: *check* is `child`, and no child can be started.
        ValidationError: *check* is none of these.
    """
    check = chosen_check(check)
    size = sum(part.size_bytes for part in files.parts)
    if check == "rules":
        return
    if check == "auto" and (size > _SMALL_BYTES or is_ordinary(files.summary) or not can_start()):
        return
    job = {
        "library": str(library.path),
        "paths": [os.fsdecode(path.absolute()) for path in files.paths],
        "listed": files.listed,
        "vocab_only": vocab_only,
        "overrides": dict(overrides or {}),
    }
    _try(job, files.fingerprint(), files.paths[0], library, check, size)


def try_projector(
    path: Path, fingerprint: str, size: int, model: Path, library: Library, check: str | None
) -> None:
    """Load a projector with its model and encode a picture and a sound in a child process.

    Args:
        path: The projector, which has passed the rules of `gguf.projector_check`.
        fingerprint: Of the projector.
        size: Bytes of both files.
        model: The model's file; with `auto` large ones are not tried.
        library: The build.
        check: See `try_model`, also for the errors.
    """
    check = chosen_check(check)
    if check == "rules" or (check == "auto" and (size > _SMALL_BYTES or not can_start())):
        return
    paths = [os.fsdecode(model.absolute())]
    projector = os.fsdecode(path.absolute())
    job = {"library": str(library.path), "paths": paths, "projector": projector}
    _try(job, fingerprint, path, library, check, size)


def chosen_check(check: str | None) -> str:
    """Return *check*, or that of the environment.

    Raises:
        ValidationError: It is not one of `CHECKS`.
    """
    name = "check"
    if check is None:
        name, check = "LLAMA_CFFI_CHECK", os.environ.get("LLAMA_CFFI_CHECK") or "auto"
    if check not in CHECKS:
        raise ValidationError(f"{name}={check!r} is not one of {', '.join(CHECKS)}")
    return check


def _try(
    job: dict[str, Any], fingerprint: str, path: Path, library: Library, check: str, size: int
) -> None:
    """Do a job in a child process, unless its result is known; raise if the child crashed."""
    key = _key(job, fingerprint, library)
    cached = libs_fetch.cache_dir() / "models" / key
    if key not in _verdicts and (known := cache_files.read(cached)) is not None:
        _verdicts[key] = known.decode("utf-8", "replace")
    if key not in _verdicts:
        verdict, is_final = _run(job, _SECONDS + size / _BYTES_PER_SECOND)
        if verdict is None:
            if check == "child":
                raise LlamaError(f"no child process could be started to try {path}")
            return
        _verdicts[key] = verdict
        if is_final:
            cache_files.write(cached, verdict.encode())
    if reason := _verdicts[key]:
        build = library.name
        raise ModelLoadError(
            f"{path} was tried in a child process, which {reason}. The file is damaged, "
            f"or build {build} cannot run this model: compare its checksum, or use another build. "
            "check='rules' loads it all the same, and may end this process"
        )


def _key(job: dict[str, Any], fingerprint: str, library: Library) -> str:
    """Return a name for the result: of these files, this build and these options."""
    build = library.path.stat()
    options = {k: v for k, v in job.items() if k not in ("paths", "projector")}
    facts = [__version__, fingerprint, build.st_size, build.st_mtime_ns, options]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _run(job: dict[str, Any], timeout_s: float) -> tuple[str | None, bool]:
    """Return why the child died, or ""; None if it did not get to the model, or far enough.

    Returns:
        That, and whether it would be the same next time.
    """
    command = child_command("llama_cffi.binding.trial_child", json.dumps(job))
    before_s = cpu_seconds()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        after_s = cpu_seconds()
        if before_s is not None and after_s is not None and after_s - before_s < timeout_s / 2:
            _log.debug("the child process got too little processor time to try the model")
            return None, False
        return f"gave no answer within {timeout_s:.0f} s", False
    except OSError as e:
        _log.debug("no child process could be started: %s", e)
        return None, False
    said = done.stdout.decode("utf-8", "replace").split()
    printed = done.stderr.decode("utf-8", "replace")
    if FINISHED in said:
        return "", True
    if STARTED not in said:
        _log.debug("the child process could not try the model: %s", printed)
        return None, False
    how = death(done.returncode) or "no result"
    found = [match[0].strip() for reason in _REASONS if (match := re.search(reason, printed))]
    return f"ended with {': '.join([how, *found[:1]])}", how != "SIGKILL"
