"""Print the CPU variants of the build in use that load on this machine, one per line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from llama_cffi.libs_fetch import ensure

_FILE = re.compile(r"(?:lib)?ggml-cpu-(.+)\.(?:so|dll)")


def loads(variant: str) -> bool:
    """Return whether a new process can load the library with *variant*."""
    env = {**os.environ, "LLAMA_CFFI_CPU_VARIANT": variant}
    code = "import llama_cffi; llama_cffi.get_library()"
    return not subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode


names = (_FILE.fullmatch(path.name) for path in sorted(ensure().folder.iterdir()))
for name in [match[1] for match in names if match]:
    if loads(name):
        print(name)
