"""Check the documented features of other libraries with llama_cffi, on the demo model.

    python tools/acceptance              prints a line per feature; exit code 1 if one fails
    LLAMA_CFFI_BUILD=npm:3.1.1 python tools/acceptance polaris nanobind

Greedy token ids are compared with those of the raw C API of the loaded build.
"""

from __future__ import annotations

import sys
import traceback
import warnings

import cortexstream  # noqa: F401  (these modules fill LINES)
import cyllama  # noqa: F401
import nanobind  # noqa: F401
import nanobind_pool  # noqa: F401
import nanobind_sessions  # noqa: F401
import polaris  # noqa: F401
from lines import LINES

from llama_cffi import get_library


def main() -> int:
    """Run the checks of the libraries named on the command line, or of all."""
    failed = 0
    # The demo model was trained for 1,024 tokens; other libraries' examples have contexts of 4,096.
    warnings.filterwarnings("ignore", "n_ctx=", UserWarning)
    build = get_library().build
    for library in sys.argv[1:] or sorted(LINES):
        print(f"{library} on {build.tag or build.library} ({build.variant})")
        for feature, check in LINES[library]:
            try:
                check()
                print(f"  [OK] {feature}", flush=True)
            except Exception:
                failed += 1
                print(f"  [FAILED] {feature}\n{traceback.format_exc()}", flush=True)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
