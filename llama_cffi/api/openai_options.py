"""OpenAI's options that are not about generation: what they mean for a local model.

Source: https://platform.openai.com/docs/api-reference, create chat completion and completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ..errors import ValidationError
from ..validation import check_bool, reject_unknown

__all__ = ["OpenAIOptions", "StreamOptions", "take_openai_options"]


class StreamOptions(TypedDict, total=False):
    """OpenAI's `stream_options`.

    `include_usage`: a last chunk without choices has the usage of the whole request; in the other
    chunks it is None. `include_obfuscation`: accepted and not used.
    """

    include_usage: bool | None
    include_obfuscation: bool | None


class OpenAIOptions(TypedDict, total=False):
    """OpenAI's options that do not change the answer; None means not given.

    `stream_options`: see `StreamOptions`; only with `stream`. The others are accepted and not used:
    they identify the user, or concern accounts, caches and speed of OpenAI's service.
    """

    stream_options: StreamOptions | None
    user: str | None
    metadata: Mapping[str, str] | None
    store: bool | None
    service_tier: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    prompt_cache_options: Mapping[str, object] | None
    prediction: Mapping[str, object] | None


_MORE = ("modalities", "verbosity")
_REFUSED = {
    "audio": "models answer in text only; leave it out",
    "moderation": "it is a service of OpenAI; leave it out",
    "web_search_options": "models cannot search the web; offer a search function in tools",
}


def take_openai_options(options: dict[str, Any], stream: bool) -> bool:
    """Remove OpenAI's options from *options*; return whether a stream ends with the usage.

    Args:
        options: The options of a request without those that are None.
        stream: Whether the request is streamed.

    Raises:
        UnknownOptionError: `stream_options` has an option that does not exist.
        ValidationError: An option asks for something that a local model cannot do.
    """
    if stream is not None:  # JSON's null
        check_bool("stream", stream)
    for name, reason in _REFUSED.items():
        if name in options:
            raise ValidationError(f"{name}={options[name]!r} is not supported: {reason}")
    found = {name: options.pop(name, None) for name in (*OpenAIOptions.__annotations__, *_MORE)}
    if found["modalities"] not in (None, ["text"], ("text",)):
        raise ValidationError(
            f"modalities={found['modalities']!r} is not supported: models answer in text only; "
            'leave it out, or give ["text"]'
        )
    if found["verbosity"] not in (None, "medium"):
        raise ValidationError(
            f"verbosity={found['verbosity']!r} is not supported: models have no such setting; ask "
            "for a short or a long answer in the system message"
        )
    return _includes_usage(found["stream_options"], stream)


def _includes_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise ValidationError(
            f'stream_options must be a dict such as {{"include_usage": True}}, got {options!r}'
        )
    reject_unknown(options, StreamOptions.__annotations__, "stream_options")
    if not stream:
        raise ValidationError("stream_options is for stream=True; leave it out, or stream")
    wanted = options.get("include_usage") or False
    if not isinstance(wanted, bool):
        raise ValidationError(f"include_usage must be True or False, got {wanted!r}")
    return wanted
