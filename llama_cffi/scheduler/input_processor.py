"""Intake: what callers say of a request is checked, and becomes one. Any thread does this."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..binding import Model
from ..errors import ValidationError
from ..generation.context_policy import fit_prompt
from ..generation.options import Call, make_call
from ..generation.sequence import TextOutput
from ..validation import INT32_MAX, check_float, check_int
from .request import Request
from .request_handle import Handle, Owner

__all__ = ["check_options", "make_handle"]

_MAX_SCALE = 1e6


def check_options(max_tokens: int, options: Mapping[str, Any], context_policy: str) -> Call:
    """Check the options of a request.

    Args:
        max_tokens: Most tokens to generate.
        options: `StreamOptions`.
        context_policy: Where the options say nothing of it.

    Raises:
        ValidationError: One is unknown or out of range.
    """
    defaults = {"context_policy": context_policy, "safety": None, "json_stop": ()}
    max_tokens = check_int("max_tokens", max_tokens, 1)
    call = make_call(max_tokens, {**defaults, **options}, None, (None, None, None))
    if call.request.policy == "shift":
        raise ValidationError(
            "context_policy='shift' needs a context of one's own: use Engine, or Llama without "
            "parallel"
        )
    return call


def make_handle(
    model: Model,
    n_ctx: int,
    prompt: str | Sequence[int],
    call: Call,
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
    vocab, params = model.vocab, call.request
    if isinstance(prompt, str):
        prompt = vocab.tokenize(prompt, True, True)
    tokens = vocab.check_all(prompt)
    if callback is not None and not callable(callback):
        raise ValidationError(f"callback={callback!r} cannot be called")
    n_first = int(vocab.add_bos)
    fit = fit_prompt(tokens, params.n_predict, n_ctx, params.safety, params.policy, n_first=n_first)
    request = Request(
        fit.tokens,
        fit.n_predict,
        params.params,
        stop=[s for s in params.stop if isinstance(s, str)],
        priority=check_int("priority", priority, -INT32_MAX),
        timeout_s=call.timeout_s,
        callback=callback,
        group=_group(adapters) if adapters else None,
        n_draft=None if n_draft is None else check_int("n_draft", n_draft, 0),
    )
    request.stats.n_truncated = fit.n_truncated
    return Handle(request, params, TextOutput(vocab, params), owner)


def _group(adapters: Mapping[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset(
        (os.fspath(path), check_float("an adapter's scale", scale, -_MAX_SCALE, _MAX_SCALE))
        for path, scale in adapters.items()
    )
