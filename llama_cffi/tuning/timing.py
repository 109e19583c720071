"""Time prompts and single tokens on a context, without tokenizing and sampling."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..binding import Context, Model

__all__ = ["Request", "Sample", "generate", "prefill", "time_request"]

_N_WARM = 32


class Request(NamedTuple):
    """What is timed.

    Attributes:
        n_prompt: Tokens of the prompt.
        n_gen: Tokens of the answer after it; 0: none.
        n_repeat: How often; medians count.
    """

    n_prompt: int
    n_gen: int
    n_repeat: int = 1


class Sample(NamedTuple):
    """The seconds of one request.

    Attributes:
        prefill_s: Evaluating its prompt.
        decode_s: Its answer.
        waited: The part of the time in which threads waited for a processor.
    """

    prefill_s: float
    decode_s: float
    waited: float = 0.0

    @property
    def total_s(self) -> float:
        """The whole request."""
        return self.prefill_s + self.decode_s


def prefill(context: Context, n_tokens: int, pos: int) -> None:
    """Evaluate *n_tokens* arbitrary tokens from position *pos* on, in batches."""
    from ..binding import Batch

    batch, n_vocab = Batch(context.n_batch, library=context.model.library), context.n_vocab
    for begin in range(0, n_tokens, context.n_batch):
        tokens = [
            (7919 * (begin + i) + 13) % n_vocab
            for i in range(min(context.n_batch, n_tokens - begin))
        ]
        batch.fill(tokens, pos + begin)
        context.decode(batch)


def generate(context: Context, n_tokens: int, pos: int) -> None:
    """Evaluate *n_tokens* arbitrary tokens from position *pos* on, one after another."""
    from ..binding import Batch

    batch, n_vocab = Batch(1, library=context.model.library), context.n_vocab
    for i in range(n_tokens):
        batch.fill([(7919 * i + 17) % n_vocab], pos + i)
        context.decode(batch)
        context.synchronize()


def time_request(model: Model, options: Mapping[str, Any], request: Request) -> Sample:
    """Time a request on a new context.

    Args:
        model: The model.
        options: Arguments of `Context`.
        request: The request.
    """
    from ..binding import Context
    from ..binding.processors import run_queue_waits

    n_prompt, n_gen, n_repeat = request
    prefill_s, decode_s = [], []
    with Context(model, n_ctx=max(n_prompt + n_gen, 64), **options) as context:
        n_warm = min(n_prompt, _N_WARM)
        prefill(context, n_warm, 0)
        generate(context, 1, n_warm)
        waits = sum(run_queue_waits().values())
        for _ in range(n_repeat):
            context.memory.clear()
            context.synchronize()
            start = time.perf_counter()
            prefill(context, n_prompt, 0)
            context.synchronize()
            middle = time.perf_counter()
            generate(context, n_gen, n_prompt)
            prefill_s.append(middle - start)
            decode_s.append(time.perf_counter() - middle)
        waits = sum(run_queue_waits().values()) - waits
        n_threads = max(context.n_threads, context.n_threads_batch)
    waited = waits / max(n_threads * (sum(prefill_s) + sum(decode_s)), 1e-9)
    return Sample(statistics.median(prefill_s), statistics.median(decode_s), max(0.0, waited))
