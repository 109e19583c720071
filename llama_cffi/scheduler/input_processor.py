"""Intake: what callers say of a request is checked, and becomes one. Any thread does this."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..binding import Model
from ..errors import ValidationError
from ..generation.context_policy import fit_prompt
from ..generation.options import GenerationCall, parse_options
from ..generation.output import Detokenizer
from ..generation.prompt import tokenize_prompt
from ..generation.sequence import ReasoningLimit
from ..validation import INT32_MAX, integer, real
from .request import Request
from .request_handle import Handle, Owner

__all__ = ["check_options", "make_handle"]

_MAX_SCALE = 1e6


def check_options(
    max_tokens: int | None,
    options: Mapping[str, Any],
    context_policy: str,
    n_ctx: int,
    recommended: Callable[[], Mapping[str, float]] | None = None,
    reasoning_limit: Callable[[], ReasoningLimit] | None = None,
) -> GenerationCall:
    """Check the options of a request.

    Args:
        max_tokens: Most tokens to generate; None: until the model ends or the context is full.
        options: `GenerationOptions`.
        context_policy: The engine's.
        n_ctx: Most tokens of prompt and answer.
        recommended: See `parse_options`.
        reasoning_limit: See `parse_options`.

    Raises:
        ValidationError: One is unknown or out of range.
    """
    defaults = {"context_policy": context_policy}
    call = parse_options(
        max_tokens, options, n_ctx,
        defaults=defaults, recommended=recommended, reasoning_limit=reasoning_limit,
    )  # fmt: skip
    if call.params.context_policy == "shift":
        raise ValidationError(
            "context_policy='shift' needs a context of its own: use Engine, or Llama without "
            "n_parallel"
        )
    return call


def make_handle(
    model: Model,
    n_ctx: int,
    prompt: str | Sequence[int],
    call: GenerationCall,
    owner: Owner,
    *,
    priority: int,
    callback: Callable[[str], object] | None,
    adapters: Mapping[str, float] | None,
    n_draft: int | None,
) -> Handle:
    """Make the handle of a request.

    Args:
        model: Answers it.
        n_ctx: Most tokens of prompt and answer.
        prompt: See `InferenceEngine.submit`, also for what follows *owner*.
        call: The other options.
        owner: The engine.
        priority: See above.
        callback: See above.
        adapters: See above.
        n_draft: See above.

    Raises:
        ContextOverflowError: The prompt leaves no room for an answer.
        ValidationError: An argument is out of range.
    """
    vocab, params = model.vocab, call.params
    if isinstance(prompt, str):
        prompt = tokenize_prompt(vocab, prompt)
    tokens = vocab.check_all(prompt)
    if callback is not None and not callable(callback):
        raise ValidationError(f"callback={callback!r} cannot be called")
    n_first = int(vocab.add_bos)
    fit = fit_prompt(
        tokens,
        params.max_tokens,
        n_ctx,
        params.safety,
        params.context_policy,
        n_first=n_first,
    )
    request = Request(
        fit.tokens,
        fit.max_tokens,
        params.sampling,
        stop=[s for s in params.stop if isinstance(s, str)],
        priority=integer("priority", priority, -INT32_MAX),
        timeout_s=call.timeout_s,
        callback=callback,
        group=_group(adapters) if adapters else None,
        n_draft=None if n_draft is None else integer("n_draft", n_draft, 0),
    )
    request.stats.n_truncated = fit.n_truncated
    return Handle(request, params, Detokenizer(vocab, params), owner)


def _group(adapters: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset(
        (os.fspath(path), real("an adapter's scale", scale, -_MAX_SCALE, _MAX_SCALE))
        for path, scale in adapters.items()
    )
