"""Print the CPU variants of the build in use that load on this machine, the best one first."""

from __future__ import annotations

from llama_cffi.doctor.backends import cpu_variants
from llama_cffi.libs_fetch import ensure

for name, reason in cpu_variants(ensure(), timeout_s=60).items():
    if not reason:
        print(name)
