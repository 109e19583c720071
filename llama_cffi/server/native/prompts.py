"""The prompts of llama-server's completions as tokens."""

from __future__ import annotations

from typing import Any

from ...binding import Vocab
from ...generation.prompt import tokenize_prompt
from ..body import Object
from ..errors import invalid
from ..fields import are_ids, check_tokens, is_id

__all__ = ["prompt_tokens"]

_MAX_ITEMS = 2048


def prompt_tokens(vocab: Vocab, given: str | list[Any] | Object) -> list[list[int]]:
    """Return the tokens of one or several prompts.

    Raises:
        ApiError: A prompt is something else than text, ids, a list of both, or an object with a
            `prompt_string`; or it is empty.
    """
    if not isinstance(given, list) or any(is_id(item) for item in given):
        return [_tokens(vocab, "prompt", given)]
    if not given:
        raise invalid("prompt", "prompt must not be empty")
    if len(given) > _MAX_ITEMS:
        raise invalid("prompt", f"prompt has {len(given)} items; at most {_MAX_ITEMS} are allowed")
    return [_tokens(vocab, f"prompt[{i}]", item) for i, item in enumerate(given)]


def _tokens(vocab: Vocab, where: str, item: Any) -> list[int]:
    if isinstance(item, dict):
        if item.get("multimodal_data"):
            message = f"{where} has multimodal_data; this server takes no pictures and audio yet"
            raise invalid("prompt", message)
        item = item.get("prompt_string")
        where = f"{where}.prompt_string"
        if not isinstance(item, str):
            raise invalid("prompt", f"{where} must be a string")
    parts = [item] if isinstance(item, str) else item
    if not isinstance(parts, list):
        raise invalid("prompt", f"{where} must be text, token ids, a list of both, or an object")
    if parts and are_ids(parts):
        check_tokens("prompt", where, parts, len(vocab))
        return parts
    tokens: list[int] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            tokens += vocab.tokenize(part, False, True) if i else tokenize_prompt(vocab, part)
        elif not is_id(part):
            raise invalid("prompt", f"{where}[{i}] must be text or a token id")
        else:
            check_tokens("prompt", where, [part], len(vocab))
            tokens.append(part)
    if not tokens:
        raise invalid("prompt", f"{where} is empty: there is nothing to continue")
    return tokens
