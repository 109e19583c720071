"""What the tests of llama-cpp-python check, through the drop-in `llama_cffi.llama_cpp`.

https://github.com/abetlen/llama-cpp-python/tree/main/tests
"""

from __future__ import annotations

import llama_cffi.llama_cpp as llama_cpp


def test_the_module_has_a_version() -> None:
    assert llama_cpp.__version__
