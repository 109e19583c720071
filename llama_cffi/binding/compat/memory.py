"""The memory of a context."""

from __future__ import annotations

from typing import Any

from ..library import Library

__all__ = ["memory_call"]


def memory_call(library: Library, context: Any, verb: str) -> Any:
    """Return `verb(*args)` over the context's memory, whatever the build calls it.

    `kv_cache_*` on the context (until b4980), `kv_self_*` (until b6122), then `memory_*` on the
    handle of `llama_get_memory` (since b5640).
    """
    lib = library.lib
    if library.has(f"llama_memory_{verb}"):
        function = getattr(lib, f"llama_memory_{verb}")
        memory = lib.llama_get_memory(context)
        return lambda *args: function(memory, *args)
    for prefix in ("llama_kv_self_", "llama_kv_cache_"):
        if library.has(prefix + verb):
            function = getattr(lib, prefix + verb)
            if verb == "clear":  # took no `data` flag then
                return lambda _data=True: function(context)
            return lambda *args: function(context, *args)
    raise AttributeError(f"{library!r} has no memory operation {verb!r}")
