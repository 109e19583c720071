"""A context: the state of decoding with a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import (
    DecodeAbortedError,
    GenerationError,
    KvCacheFullError,
    LlamaError,
    ValidationError,
)
from . import compat
from .batch import Batch
from .handle import Handle
from .memory import Memory
from .model import Model
from .threads import ThreadPool, default_n_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Context"]

_NO_SLOT, _ABORTED = 1, 2


class Context(Handle):
    """Decoding state (KV cache, buffers, threads) of one model.

    One thread at a time may use it; `Engine` brings the lock.

    Args:
        model: Closes this context when it closes.
        n_ctx: Tokens that the cache holds over all sequences; 0 = the model's own length.
        n_batch: Most tokens in one `decode`.
        n_ubatch: Most tokens computed at once; at most n_batch.
        n_seq_max: Number of independent sequences.
        n_threads: Threads for single tokens; 0 = physical cores.
        n_threads_batch: Threads for prefill; 0 = n_threads.
        flash_attn: On, off, or None for the build's choice.
        kv_unified: One cache for all sequences; None for the build's choice.
        embeddings: Whether `decode` makes embeddings.

    Raises:
        ValidationError: A size is out of range, or the model has no weights (vocab_only).
        LlamaError: C refused, with what it logged.
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
        library = model.library
        sizes = {"n_batch": n_batch, "n_ubatch": n_ubatch, "n_seq_max": n_seq_max}
        for name, value in {"n_ctx": n_ctx, **sizes}.items():
            if not (0 if name == "n_ctx" else 1) <= value < 2**31:
                raise ValidationError(f"{name}={value} is out of range")
        if not model.n_params:
            raise ValidationError("the model was loaded with vocab_only; it cannot decode")
        n_threads = n_threads or default_n_threads()
        n_threads_batch = n_threads_batch or n_threads
        params = compat.context_params(
            library,
            n_ctx=n_ctx or model.n_ctx_train,
            n_threads=n_threads,
            n_threads_batch=n_threads_batch,
            flash_attn=flash_attn,
            kv_unified=kv_unified,
            embeddings=embeddings,
            no_perf=True,
            **{**sizes, "n_ubatch": min(n_ubatch, n_batch)},
        )
        # Made before the context and so, at exit, freed after it.
        self._pools = [ThreadPool(library, n) for n in dict.fromkeys((n_threads, n_threads_batch))]
        with library.logs.capture() as lines:
            ptr = compat.init_context(library, model.ptr, params)
        if not ptr:
            raise LlamaError(
                f"llama.cpp could not make a context of n_ctx={n_ctx} for {model.path.name}: "
                f"{'; '.join(lines[-3:]) or 'no reason given'}. Try a smaller n_ctx."
            )
        super().__init__(ptr, library.lib.llama_free, parent=model)
        self.model, self.library = model, library
        lib = library.lib
        self.n_ctx: int = lib.llama_n_ctx(ptr)
        self.n_batch: int = lib.llama_n_batch(ptr)
        self.n_ubatch: int = lib.llama_n_ubatch(ptr)
        self.n_seq_max: int = lib.llama_n_seq_max(ptr)
        self.n_vocab = model.vocab.n_tokens
        self.memory = Memory(self)
        lib.llama_attach_threadpool(ptr, self._pools[0].ptr, self._pools[-1].ptr)

    def close(self) -> None:
        """Free the context, then its threads. Calling it again does nothing."""
        super().close()
        for pool in self._pools:
            pool.close()

    def decode(self, batch: Batch) -> None:
        """Run one forward pass over *batch*.

        Raises:
            KvCacheFullError: No free slot; the memory is as before. A smaller batch may fit.
            DecodeAbortedError: The abort flag stopped it.
            ValidationError: The batch is empty, too long, or names a token or sequence
                that does not exist.
            GenerationError: Any other failure.
        C: llama_decode
        """
        if len(batch) > self.n_batch:
            raise ValidationError(f"{len(batch)} tokens in the batch; n_batch is {self.n_batch}")
        batch.check(self.n_vocab, self.n_seq_max)
        code = self.library.lib.llama_decode(self.ptr, batch.struct[0])
        if code:
            raise self._decode_error(code, len(batch))

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

        row = self._output(self.library.lib.llama_get_logits_ith, i, "logits")
        return np.frombuffer(self.library.ffi.buffer(row, self.n_vocab * 4), dtype=np.float32)

    def _output(self, function: Any, i: int, what: str) -> Any:
        with self.library.logs.capture() as lines:
            row = function(self.ptr, i)
        if not row:
            why = lines[-1] if lines else "its batch entry did not ask for output"
            raise ValidationError(f"no {what} for token {i} of the last batch: {why}")
        return row

    def _decode_error(self, code: int, n_tokens: int) -> GenerationError:
        if code == _NO_SLOT:
            return KvCacheFullError(
                f"no slot in the KV cache for {n_tokens} tokens (n_ctx={self.n_ctx}); decode fewer "
                "at once, free sequences, or make the context larger"
            )
        if code == _ABORTED:
            return DecodeAbortedError(f"decoding {n_tokens} tokens was stopped")
        return GenerationError(f"llama_decode failed with {code} on {n_tokens} tokens")

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<Context {self.model.path.name} n_ctx={self.n_ctx}{state}>"
