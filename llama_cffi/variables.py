"""The environment variables that llama_cffi reads, and those that are misspelt."""

from __future__ import annotations

import difflib
import os

__all__ = ["NAMES", "unknown_variables"]

_PREFIX = "LLAMA_CFFI_"
_OF_TESTS = "LLAMA_CFFI_TEST_"
# docs/environment.md says what they mean; a test compares this with it and with the code.
NAMES = frozenset(
    _PREFIX + name
    for name in (
        "ABI", "BACKEND", "BUILD", "CACHE", "CHECK", "CPU_VARIANT", "GITHUB", "HEADERS", "LIB",
        "NPM_REGISTRY", "OFFLINE", "VERIFY", "N_THREADS", "TUNED", "API_KEY",
        # Of `Engine`.
        "BATCH", "FLUSH", "JINJA", "MS_FLUSH", "N_GPU_LAYERS", "RESET_KV", "SAFETY", "SPECIAL",
        "STAGE", "SUPPRESS_THINK", "TOKFLUSH", "UBATCH",
        # Of `Whisper`.
        "WHISPER_LIB",
    )
)  # fmt: skip


def unknown_variables() -> dict[str, str]:
    """Return the `LLAMA_CFFI_…` variables that nothing reads, each with a sentence about it."""
    found = {}
    for name in sorted(os.environ):
        if not name.startswith(_PREFIX) or name in NAMES or name.startswith(_OF_TESTS):
            continue
        near = difflib.get_close_matches(
            name.removeprefix(_PREFIX), [n.removeprefix(_PREFIX) for n in sorted(NAMES)], 1
        )
        advice = f"did you mean {_PREFIX}{near[0]}?" if near else "see docs/environment.md"
        found[name] = f"the environment variable {name} has no effect; {advice}"
    return found
