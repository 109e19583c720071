"""The memory of a context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..loading.library import Library

if TYPE_CHECKING:
    from ...gguf.reader import GgufSummary

__all__ = [
    "breaks_states",
    "can_shift",
    "defrag",
    "has_pos_min",
    "memory_call",
    "mixes_states",
    "separates_hybrids",
    "seq_pos_max",
]


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


def has_pos_min(library: Library) -> bool:
    """Whether the build tells the smallest position of a sequence (b5590).

    Caches that drop what left a sliding window came with it; older ones keep every position.
    """
    return any(library.has(f"llama_{m}_seq_pos_min") for m in ("memory", "kv_self"))


def seq_pos_max(library: Library, context: Any, seq_id: int, n_seq_max: int) -> int:
    """Return the largest position of a sequence, -1 when it is empty.

    C: llama_memory_seq_pos_max, which said 0 of an empty sequence before b5590.
    """
    last = int(memory_call(library, context, "seq_pos_max")(seq_id))
    if last == 0 and not has_pos_min(library):
        return 0 if _in_cells(library, context, seq_id, n_seq_max) else -1
    return last


def _in_cells(library: Library, context: Any, seq_id: int, n_seq_max: int) -> bool:
    """Whether a sequence has a cell. C: llama_kv_cache_view_update, until b5590."""
    ffi, lib = library.ffi, library.lib
    view = ffi.new("struct llama_kv_cache_view *", lib.llama_kv_cache_view_init(context, n_seq_max))
    try:
        lib.llama_kv_cache_view_update(context, view)
        return seq_id in ffi.unpack(view.cells_sequences, view.n_cells * n_seq_max)
    finally:
        lib.llama_kv_cache_view_free(view)


def can_shift(library: Library, context: Any, gguf: GgufSummary) -> bool:
    """Whether positions can be shifted. C: llama_memory_can_shift.

    The builds without it (before b4234) abort on deepseek2, and those before b5590 on models
    with several positions for each token (M-RoPE), when the next decode applies the shift.
    """
    sections = f"{gguf.architecture}.rope.dimension_sections"
    if sections in gguf.arrays and not has_pos_min(library):
        return False
    try:
        return bool(memory_call(library, context, "can_shift")())
    except AttributeError:
        return gguf.architecture != "deepseek2"


def defrag(library: Library, context: Any) -> bool:
    """Queue a defragmentation; False where the build has none, from b6301 on."""
    for name in ("llama_kv_self_defrag", "llama_kv_cache_defrag"):
        if library.has(name):
            getattr(library.lib, name)(context)
            return True
    return False


def breaks_states(library: Library) -> bool:
    """Whether only `clear` helps after a failed decode of a recurrent model.

    Measured in b4600: its own cleaning up leaves sequences that the next decode aborts on. b3889
    does not, nor do b5640 and later builds.
    """
    return library.has("llama_model_load_from_file") and not has_pos_min(library)


def mixes_states(library: Library) -> bool:
    """Whether the states of several sequences of a recurrent model get mixed up.

    Measured in b3889: a sequence that begins beside another one after a third was removed gives
    both of them wrong states, and later ones end the process. b6673 does neither.
    """
    return not has_pos_min(library)


def separates_hybrids(library: Library) -> bool:
    """Whether sequences of a hybrid model can have caches of their own.

    Measured: b6673 aborts (`GGML_ASSERT(a->ne[3]%mask->ne[3] == 0)`), b8179 does not.
    """
    return library.has("llama_model_is_hybrid")
