"""Startup time before the first token: importing the package and loading the library.

    python benchmarks/startup.py [--runs 21]

Each run is a new process; `import llama_cffi` alternates with an empty program, so that changes of
the machine's speed affect both. Prints medians, and which heavy modules the import loads.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

LOAD = """
import time
import llama_cffi
start = time.perf_counter()
library = llama_cffi.get_library()
print((time.perf_counter() - start) * 1000, library.abi.name, library.abi.verdict)
"""
HEAVY = ("numpy", "jinja2", "cffi", "_cffi_backend", "huggingface_hub", "tqdm", "ctypes")


def process_ms(code: str) -> float:
    """Return the wall time of a Python process that runs *code*, in ms."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (time.perf_counter() - start) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=21)
    runs = parser.parse_args().runs
    subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True)  # fills caches
    empty, imported, loaded = [], [], []
    for _ in range(runs):
        empty.append(process_ms("pass"))
        imported.append(process_ms("import llama_cffi"))
        done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True)
        loaded.append(float(done.stdout.split()[0]))
    base, extra = statistics.median(empty), statistics.median(imported)
    print(f"python -c pass            {base:7.1f} ms (median of {runs})")
    print(f"import llama_cffi         {extra - base:+7.1f} ms over it (target: at most 30)")
    print(f"get_library(), warm       {statistics.median(loaded):7.1f} ms (target: at most 100)")
    print(f"                          {done.stdout.split()[1]}, {done.stdout.split()[2]}")
    code = f"import sys, llama_cffi; print([m for m in {HEAVY!r} if m in sys.modules])"
    touched = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    print(f"heavy modules imported    {touched.stdout.strip()}")


if __name__ == "__main__":
    main()
