"""The generation loop: prompt tokens in, answer tokens out."""

from __future__ import annotations

import time
from collections.abc import Generator

from ..errors import ValidationError
from .cancellation import CancelToken
from .context_policy import fit_prompt
from .output import StopChecker
from .prompt import Prompt, check_prompt
from .prompt_progress import PromptReport
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
    cancel_token: CancelToken,
    stats: GenerationStats,
    output: StopChecker,
) -> Generator[int, None, None]:
    """Yield the tokens of the answer to *prompt*, ending before an EOG token.

    A token is decoded only when the next one is requested and has to be sampled. If other calls
    have used the slot since the last token, so that `slot.tokens` is another list, what the memory
    lost is decoded again.

    Args:
        slot: Decodes the tokens.
        chain: Samples the tokens; accepts the last prompt tokens too.
        prompt: Token ids, at least one.
        params: Parameters of the generation.
        cancel_token: Stops the generation from the outside.
        stats: Updated during the generation.
        output: Receives accepted tokens, and finds the end of the answer.

    Raises:
        ContextOverflowError: The prompt leaves no room for an answer.
        ValidationError: The prompt ends with a picture or sound.
        DecodeAbortedError: *cancel_token* requested a stop.
        GenerationError: Decoding failed.
    """
    check_prompt(prompt)
    context = slot.context
    vocab = context.model.vocab
    n_first = int(vocab.add_bos)
    if not params.reset_kv_cache:
        prompt = slot.continued(prompt, vocab.bos)
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
    sequence = SequenceState(chain, params, fit.max_tokens, output, stats)
    started = time.perf_counter()
    report = None
    if params.prompt_progress is not None:
        report = PromptReport(params.prompt_progress, stats.n_prompt, stats.n_reused)
    slot.feed(fit.prompt.part(stats.n_reused), cancel_token, stats, report)
    decode_started = time.perf_counter()
    stats.prefill_s = decode_started - started
    pending: list[int] = []  # yielded, but not decoded
    cells = slot.tokens
    try:
        sequence.begin(fit.prompt)
        while (token := sequence.next(context)) is not None:
            yielded = time.perf_counter()
            if stats.n_generated == 1:
                stats.time_to_first_token_s += yielded - started
            pending.append(token)
            yield token
            decode_started += time.perf_counter() - yielded  # without the caller's time
            if sequence.finish_reason:
                break
            if cancel_token.reason is not None:
                cancel_token.check()
            if sequence.is_forced and len(cells) + len(pending) < capacity:
                continue
            if cells is not slot.tokens:
                slot.feed(cells.part(slot.reuse(cells)), cancel_token, stats)
                cells = slot.tokens
            if shifts and len(cells) >= capacity:
                n_discard = max(1, (len(cells) - n_keep) // 2)
                slot.shift(n_keep, n_discard)
                stats.n_shifted += n_discard
            if len(pending) > 1:
                slot.feed(pending, cancel_token, stats)
            else:
                slot.step(token, cancel_token, stats)
            pending.clear()
            cells = slot.tokens
        stats.finish_reason = sequence.finish_reason
    finally:
        sequence.end()
        if cells is slot.tokens:
            slot.end_with(pending)
        stats.decode_s = time.perf_counter() - decode_started


def _check_shift(slot: Slot) -> bool:
    if not slot.context.memory.can_shift:
        raise ValidationError(
            "the memory of this model cannot shift; choose another context_policy than 'shift'"
        )
    return True
