"""One generation: prompt tokens in, answer tokens out."""

from __future__ import annotations

import time
from collections.abc import Generator

from ..errors import ValidationError
from .cancellation import CancelToken
from .context_policy import fit_prompt
from .output import StopChecker
from .prompt import Prompt
from .sampler_chains import Chain
from .sequence import GenerationParams, SequenceState
from .slot import Slot
from .stats import GenerationStats

__all__ = ["generate"]


def generate(
    slot: Slot,
    chain: Chain,
    prompt: Prompt,
    params: GenerationParams,
    stop: CancelToken,
    stats: GenerationStats,
    output: StopChecker,
) -> Generator[int, None, None]:
    """Yield the tokens of the answer to *prompt*, ending before an EOG token.

    A token is decoded only when the next one is asked for, and has to be sampled.

    Args:
        slot: Where the tokens are decoded.
        chain: Chooses the tokens; accepts the prompt's last ones too.
        prompt: At least one token.
        params: Parameters of the generation.
        stop: Ends it from outside.
        stats: Filled in while it runs.
        output: Receives what the chain accepts, and says when the answer ends.

    Raises:
        ContextOverflowError: The prompt leaves no room.
        DecodeAbortedError: *stop* was asked for.
        GenerationError: Decoding failed.
    """
    context = slot.context
    n_first = int(context.model.vocab.add_bos)
    fit = fit_prompt(
        prompt,
        params.max_tokens,
        context.n_ctx,
        params.safety,
        params.context_policy,
        n_first=n_first,
    )
    shifts = params.context_policy == "shift" and _check_shift(slot)
    capacity = context.n_ctx - params.safety
    n_keep = min(len(fit.prompt), capacity // 2)
    stats.n_prompt, stats.n_truncated = len(fit.prompt), fit.n_truncated
    if not params.cache_prompt:
        slot.clear()
    stats.n_reused = slot.reuse(fit.prompt)
    answer = SequenceState(chain, params, fit.max_tokens, output, stats)
    started = time.perf_counter()
    slot.feed(fit.prompt.part(stats.n_reused), stop, stats)
    began = time.perf_counter()
    stats.prefill_s = began - started
    held: list[int] = []  # handed out, but not decoded
    try:
        answer.begin(fit.prompt)
        while (token := answer.next(context)) is not None:
            handed_out = time.perf_counter()
            if stats.n_generated == 1:
                stats.time_to_first_token_s += handed_out - started
            yield token
            began += time.perf_counter() - handed_out  # the caller's time
            if answer.finish_reason:
                break
            held.append(token)
            if answer.is_forced and len(slot.tokens) + len(held) < capacity:
                continue
            if shifts and len(slot.tokens) >= capacity:
                n_discard = max(1, (len(slot.tokens) - n_keep) // 2)
                slot.shift(n_keep, n_discard)
                stats.n_shifted += n_discard
            if stop.reason is not None:
                stop.check()
            if len(held) > 1:
                slot.feed(held, stop, stats)
            else:
                slot.step(token, stop, stats)
            held.clear()
        stats.finish_reason = answer.finish_reason
    finally:
        answer.end()
        stats.decode_s = time.perf_counter() - began


def _check_shift(slot: Slot) -> bool:
    if not slot.context.memory.can_shift:
        raise ValidationError(
            "the memory of this model cannot shift; choose another context_policy than 'shift'"
        )
    return True
