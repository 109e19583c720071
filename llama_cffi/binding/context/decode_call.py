"""The call of llama_decode, and what has to go with the next one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import compat
from .decode_errors import REFUSED
from .step_watch import StepWatch

if TYPE_CHECKING:
    from .context import Context

__all__ = ["DecodeCall"]

_GRAPH_WAS_BUILT = (0, 2)  # codes of llama_decode: success, stopped by the abort flag


class DecodeCall:
    """Calls llama_decode for one context.

    Attributes:
        run: Takes the C pointers of the context and of a batch and returns C's code. It is C's
            own function unless something is pending or steps are timed, since every generated
            token goes through it.
        updates_memory: Whether the next call first shifts positions or copies sequences.
        updated: The sequences whose cells it changes; -1: any.
    """

    def __init__(self, context: Context) -> None:
        self._ref = weakref.ref(context)  # which owns this object
        self._decode: Callable[[Any, Any], int] = context.library.lib.llama_decode
        self.run = self._decode
        self._watch = StepWatch()
        self.updates_memory = False
        self.updated: set[int] = set()
        self._rebuilds_graph = False
        self._replans = False
        # The values of the last graph, where they may differ from those of the context.
        self._last: dict[str, bool] = {}

    @property
    def _context(self) -> Context:
        context = self._ref()
        assert context is not None  # it is decoding
        return context

    def hold_abort(self, seq_id: int = -1) -> None:
        """Let the next call ignore the abort flag, because it updates *seq_id* first; -1: any.

        When aborted there, C would leave some layers shifted and shift them again.
        """
        self.updates_memory = True
        self.updated.add(seq_id)
        self.run = self._run_prepared

    def rebuild_graph(self) -> None:
        """Let the next call build its graph anew, where C would reuse one without a change."""
        context = self._context
        self._replan()
        if compat.reuses_stale_graphs(context.library):
            # Graphs of recurrent models are never reused, and their memory cannot drop a token.
            self._rebuilds_graph = not context.model.keeps_states
            self.run = self._run_prepared

    def switches(self, name: str, before: bool) -> None:
        """Note that the context's attribute *name* is changed; the last graph had *before*."""
        self._last.setdefault(name, before)
        self.run = self._run_prepared
        self._replan()

    @property
    def can_replan(self) -> bool:
        """Whether C plans the memory of a graph that differs from the last, or can be made to."""
        context = self._context
        library = context.library
        return not compat.plans_by_counts(library) or (
            compat.can_plan_graph(library) and not context.model.keeps_states
        )

    def _replan(self) -> None:
        """Let the next call plan the memory of its graph, where C would take the last plan."""
        if compat.plans_by_counts(self._context.library) and self.can_replan:
            self._replans = True
            self.run = self._run_prepared

    def watch_steps(self) -> None:
        """Time some of the next steps, to warn if their threads wait for processors."""
        if self._context.n_threads > 1:
            self._watch.start()
            if self._watch.active and self.run is self._decode:
                self.run = self._run_timed

    def _run_timed(self, ptr: Any, batch: Any) -> int:
        context, watch = self._context, self._watch
        watch.judge()
        if not watch.active:
            self.run = self._decode
        n_tokens: int = batch.n_tokens
        n_threads = context.n_threads if n_tokens == 1 else context.n_threads_batch
        if n_threads == 1:  # that waits for nobody
            return self._decode(ptr, batch)
        started = watch.clock()
        code = self._decode(ptr, batch)
        if code == 0:
            watch.add(n_tokens, n_threads, watch.clock() - started)
        return code

    def _run_prepared(self, ptr: Any, batch: Any) -> int:
        context = self._context
        lib, flag = context.library.lib, context.abort_flag
        if self.updates_memory or self._replans:
            flag.detach(ptr)
            compat.prepare_update(context.library, ptr)
        if self._replans:
            compat.plan_graph(context.library, ptr)
        code = self._run_another_graph(ptr, batch) if self._rebuilds_graph else 0
        if code == 0:
            code = int(lib.llama_decode(ptr, batch))
            if code in _GRAPH_WAS_BUILT:
                self._rebuilds_graph = self._replans = False
                self._last.clear()
        flag.attach(ptr)
        if code != REFUSED:
            self.updates_memory = False
            self.updated.clear()
        if code == 0:
            self.run = self._decode
        return code

    def _run_another_graph(self, ptr: Any, batch: Any) -> int:
        """Decode one token with a different graph than the last one, and drop it.

        Nothing is needed if the next decode differs from it anyway. If this fails, the next decode
        must not run: the last graph may contain adapters that are freed.
        """
        context = self._context
        lib, ffi = context.library.lib, context.library.ffi
        # Pooling may need more tokens or another model, and without a memory nothing is causal.
        switch, name = lib.llama_set_embeddings, "embeddings"
        if compat.has_memory(context.library, ptr):
            switch, name = lib.llama_set_causal_attn, "causal_attn"
        current: bool = getattr(context, name)
        if self._last.get(name, current) != current:
            return 0
        wanted = ffi.new("int8_t *", 1)
        one = ffi.new("struct llama_batch *", batch)
        one.n_tokens, one.logits = 1, wanted
        switch(ptr, not current)
        code = int(lib.llama_decode(ptr, one[0]))
        switch(ptr, current)
        if code in _GRAPH_WAS_BUILT:
            self._rebuilds_graph = False
            self._last[name] = not current
            for k in range(one.n_seq_id[0]):
                context.memory.seq_rm(one.seq_id[0][k], one.pos[0])
        return code
