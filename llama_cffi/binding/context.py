"""A context: the state of decoding with a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import (
    DecodeAbortedError,
    GenerationError,
    KvCacheFullError,
    LlamaError,
    ValidationError,
)
from . import compat, state
from .abort import AbortFlag
from .batch import Batch
from .checks import integer
from .handle import Handle
from .memory import Memory
from .model import Model
from .room import context_bytes, memory_bytes
from .threads import ThreadPool, thread_count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Context"]

_NO_SLOT, _ABORTED, _REFUSED = 1, 2, -1


class Context(Handle):
    """Decoding state (KV cache, buffers, threads) of one model.

    One thread at a time may use it; `Engine` brings the lock.

    Args:
        model: Closes this context when it closes.
        n_ctx: Tokens that the cache holds over all sequences; 0 = the model's own length. C
            rounds it up (to 32 or 256, for each sequence where they do not share).
        n_batch: Most tokens in one `decode`.
        n_ubatch: Most tokens computed at once; at most n_batch.
        n_seq_max: Number of independent sequences.
        n_threads: Threads for single tokens, at most the usable processors; 0 = physical cores.
        n_threads_batch: Threads for prefill; 0 = n_threads.
        flash_attn: On, off, or None for the build's choice.
        kv_unified: One cache for all sequences; None for the build's choice.
        embeddings: Whether `decode` makes embeddings.

    Raises:
        ValidationError: A size is out of range, or the model has no weights (vocab_only).
        LlamaError: There is not enough memory, or C refused, with what it logged.
    C: llama_init_from_model
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        n_threads: int = 0,
        n_threads_batch: int = 0,
        flash_attn: bool | None = None,
        kv_unified: bool | None = None,
        embeddings: bool = False,
    ) -> None:
        library, model_ptr = model.library, model.ptr
        if model.vocab_only:
            raise ValidationError("the model was loaded with vocab_only; it cannot decode")
        n_ctx = integer("n_ctx", n_ctx, 0) or model.n_ctx_train
        n_batch = integer("n_batch", n_batch, 1)
        n_ubatch = min(n_batch, integer("n_ubatch", n_ubatch, 1))
        n_seq_max = integer("n_seq_max", n_seq_max, 1, compat.max_sequences(library))
        if n_seq_max > min(n_batch, n_ctx):  # n_outputs_max <= cparams.n_outputs_max
            raise ValidationError(f"{n_seq_max=} needs n_batch and n_ctx of that many tokens")
        n_threads = thread_count("n_threads", n_threads)
        n_threads_batch = thread_count("n_threads_batch", n_threads_batch or n_threads)
        need, have = context_bytes(model.gguf.values, n_ctx, n_ubatch), memory_bytes(library)
        if need > have:
            raise LlamaError(
                f"a context of n_ctx={n_ctx} takes at least {need / 2**30:.1f} GiB and there are "
                f"{have / 2**30:.1f} GiB of memory; make n_ctx smaller"
            )
        params = compat.context_params(
            library,
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_seq_max=n_seq_max,
            n_threads=n_threads,
            n_threads_batch=n_threads_batch,
            flash_attn=flash_attn,
            kv_unified=kv_unified,
            embeddings=embeddings,
            no_perf=True,
        )
        self._pools = [ThreadPool(library, n) for n in dict.fromkeys((n_threads, n_threads_batch))]
        with library.logs.capture() as lines:
            ptr = compat.init_context(library, model_ptr, params)
        if not ptr:
            raise LlamaError(
                f"llama.cpp could not make a context of n_ctx={n_ctx} for {model.path.name}: "
                f"{'; '.join(lines[-3:]) or 'no reason given'}. Try a smaller n_ctx."
            )
        super().__init__(ptr, library.lib.llama_free, parent=model, keeps=self._pools)
        library.logs.raise_interrupt()
        self.model, self.library, self.params = model, library, params
        lib = library.lib
        self.abort_flag = AbortFlag(library)
        lib.llama_set_abort_callback(ptr, self.abort_flag.callback, self.abort_flag.data)
        # The flag reaches no other backend in any build; layers on those run to the end.
        self.abortable = all(d.type in ("cpu", "accel") for d in library.devices)
        self.n_ctx: int = lib.llama_n_ctx(ptr)
        # C rounds n_batch up to its padding, and n_seq_max was the cache's size before b4980.
        self.n_batch: int = min(n_batch, lib.llama_n_batch(ptr))
        self.n_ubatch: int = min(n_ubatch, lib.llama_n_ubatch(ptr))
        self.n_seq_max: int = min(n_seq_max, lib.llama_n_seq_max(ptr))
        self.n_vocab = model.vocab.n_tokens
        self.n_threads, self.n_threads_batch = n_threads, n_threads_batch
        self.kv_unified = n_seq_max == 1 or compat.kv_unified(library, params)
        self.embeddings = embeddings
        # Which tokens of the last batch have output: one byte each. C forgets to check in places.
        self._wanted = b""
        self._decode: Callable[[Any, Any], int] = lib.llama_decode
        self._logs = library.logs
        self.memory = Memory(self)
        lib.llama_attach_threadpool(ptr, self._pools[0].ptr, self._pools[-1].ptr)

    def close(self) -> None:
        """Free the context, then its threads. Calling it again does nothing."""
        super().close()
        for pool in self._pools:
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
        if batch.struct.n_tokens > self.n_batch:
            raise ValidationError(f"{len(batch)} tokens in the batch; n_batch is {self.n_batch}")
        batch.check(self.n_vocab, self.n_seq_max, self.kv_unified)
        ptr, logs = self.ptr, self._logs
        self._wanted = b""
        mark = logs.count
        code = self._decode(ptr, batch.struct[0])
        if code or self.abort_flag.is_set:  # the oldest builds return 0 when they were stopped
            raise self._failure(code, batch, mark)
        self._wanted = batch.wanted
        if logs.interrupt:
            logs.raise_interrupt()

    def logits(self, i: int = -1) -> NDArray[np.float32]:
        """Return the logits of output *i* of the last decode.

        Shapes: (n_vocab,) float32, borrowed until the next decode; copy it to keep it.

        Args:
            i: Index of the token in the batch; negative counts outputs from the end.

        Raises:
            ValidationError: That token's output was not asked for.
        C: llama_get_logits_ith
        """
        import numpy as np

        i = self.check_output(i)
        row = self.library.lib.llama_get_logits_ith(self.ptr, i)
        if not row:
            raise ValidationError("this context makes embeddings and no logits")
        return np.frombuffer(self.library.ffi.buffer(row, self.n_vocab * 4), dtype=np.float32)

    def check_output(self, i: int) -> int:
        """Return *i* if token *i* of the last batch has an output.

        Raises:
            ValidationError: It was not asked for, or there was no successful decode.
        """
        wanted = self._wanted
        if i == -1 and 1 in wanted:  # hot
            return i
        i = integer("i", i, -len(wanted), len(wanted) - 1) if wanted else 0
        if not wanted or (wanted[i] != 1 if i >= 0 else -i > wanted.count(1)):
            raise ValidationError(
                f"no output for token {i}: the last decode kept {wanted.count(1)} outputs of "
                f"{len(wanted)} tokens; ask with logits=True in the batch"
            )
        return i

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
        self._wanted = b""
        return state.load(self, data, seq_id)

    def save_state_file(
        self,
        path: str | os.PathLike[str],
        tokens: Sequence[int] = (),
        *,
        seq_id: int | None = None,
    ) -> None:
        """Write `save_state` to a file that only you can read; it is whole or not there."""
        state.save_file(self, path, tokens, seq_id)

    def load_state_file(
        self, path: str | os.PathLike[str], *, seq_id: int | None = None
    ) -> list[int]:
        """Do `load_state` with a file from `save_state_file`."""
        self._wanted = b""
        return state.load_file(self, path, seq_id)

    def hold_abort(self) -> None:
        """Let the next decode ignore the flag: it shifts positions first.

        C would leave some layers shifted and shift them again.
        """
        self._decode = self._decode_without_abort

    @property
    def update_waits(self) -> bool:
        """Whether the next decode shifts or copies what the memory holds, before it computes."""
        return self._decode == self._decode_without_abort

    def _decode_without_abort(self, ptr: Any, batch: Any) -> int:
        lib, flag = self.library.lib, self.abort_flag
        lib.llama_set_abort_callback(ptr, self.library.ffi.NULL, self.library.ffi.NULL)
        code = int(lib.llama_decode(ptr, batch))
        lib.llama_set_abort_callback(ptr, flag.callback, flag.data)
        if code == 0:  # a batch that is refused shifts nothing
            self._decode = lib.llama_decode
        return code

    def _failure(self, code: int, batch: Batch, mark: int) -> GenerationError:
        """Take the batch out of the memory and return the error for llama_decode's *code*."""
        n_tokens = len(batch)
        why = "; ".join(self._logs.since(mark)) or "llama.cpp gave no reason"
        lost = [] if code == _REFUSED else self._roll_back(batch)
        self._logs.raise_interrupt()
        after = f"; sequences {lost} are empty now" if lost else ""
        if code == _NO_SLOT:
            return KvCacheFullError(
                f"no slot in the KV cache for {n_tokens} tokens (n_ctx={self.n_ctx}); decode fewer "
                f"at once, free sequences, or make the context larger{after}"
            )
        if code in (0, _ABORTED):
            return DecodeAbortedError(
                f"decoding {n_tokens} tokens was stopped by the abort flag{after}"
            )
        return GenerationError(
            f"llama_decode failed with {code} on {n_tokens} tokens: {why}{after}"
        )

    def _roll_back(self, batch: Batch) -> list[int]:
        """Remove what C kept of a batch that failed; return the sequences that had to go whole."""
        return [
            seq_id
            for seq_id, pos in batch.starts().items()
            if not self.memory.seq_rm(seq_id, pos) and self.memory.seq_rm(seq_id)
        ]

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Context {self.model.path.name} n_ctx={self.n_ctx}{state}>"
