"""Try a model in a child process before this one loads it, and remember the result."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any

from ... import __version__, libs_fetch
from ...child_process import can_start, child_command, child_environment, cpu_seconds, death
from ...errors import LlamaError, ModelLoadError, ValidationError
from ..loading import cache_files
from ..loading.library import Library
from .files import ModelFiles, Override
from .preflight import is_ordinary

__all__ = ["CHECKS", "FINISHED", "STARTED", "try_model"]

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
    name = "check"
    if check is None:
        name, check = "LLAMA_CFFI_CHECK", os.environ.get("LLAMA_CFFI_CHECK") or "auto"
    if check not in CHECKS:
        raise ValidationError(f"{name}={check!r} is not one of {', '.join(CHECKS)}")
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
    key = _key(files, library, job)
    cached = libs_fetch.cache_dir() / "models" / key
    if key not in _verdicts and (known := cache_files.read(cached)) is not None:
        _verdicts[key] = known.decode("utf-8", "replace")
    if key not in _verdicts:
        verdict, is_final = _run(job, _SECONDS + size / _BYTES_PER_SECOND)
        if verdict is None:
            if check == "child":
                raise LlamaError(f"no child process could be started to try {files.paths[0]}")
            return
        _verdicts[key] = verdict
        if is_final:
            cache_files.write(cached, verdict.encode())
    if reason := _verdicts[key]:
        build = library.name
        raise ModelLoadError(
            f"{files.paths[0]} was tried in a child process, which {reason}. The file is damaged, "
            f"or build {build} cannot run this model: compare its checksum, or use another build. "
            "check='rules' loads it all the same, and may end this process"
        )


def _key(files: ModelFiles, library: Library, job: dict[str, Any]) -> str:
    """Return a name for the result: of these files, this build and these options."""
    build = library.path.stat()
    options = {k: v for k, v in job.items() if k != "paths"}
    facts = [__version__, files.fingerprint(), build.st_size, build.st_mtime_ns, options]
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
