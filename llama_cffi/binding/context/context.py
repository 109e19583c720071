"""A context: the state of decoding with a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import LlamaError, ValidationError
from .. import compat
from ..loading.library import Library
from ..model.kind import model_kind
from ..model.model import Model
from . import state
from .abort_flag import AbortFlag
from .adapters import LoraAdapter, activate, apply_control_vector
from .batch import Batch
from .batch_checks import check_decode, check_encode, needs_rules
from .decode_errors import REFUSED, failure, roll_back
from .memory import Memory
from .outputs import Outputs, Perf
from .params import ContextParams, check_embeddings, resolve
from .threadpool import ThreadPool, thread_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .params import ContextOptions

__all__ = ["Context"]


class Context(Outputs):
    """Decoding state (KV cache, buffers, threads) of one model.

    One thread at a time may use it; `Engine` brings the lock.

    Args:
        model: Closes this context when it closes.
        **options: Fields of `ContextParams`.

    Attributes:
        abort_flag: Stops `decode` and `encode` from outside.
        abortable: Whether it stops them at once; layers on a GPU are computed to the end.
        memory: What is remembered of each sequence.
        kind: What the model can do.
        embeddings: Whether `decode` makes embeddings.
        mtp: Whether it is of the model's own head for the token after the next.
        causal_attn: Whether tokens see only those before them.
        pooling: How the embeddings of a sequence become one.
        adapters: The active LoRA adapters and their scales.

    Raises:
        ValidationError: A value is out of range or does not go with the model or the build, or
            the model has no weights (vocab_only).
        LlamaError: There is not enough memory, or C refused, with what it logged.
    C: llama_init_from_model
    """

    def __init__(self, model: Model, **options: Unpack[ContextOptions]) -> None:
        library = model.library
        if model.vocab_only:
            raise ValidationError("the model was loaded with vocab_only; it cannot decode")
        self.kind = model_kind(model)
        values = resolve(ContextParams(**options), model, self.kind)
        n_ctx, n_threads, n_threads_batch = (
            values[k] for k in ("n_ctx", "n_threads", "n_threads_batch")
        )
        params = compat.context_params(library, **values)
        self._pools = _pools(library, n_threads, n_threads_batch)
        with library.logs.capture() as lines:
            held = model.hold()
            ptr = compat.init_context(library, model.ptr, params)
            del held
        if not ptr:
            raise LlamaError(
                f"llama.cpp could not make a context of n_ctx={n_ctx} for {model.path.name}: "
                f"{'; '.join(lines[-3:]) or 'no reason given'}. Try a smaller n_ctx."
            )
        super().__init__(ptr, library.lib.llama_free, parent=model, keeps=self._pools.values())
        library.logs.raise_interrupt()
        self.model, self.library, self.params = model, library, params
        lib = library.lib
        self.abort_flag = AbortFlag(library)
        lib.llama_set_abort_callback(ptr, self.abort_flag.callback, self.abort_flag.data)
        # The flag reaches only the CPU's backend in any build; what others have begun they finish.
        self.abortable = not model.offloads
        self.n_ctx: int = lib.llama_n_ctx(ptr)
        # C rounds n_batch up to its padding, and n_seq_max was the cache's size before b4980.
        self.n_batch: int = min(values["n_batch"], lib.llama_n_batch(ptr))
        self.n_ubatch: int = min(values["n_ubatch"], lib.llama_n_ubatch(ptr))
        self.n_seq_max: int = min(values["n_seq_max"], lib.llama_n_seq_max(ptr))
        self.n_vocab = model.vocab.n_tokens
        self.n_threads, self.n_threads_batch = n_threads, n_threads_batch
        self.kv_unified = self.n_seq_max == 1 or compat.kv_unified(library, params)
        type_k = options.get("type_k") or "f16"
        self.keys_shift = compat.keys_shift(library, type_k, self.kind.head_k)
        self.embeddings: bool = values["embeddings"]
        self.mtp: bool = values["ctx_type"] is not None
        self._n_hidden = model.n_embd_out if self.mtp else 0
        self.causal_attn: bool = self.kind.causal and options.get("attention") != "non_causal"
        self._pooling: int = lib.llama_pooling_type(ptr)
        self.pooling = compat.pooling_name(library, self._pooling)
        self.adapters: dict[LoraAdapter, float] = {}  # the active ones and their scales
        self.encoded: set[int] = set()  # sequences that the decoder can look at
        self._embedded, self._views, self._searched = False, {}, {}
        self._drop_outputs()
        self._get_row: Callable[[Any, int], Any] = lib.llama_get_logits_ith
        self._special = needs_rules(self)
        self._decode: Callable[[Any, Any], int] = lib.llama_decode
        self._logs = library.logs
        self._holds_abort = self._stale = False
        self.memory = Memory(self)
        self._attach_pools()

    def close(self) -> None:
        """Free the context, then its threads. Calling it again does nothing."""
        if not self.closed:
            self.keep_adapters({})
        super().close()
        for pool in self._pools.values():
            pool.close()

    def synchronize(self) -> None:
        """Wait until everything that was begun is computed. C: llama_synchronize."""
        self.library.lib.llama_synchronize(self.ptr)

    def decode(self, batch: Batch) -> None:
        """Run one forward pass over *batch*.

        After an error its tokens are not in the memory, as before the call. A recurrent memory
        cannot take back a part of a sequence: it forgets the whole sequence, and the error says so.

        Raises:
            KvCacheFullError: No free slot. A smaller batch may fit.
            DecodeAbortedError: `abort_flag` is set.
            ValidationError: The batch is empty, too long, or names a token or sequence
                that does not exist.
            GenerationError: Any other failure, such as positions that do not continue the
                sequence (builds before 2025-05 accept those and compute something).
        C: llama_decode
        """
        if batch.n_hidden != self._n_hidden:
            raise ValidationError(
                f"a batch with hidden states of width {batch.n_hidden} for a context that takes "
                f"{self._n_hidden or 'none'}; they go with mtp=True"
            )
        if not (
            batch.single and batch.token_max < self.n_vocab and batch.seq_max < self.n_seq_max
        ):  # hot: every generated token passes here
            if len(batch) > self.n_batch:
                raise ValidationError(
                    f"{len(batch)} tokens in the batch; n_batch is {self.n_batch}"
                )
            batch.check(self.n_vocab, self.n_seq_max, self.kv_unified)
        ptr, logs = self._ptr or self.ptr, self._logs
        if self._special:
            check_decode(self, batch)
            self._embedded = self.embeddings
        self._drop_outputs()
        mark, held = logs.count, self.hold()
        code = self._decode(ptr, batch.value)
        del held
        if code or self.abort_flag.is_set:  # the oldest builds return 0 when they were stopped
            lost = [] if code == REFUSED else roll_back(self, batch)
            raise failure(self, "llama_decode", code, batch, mark, lost)
        self._wanted = batch.wanted
        if logs.interrupt:
            logs.raise_interrupt()

    def encode(self, batch: Batch) -> None:
        """Run the encoder over *batch*, which holds whole sequences from position 0.

        With a decoder, `decode` then looks at what was encoded last for its sequences. Models that
        consist of an encoder only give embeddings; those without a separate one (BERT) take
        `decode`.

        Raises:
            DecodeAbortedError: `abort_flag` is set.
            ValidationError: The model has no encoder, or the batch is empty, longer than n_ubatch,
                or names a token or sequence that does not exist.
            GenerationError: Any other failure.
        C: llama_encode
        """
        batch.check(self.n_vocab, self.n_seq_max, self.kv_unified)
        ptr, logs = self.ptr, self._logs
        check_encode(self, batch)
        self._drop_outputs()
        self.encoded = set()
        mark, held = logs.count, self.hold()
        code = self.library.lib.llama_encode(ptr, batch.value)
        del held
        if code or self.abort_flag.is_set:
            raise failure(self, "llama_encode", code, batch, mark)
        if self.kind.has_decoder:
            self.encoded = set(batch.starts())
        else:
            self._wanted, self._embedded = batch.wanted, True
        logs.raise_interrupt()

    def set_embeddings(self, embeddings: bool) -> None:
        """Switch whether the next decodes make embeddings; those of the last one are gone.

        Raises:
            ValidationError: The model makes nothing else, or cannot make them.
        C: llama_set_embeddings
        """
        embeddings = bool(embeddings)
        if embeddings and self.mtp:
            raise ValidationError("a context with mtp=True gives logits and no embeddings")
        check_embeddings(embeddings, self._pooling, self.kind, self.model.path.name)
        self.library.lib.llama_set_embeddings(self.ptr, embeddings)
        self.embeddings, self._embedded = embeddings, False
        self._special = needs_rules(self)

    def set_causal_attn(self, causal_attn: bool) -> None:
        """Switch whether the tokens of the next decodes see only those before them.

        Raises:
            ValidationError: The model is an encoder.
        C: llama_set_causal_attn
        """
        causal_attn = bool(causal_attn)
        if causal_attn and not self.kind.causal:
            raise ValidationError(f"{self.model.path.name} is an encoder; it cannot be causal")
        self.library.lib.llama_set_causal_attn(self.ptr, causal_attn)
        self.causal_attn = causal_attn
        self._special = needs_rules(self)

    def set_threads(self, n_threads: int, n_threads_batch: int = 0) -> None:
        """Run the next decodes on so many threads; 0 as for `ContextParams`.

        Args:
            n_threads: For one token at a time.
            n_threads_batch: For prompts.

        Raises:
            ValidationError: A number is negative or too large.
        C: llama_set_n_threads
        """
        n_threads = thread_count("n_threads", n_threads)
        n_threads_batch = thread_count("n_threads_batch", n_threads_batch or n_threads)
        _ = self.ptr  # raises when it is closed
        # None is freed before the context: C pauses the pool that it leaves, at the next decode.
        new = _pools(self.library, *({n_threads, n_threads_batch} - self._pools.keys()))
        self._swap_kept((), new.values())
        self._pools |= new
        self.n_threads, self.n_threads_batch = n_threads, n_threads_batch
        self._attach_pools()
        self.library.lib.llama_set_n_threads(self.ptr, n_threads, n_threads_batch)

    def set_adapters(self, adapters: Mapping[LoraAdapter, float]) -> None:
        """Make exactly these LoRA adapters active for the next decodes; {} switches all off.

        What is in the memory was computed with the former ones: clear it, or decode on with it.

        Args:
            adapters: Adapter -> scale; 1.0 is as it was trained.

        Raises:
            ValidationError: One is closed or of another model, a scale is no finite number, they
                are more than a graph has room for, or C refused (flash attention in old builds).
        C: llama_set_adapters_lora
        """
        activate(self, adapters)
        self._renew_graph()

    def set_control_vector(
        self, vector: NDArray[np.float32] | None, layer_start: int = 1, layer_end: int | None = None
    ) -> None:
        """Add *vector* to what comes out of the layers, in the next decodes; None stops it.

        Shapes: (n_layer - 1, n_embd) float32; row i is added after layer i + 1, counted from 0.
        `load_control_vector` reads one from a file. It is copied.

        Args:
            vector: Finite numbers.
            layer_start: The first layer that it is added to.
            layer_end: The last one; None = the model's last.

        Raises:
            ValidationError: The shape, a number or a layer does not fit the model.
            LlamaError: C refused.
        C: llama_set_adapter_cvec
        """
        apply_control_vector(self, vector, layer_start, layer_end)
        self._renew_graph()

    @property
    def perf(self) -> Perf:
        """What was computed since creation or `reset_perf`. C: llama_perf_context."""
        data = self.library.lib.llama_perf_context(self.ptr)
        return Perf(data.t_load_ms, data.t_p_eval_ms, data.t_eval_ms, data.n_p_eval, data.n_eval)

    def reset_perf(self) -> None:
        """Begin to measure `perf` anew. C: llama_perf_context_reset."""
        self.library.lib.llama_perf_context_reset(self.ptr)

    def save_state(self, tokens: Sequence[int] = (), *, seq_id: int | None = None) -> bytes:
        """Return what the memory holds of all sequences, or of one, with *tokens* beside it.

        Sequences that share cells are saved each for itself; loading takes the room of all.

        Args:
            tokens: Given back by `load_state`, such as the tokens that were decoded.
            seq_id: One sequence; None = the whole context.

        Raises:
            ValidationError: Positions were shifted or copied, and nothing decoded since then.
            LlamaError: C did not save it.
        C: llama_state_seq_get_data
        """
        return state.save(self, tokens, seq_id)

    def load_state(self, data: bytes, *, seq_id: int | None = None) -> list[int]:
        """Replace the memory, or one sequence, by a state; decode one more token before `logits`.

        Load only states that you made: a checksum finds damage, not forgery.

        Args:
            data: From `save_state`, by the same build and model, with the same kind of cache;
                n_ctx may differ if there is room.
            seq_id: Where the state of one sequence goes; None for the state of a whole context.

        Returns:
            The tokens that were saved with it.

        Raises:
            ValidationError: It is damaged or does not fit this context; the memory is as before.
            LlamaError: C did not load it, such as for lack of room; what was to be replaced is
                empty now.
        C: llama_state_seq_set_data
        """
        self._drop_outputs()
        return state.load(self, data, seq_id)

    def save_state_file(
        self,
        path: str | os.PathLike[str],
        tokens: Sequence[int] = (),
        *,
        seq_id: int | None = None,
    ) -> None:
        """Write `save_state` to a file that only you can read; it is whole or not there.

        Args:
            path: The file; replaced if it exists.
            tokens: As for `save_state`, with its errors.
            seq_id: As for `save_state`.

        Raises:
            OSError: The file cannot be written.
        """
        state.save_file(self, path, tokens, seq_id)

    def load_state_file(
        self, path: str | os.PathLike[str], *, seq_id: int | None = None
    ) -> list[int]:
        """Do `load_state` with a file from `save_state_file`.

        Raises:
            OSError: The file cannot be read.
        """
        self._drop_outputs()
        return state.load_file(self, path, seq_id)

    def keep_adapters(self, adapters: Mapping[LoraAdapter, float]) -> None:
        """Hold the adapters that are active now, so that C finds them alive."""
        self._swap_kept(self.adapters, adapters)
        for adapter in self.adapters:
            adapter.active_in.discard(self)
        for adapter in adapters:
            adapter.active_in.add(self)
        self.adapters = dict(adapters)

    def hold_abort(self) -> None:
        """Let the next decode ignore the flag: it shifts positions or copies data first.

        C would leave some layers shifted and shift them again.
        """
        self._holds_abort = True
        self._decode = self._decode_prepared

    @property
    def update_waits(self) -> bool:
        """Whether the next decode shifts or copies what the memory holds, before it computes."""
        return self._holds_abort

    def _attach_pools(self) -> None:
        pools = (self._pools[n].ptr for n in (self.n_threads, self.n_threads_batch))
        self.library.lib.llama_attach_threadpool(self.ptr, *pools)

    def _renew_graph(self) -> None:
        """Let the next decode build its graph anew, where C would reuse one without the change."""
        library = self.library
        if compat.reuses_stale_graphs(library):
            # Graphs of recurrent models are never reused, and their memory takes no token back.
            self._stale = not self.model.keeps_states
            self._decode = self._decode_prepared

    def _decode_prepared(self, ptr: Any, batch: Any) -> int:
        lib, flag, null = self.library.lib, self.abort_flag, self.library.ffi.NULL
        if self._holds_abort:
            lib.llama_set_abort_callback(ptr, null, null)
        if self._stale:
            self._stale = not self._decode_otherwise(ptr, batch)
        code = int(lib.llama_decode(ptr, batch))
        lib.llama_set_abort_callback(ptr, flag.callback, flag.data)
        if code != REFUSED:
            self._holds_abort = False
            if not self._stale:
                self._decode = lib.llama_decode
        return code

    def _decode_otherwise(self, ptr: Any, batch: Any) -> bool:
        """Decode one token with another graph, and forget it; False when it was not possible."""
        lib, ffi = self.library.lib, self.library.ffi
        wanted = ffi.new("int8_t *", 1)
        one = ffi.new("struct llama_batch *", batch)
        one.n_tokens, one.logits = 1, wanted
        # Pooling may want more tokens or another model, and without a memory nothing is causal.
        switch, now = lib.llama_set_embeddings, self.embeddings
        if compat.has_memory(self.library, ptr):
            switch, now = lib.llama_set_causal_attn, self.causal_attn
        switch(ptr, not now)
        code = lib.llama_decode(ptr, one[0])
        switch(ptr, now)
        if code == 0:
            for k in range(one.n_seq_id[0]):
                self.memory.seq_rm(one.seq_id[0][k], one.pos[0])
        return bool(code == 0)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Context {self.model.path.name} n_ctx={self.n_ctx}{state}>"


def _pools(library: Library, *counts: int) -> dict[int, ThreadPool]:
    """Return one pool for each number of threads."""
    return {n: ThreadPool(library, n) for n in set(counts)}
