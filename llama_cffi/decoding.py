"""Feed tokens to a context and sample: the one core under the Engine and the scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .binding import Batch, Context, SamplerChain
from .errors import KvCacheFullError

__all__ = ["feed", "generate"]

_MIN_CHUNK = 16


def feed(context: Context, batch: Batch, tokens: Sequence[int], pos: int) -> None:
    """Decode *tokens* of sequence 0 in chunks of n_batch, smaller where the cache has no slot.

    On "no KV slot" the chunk is halved down to 16 and the same tokens are tried again; after a
    success it grows back. Only the last token's output is kept.

    Raises:
        KvCacheFullError: Not even 16 tokens fit. The memory is as before the call.
    """
    chunk, done, n = batch.n_tokens_max, 0, len(tokens)
    while done < n:
        part = tokens[done : done + chunk]
        batch.fill(part, pos + done, logits=done + len(part) == n)
        try:
            context.decode(batch)
        except KvCacheFullError as e:
            if len(part) <= _MIN_CHUNK:
                context.memory.seq_rm(0, pos, -1)
                raise KvCacheFullError(
                    f"the KV cache (n_ctx={context.n_ctx}) has no slot for {len(part)} tokens at "
                    f"position {pos + done}: {done} of {n} tokens fitted. Free sequences or make "
                    "the context larger."
                ) from e
            chunk = max(_MIN_CHUNK, len(part) // 2)
            continue
        done += len(part)
        chunk = min(batch.n_tokens_max, chunk * 2)


def generate(
    context: Context, batch: Batch, chain: SamplerChain, tokens: Sequence[int], n_predict: int
) -> Iterator[int]:
    """Yield up to *n_predict* sampled tokens after *tokens*, ending before an EOG token.

    Decoding also ends when the context is full. The sampled token is decoded only when the next
    one is asked for.
    """
    vocab, pos = context.model.vocab, len(tokens)
    feed(context, batch, tokens, 0)
    for i in range(n_predict):
        token = chain.sample(context)
        if vocab.is_eog(token):
            return
        yield token
        if i + 1 == n_predict or pos == context.n_ctx:
            return
        feed(context, batch, [token], pos)
        pos += 1
