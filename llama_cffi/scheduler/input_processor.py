"""Input processing: checks the arguments of a request and makes its handle, in any thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..binding import Model
from ..errors import ValidationError
from ..generation.context_policy import fit_prompt
from ..generation.options import GenerationCall, parse_options
from ..generation.output import Detokenizer
from ..generation.prompt import Prompt, check_prompt, tokenize_prompt
from ..generation.sequence import ReasoningLimit
from ..validation import INT32_MAX, check_callable, check_float, check_int, shown
from .request import Request
from .request_handle import Owner, RequestHandle

__all__ = ["check_adapters", "check_options", "make_handle"]

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
        max_tokens: Maximum number of tokens to generate; None: until the model ends or the context
            is full.
        options: `GenerationOptions`.
        context_policy: The default for the option of that name.
        n_ctx: Maximum number of tokens of prompt and answer.
        recommended: See `parse_options`.
        reasoning_limit: See `parse_options`.

    Raises:
        ValidationError: An option is unknown or out of range.
    """
    defaults = {"context_policy": context_policy}
    call = parse_options(
        max_tokens, options, n_ctx,
        defaults=defaults, recommended=recommended, reasoning_limit=reasoning_limit,
    )  # fmt: skip
    if call.params.context_policy == "shift":
        raise ValidationError(
            "context_policy='shift' needs a context that serves one request at a time: use Engine, "
            "or Llama without n_parallel"
        )
    if not call.params.reset_kv_cache:
        raise ValidationError(
            "reset_kv_cache=False continues a session, which needs a context that serves one "
            "request at a time: use Engine, or Llama without n_parallel"
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
    id: str | None = None,
    client: str | None = None,
) -> RequestHandle:
    """Make a request and its handle.

    Args:
        model: The model that answers.
        n_ctx: Maximum number of tokens of prompt and answer.
        prompt: See `InferenceEngine.submit`, also for the arguments after *owner*.
        call: The checked options.
        owner: The engine.
        priority: See above.
        callback: See above.
        adapters: See above.
        n_draft: See above.
        id: See above.
        client: See above.

    Raises:
        ContextOverflowError: The prompt fills the context, so no token can be generated.
        ValidationError: An argument is out of range.
    """
    vocab, params = model.vocab, call.params
    check_prompt(prompt)
    if isinstance(prompt, str):
        prompt = tokenize_prompt(vocab, prompt)
    if not isinstance(prompt, Prompt):
        prompt = Prompt(vocab.check_all(prompt))
    check_callable("callback", callback)
    if id is not None and not (isinstance(id, str) and id):
        raise ValidationError(f"id={id!r} must be a str that is not empty")
    if client is not None and not isinstance(client, str):
        raise ValidationError(f"client={client!r} must be a str")
    n_first = int(vocab.add_bos)
    fit = fit_prompt(
        prompt,
        params.max_tokens,
        n_ctx,
        params.safety,
        params.context_policy,
        n_first=n_first,
    )
    request = Request(
        fit.prompt,
        fit.max_tokens,
        params.sampling,
        stop=[s for s in params.stop if isinstance(s, str)],
        priority=check_int("priority", priority, -INT32_MAX),
        timeout_s=call.timeout_s,
        callback=callback,
        cache_prompt=params.cache_prompt,
        lora_key=None if adapters is None else _lora_key(adapters),
        n_draft=None if n_draft is None else check_int("n_draft", n_draft, 0),
        id=id,
        client=client,
    )
    request.stats.n_truncated = fit.n_truncated
    return RequestHandle(request, params, Detokenizer(vocab, params), owner)


def check_adapters(adapters: Mapping[str, float]) -> dict[str, float]:
    """Return LoRA files and their scales.

    Raises:
        ValidationError: They are something else, or a scale is out of range.
    """
    if not isinstance(adapters, Mapping):
        raise ValidationError(
            f"adapters must be a dict of LoRA files and scales, got {shown(adapters)}; write "
            '{"adapter.gguf": 1.0}'
        )
    return {
        os.fspath(path): check_float("an adapter's scale", scale, -_MAX_SCALE, _MAX_SCALE)
        for path, scale in adapters.items()
    }


def _lora_key(adapters: Mapping[str, float]) -> frozenset[tuple[str, float]] | None:
    """Return the key of requests that may share a batch; a scale of 0 counts as none."""
    return frozenset((path, s) for path, s in check_adapters(adapters).items() if s) or None
