from __future__ import annotations

from pathlib import Path

import pytest
from conftest import MIDDLE, NEWEST, OLD, Child

BUILDS = pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])


@BUILDS
def test_numa_once(child: Child, tiny_model: Path, build: str) -> None:
    """C prints to stderr when it is told twice."""
    code = """
        import sys
        from llama_cffi import Model, ValidationError, get_library
        library = get_library()
        library.numa_init("disabled")
        library.numa_init("distribute")
        library.numa_init("distribute")
        for strategy in ("isolate", "disabled", "nonsense", "count"):
            try:
                library.numa_init(strategy)
            except ValidationError as e:
                print(e)
        Model(sys.argv[1]).close()
    """
    result = child(code, tiny_model, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    said = result.stdout.splitlines()
    assert len(said) == 4
    assert all("'distribute' is in force" in line for line in said[:2])
    assert all("disabled, distribute, isolate, mirror, numactl" in line for line in said[2:])
