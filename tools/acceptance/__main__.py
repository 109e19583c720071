"""Run every line of what other libraries promise their users, on the demo model.

    python tools/acceptance              prints a line per promise; status 1 if one is not kept
    LLAMA_CFFI_BUILD=npm:3.1.1 python tools/acceptance polaris nanobind

Greedy ids are compared with the same steps through the raw C API of the loaded build.
"""

from __future__ import annotations

import sys
import traceback

import cortexstream  # noqa: F401  (they fill LINES)
import cyllama  # noqa: F401
import nanobind  # noqa: F401
import nanobind_pool  # noqa: F401
import nanobind_sessions  # noqa: F401
import polaris  # noqa: F401
from lines import LINES

from llama_cffi import get_library


def main() -> int:
    """Run the lines of the sources that the command line names."""
    failed = 0
    build = get_library().build
    for source in sys.argv[1:] or sorted(LINES):
        print(f"{source} on {build.tag or build.library} ({build.variant})")
        for promise, check in LINES[source]:
            try:
                check()
                print(f"  [OK] {promise}", flush=True)
            except Exception:
                failed += 1
                print(f"  [FAILED] {promise}\n{traceback.format_exc()}", flush=True)
    print(f"{failed} failed" if failed else "all kept")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
