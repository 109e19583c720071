"""The memory of a context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...validation import INT32_MAX
from ..loading.library import Library
from .names import is_b4980

if TYPE_CHECKING:
    from ...gguf.reader import GgufSummary

__all__ = [
    "can_shift",
    "defrag",
    "keeps_removed_states",
    "memory_call",
    "mixes_up_states",
    "needs_clear_after_failure",
    "prepare_update",
    "reports_pos_min",
    "separates_hybrids",
    "seq_pos_max",
]


def memory_call(library: Library, context: Any, verb: str) -> Any:
    """Return a function `verb(*args)` of the context's memory, under any of its names.

    These were `kv_cache_*` of the context (until b4980), `kv_self_*` (until b6122), and are
    `memory_*` of the handle from `llama_get_memory` (since b5640).
    """
    lib = library.lib
    if library.has(f"llama_memory_{verb}"):
        function = getattr(lib, f"llama_memory_{verb}")
        memory = lib.llama_get_memory(context)
        return lambda *args: function(memory, *args)
    for prefix in ("llama_kv_self_", "llama_kv_cache_"):
        if library.has(prefix + verb):
            function = getattr(lib, prefix + verb)
            if verb == "clear":  # it had no `data` flag
                return lambda _data=True: function(context)
            return lambda *args: function(context, *args)
    raise AttributeError(f"{library!r} has no memory operation {verb!r}")


def reports_pos_min(library: Library) -> bool:
    """Whether the build reports the smallest position of a sequence (b5590).

    Caches that drop positions outside a sliding window came with it; older ones keep all.
    """
    return any(library.has(f"llama_{m}_seq_pos_min") for m in ("memory", "kv_self"))


def seq_pos_max(library: Library, context: Any, seq_id: int, n_seq_max: int) -> int:
    """Return the largest position of a sequence, -1 if it is empty.

    C: llama_memory_seq_pos_max, which returned 0 for an empty sequence before b5590.
    """
    last = int(memory_call(library, context, "seq_pos_max")(seq_id))
    if last == 0 and not reports_pos_min(library):
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

    Builds without it (before b4234) abort on deepseek2, and those before b5590 on models with
    several positions per token (M-RoPE), when the next decode applies the shift.
    """
    sections = f"{gguf.architecture}.rope.dimension_sections"
    if sections in gguf.arrays and not reports_pos_min(library):
        return False
    try:
        return bool(memory_call(library, context, "can_shift")())
    except AttributeError:
        return gguf.architecture != "deepseek2"


def defrag(library: Library, context: Any) -> bool:
    """Schedule a defragmentation; False if the build has none, as from b6301 on.

    That of b4980 asserts, see `prepare_update`.
    """
    if is_b4980(library):
        return False
    for name in ("llama_kv_self_defrag", "llama_kv_cache_defrag"):
        if library.has(name):
            getattr(library.lib, name)(context)
            return True
    return False


def prepare_update(library: Library, context: Any) -> None:
    """Prepare for a decode that first shifts or divides positions.

    b4980 then plans a graph behind the last cell that was used, and asserts if that is outside of
    the cache. Shifting nothing makes it begin with the first one.
    """
    if is_b4980(library):
        memory_call(library, context, "seq_add")(0, INT32_MAX - 1, INT32_MAX, 1)


def needs_clear_after_failure(library: Library) -> bool:
    """Whether the memory of a recurrent model must be cleared after a failed decode.

    Measured in b4600: its own cleanup leaves sequences that the next decode aborts on. b3889,
    b5640 and later builds do not.
    """
    return library.has("llama_model_load_from_file") and not reports_pos_min(library)


def mixes_up_states(library: Library) -> bool:
    """Whether the build mixes up the states of several sequences of a recurrent model.

    Measured in b3889: if a sequence starts beside another one after a third was removed, both get
    wrong states, and later ones end the process. b5640 does neither.
    """
    return not library.has("llama_get_memory")


def keeps_removed_states(library: Library) -> bool:
    """Whether a recurrent sequence that is removed and begins again gets its old state.

    Measured in b4980 and b5590; clearing the whole memory helps.
    """
    return library.has("llama_get_kv_self") and mixes_up_states(library)


def separates_hybrids(library: Library) -> bool:
    """Whether sequences of a hybrid model can have separate caches.

    Measured: b6673 aborts (`GGML_ASSERT(a->ne[3]%mask->ne[3] == 0)`), b8179 does not.
    """
    return library.has("llama_model_is_hybrid")
