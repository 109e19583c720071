"""Wrong arguments of Llama raise an error that names the argument, and never crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

from llama_cffi.demo import model_path

MACHINE = Path(__file__).parents[1] / "support" / "llama_machine.py"


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_wrong_arguments(child: Child, build: str) -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = child(code, MACHINE, model_path(), timeout=100, LLAMA_CFFI_BUILD=build)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    assert int(done.stdout) > 700
