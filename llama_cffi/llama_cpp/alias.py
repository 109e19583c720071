"""`llama_cpp.x` for `llama_cffi.llama_cpp.x`.

After `sys.modules["llama_cpp"] = llama_cffi.llama_cpp`, Python would otherwise import the
submodules a second time under the other name, with different classes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["Alias"]

_HERE = __name__.rpartition(".")[0]


class Alias(MetaPathFinder, Loader):
    """Finds the submodules of `llama_cpp` while it is an alias of this package."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a submodule of `llama_cpp`, None for anything else."""
        root, _, rest = name.partition(".")
        if root != "llama_cpp" or not rest or sys.modules.get(root) is not sys.modules[_HERE]:
            return None
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module under its real name."""
        module = importlib.import_module(_HERE + "." + spec.name.partition(".")[2])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec; it is executed already."""
        spec = module.__spec__
        module.__spec__ = None if spec is None else spec.loader_state
