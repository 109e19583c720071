"""A context: the state of decoding with a model."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import LlamaError, ValidationError
from ...validation import check_int, check_type, checked_arguments
from .. import compat
from ..loading.library import Library
from ..logits import check_logits
from ..memory_limits import check_ggml_contexts, check_threads
from ..model.kind import ModelKind
from ..model.model import Model
from ..native_object import NativeObject
from ..processors import thread_count
from . import state
from .abort_flag import AbortFlag
from .adapters import LoraAdapter, apply_control_vector, set_adapters
from .batch import Batch
from .batch_checks import check_decode, check_encode, needs_checks
from .decode_call import DecodeCall
from .decode_errors import REFUSED, decode_error, roll_back
from .embedding_batch import EmbeddingBatch
from .memory import Memory
from .params import ContextParams, check_attention, check_embeddings, defaults_of, resolve
from .perf import Perf
from .threadpool import ThreadPool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from ..ffi_types import CData
    from .params import ContextOptions

__all__ = ["Context"]

_log = logging.getLogger(__name__)
_MAX_VIEWS = 256  # C has at most 256 sequences


class Context(NativeObject):
    """Decoding state (KV cache, buffers, threads) of one model.

    Only one thread at a time may use it; `Engine` adds the lock.

    Outputs (logits, embeddings) are returned as copies. With `copy=False` they are C's own
    memory, for loops that cannot afford the copy: borrowed until the next `decode`, `encode` or
    `close`. Reading or writing such an array after that can crash the process.

    Args:
        model: Closes this context when it closes.
        **options: Fields of `ContextParams`.

    Attributes:
        abort_flag: Stops `decode` and `encode` from outside.
        abortable: Whether it stops them immediately. Layers on a GPU are computed to the end, and
            so are some batches before b6122: threads, recurrent models, pooling, several sequences.
        kind: How the model is run.
        embeddings: Whether `decode` computes embeddings.
        mtp: Whether the context runs the model's multi-token prediction head.
        causal_attn: Whether tokens attend only to those before them.
        pooling: How the embeddings of a sequence are combined into one.
        adapters: The active LoRA adapters and their scales.
        flash_attn: Whether flash attention is used; None: where the build supports it.
        tuned: The settings kept by `tune`; each is used if the caller set nothing there.

    Raises:
        ValidationError: An option is out of range or not supported by the model or the build, or
            the model was loaded with vocab_only.
        OutOfMemoryError: There is not enough memory.
        LlamaError: Threads did not start, or C failed; the message has C's reason.
    C: llama_init_from_model
    """

    @checked_arguments(ContextParams.__dataclass_fields__)
    def __init__(self, model: Model, **options: Unpack[ContextOptions]) -> None:
        check_type("model", model, Model)
        library = model.library
        if model.vocab_only:
            raise ValidationError("the model was loaded with vocab_only and cannot decode")
        check_ggml_contexts(library, "a context")
        self.kind = ModelKind.of(model)
        values = resolve(ContextParams(**options), model, self.kind)
        n_ctx, n_threads, n_threads_batch = (
            values[k] for k in ("n_ctx", "n_threads", "n_threads_batch")
        )
        params = compat.context_params(library, **values)
        self._pools = _pools(library, n_threads, n_threads_batch)
        with library.logs.capture() as lines:
            held = model.hold()
            try:
                ptr = compat.init_context(library, model.ptr, params)
            finally:
                del held
        if not ptr:
            raise LlamaError(
                f"llama.cpp could not create a context of n_ctx={n_ctx} for {model.path.name}: "
                f"{'; '.join(lines[-3:]) or 'no reason given'}. Try a smaller n_ctx."
            )
        # Before anything can raise: `close` and the end of the interpreter use them.
        self.adapters: dict[LoraAdapter, float] = {}
        self.abort_flag = AbortFlag(library)
        super().__init__(
            ptr,
            library.lib.llama_free,
            parent=model,
            keeps=self._pools.values(),
            n_ggml_contexts=3 + model.offloads,
        )
        library.logs.raise_interrupt()
        self.model, self.library = model, library
        self.params: CData = params
        lib = library.lib
        self.n_ctx: int = lib.llama_n_ctx(ptr)
        # C rounds n_batch up to its padding, and n_seq_max was the size of the cache before b4980.
        self.n_batch: int = min(values["n_batch"], lib.llama_n_batch(ptr))
        self.n_ubatch: int = min(values["n_ubatch"], lib.llama_n_ubatch(ptr))
        self.n_seq_max: int = min(values["n_seq_max"], lib.llama_n_seq_max(ptr))
        self.n_vocab = model.vocab.n_tokens
        self.n_threads, self.n_threads_batch = n_threads, n_threads_batch
        self.kv_unified = self.n_seq_max == 1 or compat.kv_unified(library, params)
        type_k = options.get("type_k") or "f16"
        self.keys_shift = compat.keys_shift(library, type_k, self.kind.head_k)
        self.embeddings: bool = values["embeddings"]
        self.flash_attn: bool | None = values["flash_attn"]
        self.tuned = defaults_of(model, self.kind, embeddings=self.embeddings).tuned
        if self.tuned:
            _log.info(
                "%s: settings kept by tune, where no others are: %s", model.path.name, self.tuned
            )
        self.mtp: bool = values["ctx_type"] is not None
        self._n_hidden = model.n_embd_out if self.mtp else 0
        self.causal_attn: bool = self.kind.causal and options.get("attention") != "non_causal"
        self._pooling: int = lib.llama_pooling_type(ptr)
        self.pooling = compat.pooling_name(library, self._pooling)
        self.encoded: set[int] = set()  # sequences whose encoder output the decoder can use
        # One byte per token of the last batch, 1 = it has an output. C does not always check.
        self._wanted = b""
        self._has_embeddings = False  # whether the last outputs include embeddings
        self._get_row: Callable[[CData, int], CData] = lib.llama_get_logits_ith
        self._views: dict[Any, NDArray[np.float32]] = {}  # arrays over logits, by address
        # Output -> token of its largest logit; None once the caller may have changed the logits.
        self._best: dict[int, int] | None = {}
        # The array over all rows of the last search, by its address and number of rows.
        self._searched: dict[Any, tuple[NDArray[np.float32], Any]] = {}
        self._needs_checks = needs_checks(self)
        self._decode_call = DecodeCall(self)
        self._logs = library.logs
        self._attach_pools()
        self._attach_abort_flag()

    @property
    def memory(self) -> Memory:
        """The KV cache or recurrent state."""
        return Memory(self)  # kept here, it would keep the context alive until a collection

    def close(self) -> None:
        """Free the context, then its threads. A second call does nothing."""
        if not self.closed:
            self.keep_adapters({})
        super().close()
        for pool in self._pools.values():
            pool.close()

    def synchronize(self) -> None:
        """Wait until all submitted work is computed. C: llama_synchronize."""
        self.library.lib.llama_synchronize(self.ptr)

    def decode(self, batch: Batch) -> None:
        """Run one forward pass over *batch*.

        After an error the memory is as before the call. A recurrent memory cannot drop a part of
        a sequence: it loses the whole sequence, and the error says so.

        Raises:
            KvCacheFullError: There is no free slot. A smaller batch may fit.
            DecodeAbortedError: `abort_flag` is set.
            ValidationError: The batch is empty, too long, or has a token or sequence that does
                not exist.
            OutOfMemoryError: A limit leaves almost no memory to this process.
            LlamaError: A limit leaves no memory for the threads (builds before b4753).
            GenerationError: Any other failure, such as positions that do not continue the
                sequence (builds before 2025-05 accept those and compute something).
        C: llama_decode
        """
        check_type("batch", batch, Batch)
        if batch.n_hidden != self._n_hidden:
            raise ValidationError(
                f"the batch has n_hidden={batch.n_hidden}, and this context takes "
                f"n_hidden={self._n_hidden}; hidden states are for contexts with mtp=True"
            )
        if not (
            batch.single and batch.token_max < self.n_vocab and batch.seq_max < self.n_seq_max
        ):  # hot: every generated token passes here
            if len(batch) > self.n_batch:
                raise ValidationError(
                    f"{len(batch)} tokens in the batch; n_batch is {self.n_batch}"
                )
            batch.check(self.n_vocab, self.n_seq_max, self.kv_unified)
            self._decode_call.watch_steps()
        ptr, logs = self._ptr or self.ptr, self._logs
        if self._needs_checks:
            check_decode(self, batch)
            self._has_embeddings = self.embeddings
        self._drop_outputs()
        mark, held = logs.count, self.hold()
        try:
            code = self._decode_call.run(ptr, batch.value)
        finally:
            del held
        if code or self.abort_flag.is_set:  # the oldest builds return 0 when aborted
            lost = [] if code == REFUSED else roll_back(self, batch)
            raise decode_error(self, "llama_decode", code, batch, mark, lost)
        self._wanted = batch.wanted
        if logs.interrupt:
            logs.raise_interrupt()

    def decode_embeddings(
        self,
        rows: NDArray[np.float32],
        positions: NDArray[np.int32],
        seq_id: int = 0,
        *,
        causal: bool = True,
    ) -> None:
        """Decode input embeddings, such as those of a picture, into the memory; no outputs.

        Shapes: *rows* (n, n_embd_inp) float32, *positions* (n,) int32, or (4, n) with M-RoPE.

        Args:
            rows: The embeddings, decoded in batches of `n_batch`.
            positions: Their positions.
            seq_id: Their sequence.
            causal: Whether each attends only to those before it; otherwise they are decoded in one
                batch, which must not be longer than `n_ubatch`.

        Raises:
            KvCacheFullError: There is no free slot; the memory is as before.
            DecodeAbortedError: `abort_flag` is set.
            ValidationError: An array has another shape or type, or the context is for embeddings,
                or too small for embeddings that attend to each other.
            GenerationError: Any other failure.
        C: llama_decode, llama_set_causal_attn
        """
        if self.embeddings or self.mtp:
            raise ValidationError("a context for embeddings or drafts takes only tokens")
        if causal:
            for at in range(0, len(rows), self.n_batch):
                part = slice(at, at + self.n_batch)
                self._decode_rows(EmbeddingBatch(self, rows[part], positions[..., part], seq_id))
            return
        if len(rows) > min(self.n_ubatch, self.n_batch):
            raise ValidationError(
                f"a picture of {len(rows)} tokens, which attend to each other, needs n_ubatch and "
                f"n_batch of at least {len(rows)}; they are {self.n_ubatch} and {self.n_batch}"
            )
        batch = EmbeddingBatch(self, rows, positions, seq_id)
        was_causal = self.causal_attn
        self.set_causal_attn(False)
        try:
            self._decode_rows(batch)
        finally:
            self.set_causal_attn(was_causal)

    def _decode_rows(self, batch: EmbeddingBatch) -> None:
        self._drop_outputs()
        mark, held = self._logs.count, self.hold()
        try:
            code = self._decode_call.run(self.ptr, batch.value)
        finally:
            del held
        if code or self.abort_flag.is_set:
            lost = [] if code == REFUSED else roll_back(self, batch)
            raise decode_error(self, "llama_decode", code, batch, mark, lost)
        self._logs.raise_interrupt()

    def encode(self, batch: Batch) -> None:
        """Run the encoder over *batch*, which holds whole sequences from position 0.

        If the model has a decoder, `decode` then attends to the last encoder output of its
        sequences. A model that is only an encoder gives embeddings. Models without a separate
        encoder (BERT) use `decode`.

        Raises:
            DecodeAbortedError: `abort_flag` is set.
            ValidationError: The model has no encoder, or the batch is empty, longer than n_ubatch,
                or has a token or sequence that does not exist.
            OutOfMemoryError: A limit leaves almost no memory to this process.
            LlamaError: A limit leaves no memory for the threads (builds before b4753).
            GenerationError: Any other failure.
        C: llama_encode
        """
        batch.check(self.n_vocab, self.n_seq_max, self.kv_unified)
        ptr, logs = self.ptr, self._logs
        check_encode(self, batch)
        self._drop_outputs()
        self.encoded = set()
        mark, held = logs.count, self.hold()
        try:
            code = self.library.lib.llama_encode(ptr, batch.value)
        finally:
            del held
        if code or self.abort_flag.is_set:
            raise decode_error(self, "llama_encode", code, batch, mark)
        if self.kind.has_decoder:
            self.encoded = set(batch.starts())
        else:
            self._wanted, self._has_embeddings = batch.wanted, True
        logs.raise_interrupt()

    def logits(self, i: int = -1, *, copy: bool = True) -> NDArray[np.float32]:
        """Return the logits of output *i* of the last decode.

        Shapes: (n_vocab,) float32.

        Args:
            i: Index of the token in the batch; negative counts outputs from the end.
            copy: False = C's memory, borrowed until the next decode or `close`.

        Raises:
            ValidationError: That output was not requested, or the context has no logits.
        C: llama_get_logits_ith
        """
        view = self._view(self.row(i))
        if copy:
            return view.copy()
        self._best = None
        return view

    def argmax(self, i: int = -1) -> int:
        """Return the token with the largest logit of output *i* of the last decode.

        The first call after a decode finds it for all outputs together.

        Args:
            i: Index of the token in the batch; negative counts outputs from the end.

        Raises:
            ValidationError: As for `logits`.
            GenerationError: The logits contain NaN or +inf, or all are -inf.
        """
        best = self._best
        if best and i in best:  # hot: every generated token of a batch passes here
            return best[i]
        row = self.row(i)
        if best is not None and not best and len(self._wanted) > 1:
            best = self._best = self._find_best()
            if i in best:
                return best[i]
        logits = self._view(row)
        token = int(logits.argmax())  # the index of NaN if there is one
        check_logits(float(logits[token]))
        return token

    def embedding(self, i: int = -1, *, copy: bool = True) -> NDArray[np.float32]:
        """Return the embedding of output *i* of the last decode, without pooling.

        Shapes: (n_embd,) float32.

        Args:
            i: Index of the token in the batch; negative counts outputs from the end.
            copy: False = C's memory, borrowed until the next decode or `close`.

        Raises:
            ValidationError: There are no embeddings, or only pooled ones.
        C: llama_get_embeddings_ith
        """
        self._check_embeddings()
        if self.pooling != "none":
            raise ValidationError(
                f"pooling={self.pooling!r} gives one embedding per sequence; use "
                "sequence_embedding, or create the context with pooling='none'"
            )
        row = self.library.lib.llama_get_embeddings_ith(self.ptr, self.check_output(i))
        if not row:
            raise ValidationError(f"llama.cpp has no embedding for token {i}")
        embedding = self._array(row, compat.embedding_width(self.library, self.model.ptr))
        return embedding.copy() if copy else embedding

    def sequence_embedding(self, seq_id: int = 0, *, copy: bool = True) -> NDArray[np.float32]:
        """Return the pooled embedding of the tokens of *seq_id* in the last batch.

        Shapes: (n_embd,) float32, with `rank` pooling (number of classes,).

        Args:
            seq_id: The sequence.
            copy: False = C's memory, borrowed until the next decode or `close`.

        Raises:
            ValidationError: There are no embeddings, they are not pooled, or the sequence was not
                in the batch.
        C: llama_get_embeddings_seq
        """
        self._check_embeddings()
        if self.pooling == "none":
            raise ValidationError("pooling='none' gives one embedding per token; use embedding")
        seq_id = check_int("seq_id", seq_id, 0, self.n_seq_max - 1)
        row = self.library.lib.llama_get_embeddings_seq(self.ptr, seq_id)
        if not row:
            raise ValidationError(f"sequence {seq_id} had no token in the last batch")
        rank = self.pooling == "rank"
        width = compat.n_classes if rank else compat.embedding_width
        embedding = self._array(row, width(self.library, self.model.ptr))
        return embedding.copy() if copy else embedding

    def row(self, i: int) -> CData:
        """Return the C pointer to the row that `logits` returns.

        Raises:
            ValidationError: As for `logits`.
        """
        if i != -1 or self._wanted != b"\x01":  # hot: every generated token passes here
            i = self.check_output(i)
        row = self._get_row(self._ptr or self.ptr, i) if self.kind.logits else None
        if not row:
            raise ValidationError("this context computes embeddings and no logits")
        return row

    def check_output(self, i: int) -> int:
        """Return *i* if token *i* of the last batch has an output.

        Raises:
            ValidationError: It was not requested, or there was no successful decode.
        """
        wanted = self._wanted
        if type(i) is int and 0 <= i < len(wanted) and wanted[i]:  # hot
            return i
        i = check_int("i", i, -len(wanted), len(wanted) - 1) if wanted else 0
        if not wanted or (wanted[i] != 1 if i >= 0 else -i > wanted.count(1)):
            raise ValidationError(
                f"no output for token {i}: the last decode kept {wanted.count(1)} outputs of "
                f"{len(wanted)} tokens; request it with logits=True in the batch"
            )
        return i

    def set_embeddings(self, embeddings: bool) -> None:
        """Switch embeddings on or off for the next decodes; drops those of the last one.

        Raises:
            ValidationError: The model computes only embeddings, or none; or the build cannot switch
                (b4980; with recurrent models all before b5590).
        C: llama_set_embeddings
        """
        embeddings = bool(embeddings)
        if embeddings and self.mtp:
            raise ValidationError("a context with mtp=True gives logits and no embeddings")
        check_embeddings(embeddings, self._pooling, self.kind, self.model.path.name)
        if embeddings != self.embeddings and not self._decode_call.can_replan:
            raise ValidationError(
                "this build may compute with a wrong plan after embeddings are switched; create a "
                f"context for them, or change it: {compat.newer_build(self.library)}"
            )
        self.library.lib.llama_set_embeddings(self.ptr, embeddings)
        self._decode_call.switches("embeddings", self.embeddings)
        self.embeddings, self._has_embeddings = embeddings, False
        self._attach_abort_flag()
        self._needs_checks = needs_checks(self)

    def set_causal_attn(self, causal_attn: bool) -> None:
        """Switch causal attention, where tokens see only those before them, on or off.

        Raises:
            ValidationError: The model is an encoder, or the build does not support it.
        C: llama_set_causal_attn
        """
        causal_attn = bool(causal_attn)
        check_attention(causal_attn, self.model, self.kind)
        self.library.lib.llama_set_causal_attn(self.ptr, causal_attn)
        self._decode_call.switches("causal_attn", self.causal_attn)
        self.causal_attn = causal_attn
        self._needs_checks = needs_checks(self)

    def set_threads(self, n_threads: int, n_threads_batch: int = 0) -> None:
        """Set the number of threads for the next decodes; 0 means the same as in `ContextParams`.

        Args:
            n_threads: For single tokens.
            n_threads_batch: For prompts.

        Raises:
            ValidationError: A number is negative or too large.
            LlamaError: The threads do not start.
        C: llama_set_n_threads
        """
        n_threads = thread_count("n_threads", n_threads)
        n_threads_batch = thread_count("n_threads_batch", n_threads_batch or n_threads)
        _ = self.ptr  # raises if closed
        # Old pools live as long as the context: its next decode pauses the one that it leaves.
        new = _pools(self.library, *({n_threads, n_threads_batch} - self._pools.keys()))
        self._swap_kept((), new.values())
        self._pools |= new
        self.n_threads, self.n_threads_batch = n_threads, n_threads_batch
        self._attach_pools()
        self.library.lib.llama_set_n_threads(self.ptr, n_threads, n_threads_batch)
        self._attach_abort_flag()

    def set_adapters(self, adapters: Mapping[LoraAdapter, float]) -> None:
        """Make exactly these LoRA adapters active for the next decodes; {} switches all off.

        The memory was computed with the previous ones: clear it, or continue with it.

        Args:
            adapters: Adapter -> scale; 1.0 applies it as trained.

        Raises:
            ValidationError: An adapter is closed or of another model, a scale is not finite,
                they do not fit into a compute graph, or C refused (flash attention in old builds).
        C: llama_set_adapters_lora
        """
        set_adapters(self, adapters)
        self._decode_call.rebuild_graph()

    def set_control_vector(
        self, vector: NDArray[np.float32] | None, layer_start: int = 1, layer_end: int | None = None
    ) -> None:
        """Add *vector* to the output of the layers in the next decodes; None switches it off.

        Shapes: (n_layer - 1, n_embd) float32; row i is added after layer i + 1, counted from 0.
        `load_control_vector` reads one from a file. C copies it.

        Args:
            vector: Finite numbers.
            layer_start: The first layer it is added to.
            layer_end: The last one; None = the model's last.

        Raises:
            ValidationError: The shape, a number or a layer does not fit the model.
            LlamaError: C refused the vector.
        C: llama_set_adapter_cvec
        """
        apply_control_vector(self, vector, layer_start, layer_end)
        self._decode_call.rebuild_graph()

    @property
    def perf(self) -> Perf:
        """Counters and times since creation or `reset_perf`. C: llama_perf_context."""
        data = self.library.lib.llama_perf_context(self.ptr)
        return Perf(data.t_load_ms, data.t_p_eval_ms, data.t_eval_ms, data.n_p_eval, data.n_eval)

    def reset_perf(self) -> None:
        """Reset `perf`. C: llama_perf_context_reset."""
        self.library.lib.llama_perf_context_reset(self.ptr)

    def save_state(self, tokens: Sequence[int] = (), *, seq_id: int | None = None) -> bytes:
        """Return the memory of all sequences, or of one, together with *tokens*.

        Sequences that share cells are saved separately, and loading needs cells for each.

        Args:
            tokens: Returned by `load_state`, such as the tokens that were decoded. Four negative
                numbers stand for a picture or sound.
            seq_id: One sequence; None = the whole context.

        Raises:
            ValidationError: Positions were shifted or copied, and nothing was decoded since;
                of one sequence, into that one.
            LlamaError: C did not save the state.
        C: llama_state_seq_get_data
        """
        return state.save(self, tokens, seq_id)

    def state_bytes(self, seq_id: int) -> int:
        """Return the size of C's state of a sequence, in bytes.

        Raises:
            ValidationError: The sequence does not exist.
        C: llama_state_seq_get_size
        """
        seq_id = check_int("seq_id", seq_id, 0, self.n_seq_max - 1)
        return int(self.library.lib.llama_state_seq_get_size(self.ptr, seq_id))

    @property
    def state_key(self) -> str:
        """SHA-256 of all that states of sequences depend on, as hexadecimal digits.

        States of contexts with the same key can be exchanged: the build, the model and its
        metadata, the type of the cache, positions and attention are the same.
        """
        return state.key(self)

    def load_state(self, data: bytes, *, seq_id: int | None = None) -> list[int]:
        """Replace the memory, or one sequence, by a saved state. It has no outputs.

        Decode one more token before `logits`. Load only states that you made: the checksum
        detects damage but not forgery.

        Args:
            data: From `save_state`, with the same build and model and the same type of cache.
                n_ctx may differ if the state fits.
            seq_id: The sequence to replace by the state of one; None for a whole context.

        Returns:
            The tokens that were saved with the state.

        Raises:
            ValidationError: It is damaged or does not fit this context; the memory is unchanged.
            LlamaError: C did not load it, for example because the cache is too small; what was
                to be replaced is empty now.
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
        """Write `save_state` to a file, atomically and readable only by the current user.

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
        """Do `load_state` with a file written by `save_state_file`.

        Raises:
            OSError: The file cannot be read.
        """
        self._drop_outputs()
        return state.load_file(self, path, seq_id)

    def keep_adapters(self, adapters: Mapping[LoraAdapter, float]) -> None:
        """Keep the active adapters alive, because C uses them."""
        self._swap_kept(self.adapters, adapters)
        for adapter in self.adapters:
            adapter.active_in.discard(self)
        for adapter in adapters:
            adapter.active_in.add(self)
        self.adapters = dict(adapters)

    def hold_abort(self, seq_id: int = -1) -> None:
        """Let the next decode ignore the abort flag, because it updates *seq_id* first; -1: any."""
        self._decode_call.hold_abort(seq_id)

    @property
    def update_waits(self) -> bool:
        """Whether the next decode shifts positions or copies sequences before it computes."""
        return self._decode_call.updates_memory

    def updates(self, seq_id: int) -> bool:
        """Whether the next decode first changes the cells of a sequence."""
        return not self._decode_call.updated.isdisjoint((-1, seq_id))

    def _stop(self) -> None:
        self.abort_flag.set()

    def _attach_abort_flag(self) -> None:
        flag = self.abort_flag
        flag.polled = compat.polls_safely(
            self.library,
            threads=max(self.n_threads, self.n_threads_batch) > 1,
            states=self.model.keeps_states,
            sequences=self.n_seq_max > 1,
            pooled=self.embeddings and self.pooling != "none",
        )
        flag.attach(self.ptr)
        # Only the CPU backend polls it; others finish the graph that they have started.
        self.abortable = flag.polled and not self.model.offloads

    def _attach_pools(self) -> None:
        lib, counts = self.library.lib, (self.n_threads, self.n_threads_batch)
        if self._pools.keys() >= set(counts):
            lib.llama_attach_threadpool(self.ptr, *(self._pools[n].ptr for n in counts))
        else:
            lib.llama_detach_threadpool(self.ptr)

    def _check_embeddings(self) -> None:
        _ = self.ptr  # raises if closed
        if not (self._has_embeddings and self._wanted):
            raise ValidationError(
                "the last decode computed no embeddings; create the context with embeddings=True"
            )

    def _drop_outputs(self) -> None:
        """Forget the outputs of the last decode."""
        self._wanted, self._best = b"", {}

    def _find_best(self) -> dict[int, int]:
        """Return output -> token of its largest logit; empty if one of them is not finite."""
        wanted, width = self._wanted, self.n_vocab
        outputs: Sequence[int] = range(len(wanted))
        if 0 in wanted:
            outputs = [i for i in outputs if wanted[i]]
        n = len(outputs)
        key = self.row(outputs[0]), n
        if key not in self._searched:
            if self.row(outputs[-1]) - key[0] != (n - 1) * width:
                return {}  # the rows are not contiguous
            logits = self._array(key[0], n * width)
            self._searched = {key: (logits.reshape(n, width), logits.data)}
        rows, values = self._searched[key]
        # A memoryview and isfinite, because each numpy call costs more than all of them together.
        tokens: list[int] = rows.argmax(axis=1).tolist()
        if all([math.isfinite(values[k * width + token]) for k, token in enumerate(tokens)]):
            return dict(zip(outputs, tokens, strict=True))
        return {}

    def _view(self, row: Any) -> NDArray[np.float32]:
        view = self._views.get(row)  # C mostly reuses the same rows
        if view is None:
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            view = self._views[row] = self._array(row, self.n_vocab)
        return view

    def _array(self, row: Any, width: int) -> NDArray[np.float32]:
        import numpy as np

        return np.frombuffer(self.library.ffi.buffer(row, width * 4), dtype=np.float32)

    def __repr__(self) -> str:
        closed = " closed" if self.closed else ""
        return f"<Context {self.model.path.name} n_ctx={self.n_ctx}{closed}>"


def _pools(library: Library, *counts: int) -> dict[int, ThreadPool]:
    """Return one thread pool for each number of threads; none where C starts threads anew."""
    if max(counts, default=1) > 1 and not compat.keeps_threads(library):
        check_threads(max(counts) - 1)
        return {}
    return {n: ThreadPool(library, n) for n in set(counts)}
