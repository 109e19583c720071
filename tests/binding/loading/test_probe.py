"""Probing a real library: both ways of prefilling agree, and agree with the table."""

from __future__ import annotations

import json

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child

PROBE = """
import json
from llama_cffi import cdefs, get_library
from llama_cffi.binding.loading import probe
from llama_cffi.binding.loading.declarations import load_ffi
from llama_cffi.libs_fetch import cache_dir

library = get_library()
ffi = load_ffi("bootstrap", "test", lambda: probe.BOOTSTRAP, cache_dir() / "declarations")
boot = ffi.dlopen(str(library.path))
c = library.abi.abi_class
for struct, function in probe._PROBED.items():
    f = ffi.addressof(boot, function)
    register, callback = (
        probe._written(lambda fill: way(ffi, f, fill))
        for way in (probe._through_register, probe._through_callback)
    )
    # The first 16 bytes of a freed block hold the allocator's own pointers.
    assert register[16:] == callback[16:], struct
    size = c.layouts[struct].size
    assert set(register[size:]) == {0}, struct
    assert all(w for w, field in zip(register, c.layouts[struct].written) if field), struct
print(json.dumps([library.abi.name, library.abi.verdict]))
"""


@pytest.mark.lib
@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_register_and_callback_probes_measure_the_same(child: Child, build: str) -> None:
    done = child(PROBE, LLAMA_CFFI_BUILD=build)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1] == "exact"


@pytest.mark.lib
def test_operation_numbers_of_another_class_are_detected(child: Child) -> None:
    """b6845's `enum ggml_op` on a b6673 build: found without reading outside the library."""
    done = child(
        """
        import cffi
        from llama_cffi import cdefs, get_library
        from llama_cffi.binding.loading import probe
        from llama_cffi.binding.loading.declarations import load_ffi
        from llama_cffi.binding.loading.process_maps import is_mapped
        from llama_cffi.libs_fetch import cache_dir

        loaded = get_library()
        boot_ffi = load_ffi("bootstrap", "test", lambda: probe.BOOTSTRAP, cache_dir())
        boot = boot_ffi.dlopen(str(loaded.path))
        assert probe.check_operations(loaded.ffi, boot_ffi, boot, is_mapped) == ""
        for name in ("b3889", "b7698", "b11549"):
            other = cffi.FFI()
            other.cdef(cdefs.declarations(name))
            print(probe.check_operations(other, boot_ffi, boot, is_mapped))
        """,
        LLAMA_CFFI_BUILD=MIDDLE,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("operation ") for line in lines)
