"""OpenAI's options that are not about generation: what they mean for a local model.

Source: https://platform.openai.com/docs/api-reference, create chat completion and completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from ..errors import ValidationError
from ..validation import check_bool, reject_unknown

__all__ = ["OpenAIOptions", "StreamFields", "StreamOptions", "take_openai_options"]


class StreamOptions(TypedDict, total=False):
    """OpenAI's `stream_options`.

    `include_usage`: a last chunk without choices has the usage of the whole request; in the other
    chunks it is None. `include_obfuscation`: accepted and not used.

    Not OpenAI's: `include_stop_reason`: the last choice of an answer has vLLM's `stop_reason`, the
    stop string that ended the answer; None: no stop string did.
    """

    include_usage: bool | None
    include_obfuscation: bool | None
    include_stop_reason: bool | None


class StreamFields(NamedTuple):
    """The fields of chunks that were asked for; see `StreamOptions`."""

    usage: bool = False
    stop_reason: bool = False


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


def take_openai_options(options: dict[str, Any], stream: bool) -> StreamFields:
    """Remove OpenAI's options from *options*; return the fields that a stream has.

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
    return _stream_fields(found["stream_options"], stream)


def _stream_fields(options: object, stream: bool) -> StreamFields:
    if options is None:
        return StreamFields()
    if not isinstance(options, Mapping):
        raise ValidationError(
            f'stream_options must be a dict such as {{"include_usage": True}}, got {options!r}'
        )
    reject_unknown(options, StreamOptions.__annotations__, "stream_options")
    if not stream:
        raise ValidationError("stream_options is for stream=True; leave it out, or stream")
    wanted = []
    for field in StreamFields._fields:
        value = options.get(f"include_{field}") or False
        if not isinstance(value, bool):
            raise ValidationError(f"include_{field} must be True or False, got {value!r}")
        wanted.append(value)
    return StreamFields(*wanted)
