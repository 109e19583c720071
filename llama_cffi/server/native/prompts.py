"""The prompts of llama-server's completions as tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...binding import Vocab
from ...chat.media_parts import MARKER
from ...errors import ValidationError
from ...generation.prompt import Prompt, check_prompt, tokenize_prompt
from ...media import Audio, MediaPolicy, load_media
from ..body import Object
from ..errors import invalid
from ..fields import are_ids, check_tokens, is_id
from ..media import MediaBudget, check_takes, loading

if TYPE_CHECKING:
    from ...api.llama import Llama

__all__ = ["has_media", "prompt_tokens"]

_MAX_ITEMS = 2048


def has_media(given: str | list[Any] | Object) -> bool:
    """Return whether pictures or sounds are among prompts, so that preparing them takes long."""
    items = given if isinstance(given, list) else [given]
    return any(isinstance(item, dict) and item.get("multimodal_data") for item in items)


def prompt_tokens(
    llm: Llama, given: str | list[Any] | Object, policy: MediaPolicy
) -> list[list[int]]:
    """Return the tokens of one or several prompts.

    Args:
        llm: The model.
        given: The prompts.
        policy: The limits of pictures and sounds.

    Raises:
        ApiError: A prompt is something else than text, ids, a list of both, or an object with a
            `prompt_string`; or it is empty.
        ValidationError: The model does not take a picture or sound, or it cannot be decoded.
    """
    if not isinstance(given, list) or any(is_id(item) for item in given):
        return [_tokens(llm, "prompt", given, policy)]
    if not given:
        raise invalid("prompt", "prompt must not be empty")
    if len(given) > _MAX_ITEMS:
        raise invalid("prompt", f"prompt has {len(given)} items; at most {_MAX_ITEMS} are allowed")
    return [_tokens(llm, f"prompt[{i}]", item, policy) for i, item in enumerate(given)]


def _tokens(llm: Llama, where: str, item: Any, policy: MediaPolicy) -> list[int]:
    vocab = llm.model.vocab
    if isinstance(item, dict):
        data = item.get("multimodal_data") or []
        item = item.get("prompt_string")
        if not isinstance(item, str):
            raise invalid("prompt", f"{where}.prompt_string must be a string")
        if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
            raise invalid("prompt", f"{where}.multimodal_data must be a list of base64 strings")
        n = item.count(MARKER)
        if n != len(data):
            raise invalid(
                "prompt",
                f"{where}.prompt_string has {n} times {MARKER}, and multimodal_data has "
                f"{len(data)} items; each needs the other",
            )
        if data:
            return _with_media(llm, where, item, data, policy)
        where = f"{where}.prompt_string"
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


def _with_media(llm: Llama, where: str, text: str, data: list[str], policy: MediaPolicy) -> Prompt:
    """Return a text with pictures and sounds in place of its markers."""
    with loading(where):
        check_takes(llm, None, f"{where}.multimodal_data")
    budget = MediaBudget(policy)
    vocab: Vocab = llm.model.vocab
    texts = text.split(MARKER)
    prompt = Prompt(tokenize_prompt(vocab, texts[0]))
    for i, (one, after) in enumerate(zip(data, texts[1:], strict=True)):
        place = f"{where}.multimodal_data[{i}]"
        with loading(place):
            media = load_media(one, place, policy)
            budget.add(media, place)
            check_takes(llm, "audio" if isinstance(media, Audio) else "image", place)
            llm.engine.media.add(prompt, media)
        prompt += vocab.tokenize(after, False, True)
    try:
        check_prompt(prompt)
    except ValidationError as e:
        raise invalid("prompt", f"{where}.prompt_string: {e}") from None
    return prompt
