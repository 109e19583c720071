"""Pictures and sounds of requests: loaded by the server, under its own `MediaPolicy`.

Nothing below the server sees an address or a path that a client wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..api.aio import whole_async
from ..context_managers import contextmanager
from ..errors import ClosedError, FetchError, LlamaError, ValidationError
from ..media import Audio, Image, MediaPolicy, is_media_part, load_part
from .errors import not_supported

if TYPE_CHECKING:
    from ..api.llama import Llama
    from .call import Call

__all__ = ["PlacedPart", "check_takes", "load_messages", "loading"]

_WHAT = {"image": "a picture", "audio": "a sound"}
_MOST_LARGE = 4  # pictures of the largest size in one conversation


class PlacedPart(dict[str, object]):
    """A picture or sound in a request that is translated, and its place there.

    Args:
        part: The part.
        where: Its place, for error messages.

    Attributes:
        where: The place.
    """

    def __init__(self, part: Mapping[str, object], where: str) -> None:
        super().__init__(part)
        self.where = where


async def load_messages(call: Call, messages: Sequence[Any]) -> Sequence[Any]:
    """Return messages with their pictures and sounds loaded, in another thread.

    Args:
        call: The request, of which the model is loaded.
        messages: In OpenAI's format; what is not is left to be refused by others.

    Raises:
        ValidationError: The model does not take one, it cannot be loaded, or is not allowed.
        ApiError: A package that decodes it is missing, or the projector is damaged.
    """
    if not any(_has_media(message) for message in messages):
        return messages
    llm, policy = call.model.llm, call.state.settings.media_policy
    return await whole_async(lambda: _Loader(llm, policy).messages(messages))


def check_takes(llm: Llama, kind: str, where: str) -> None:
    """Refuse a picture (`image`) or sound (`audio`) that a model does not take.

    Raises:
        ValidationError: It takes none, or only the other kind.
        FetchError: Its projector cannot be fetched from the hub.
        ModelLoadError: Its projector is damaged.
    """
    try:
        projector = llm.engine.media.projector
    except ClosedError:
        raise
    except ValidationError as e:
        raise ValidationError(
            f"{where} is {_WHAT[kind]}, but this model takes text only: {e}"
        ) from e
    if not (projector.supports_images if kind == "image" else projector.supports_audio):
        other = "pictures" if kind == "audio" else "sounds"
        raise ValidationError(
            f"{where} is {_WHAT[kind]}, but this model takes text and {other} only"
        )


@contextmanager
def loading(where: str) -> Iterator[None]:
    """Turn errors of loading into those that clients see.

    Args:
        where: The place in the request, for messages without one.

    Raises:
        ValidationError: An address cannot be fetched.
        ApiError: A package that decodes it is missing, or the projector is damaged.
    """
    try:
        yield
    except FetchError as e:
        raise ValidationError(f"{where}: {e}") from None
    except ValidationError:
        raise
    except LlamaError as e:
        raise not_supported(f"{where} cannot be used here: {e}") from None


class _Loader:
    """Loads the pictures and sounds of one conversation."""

    def __init__(self, llm: Llama, policy: MediaPolicy) -> None:
        self._llm, self._policy = llm, policy
        self._n_items = self._n_pixels = 0
        self._seconds = 0.0

    def messages(self, messages: Sequence[Any]) -> list[Any]:
        return [
            {**message, "content": self._content(message["content"], f"messages[{i}]['content']")}
            if _has_media(message)
            else message
            for i, message in enumerate(messages)
        ]

    def _content(self, content: Any, where: str) -> list[Any]:
        parts = [content] if isinstance(content, Mapping) else content
        return [
            part if is_media_part(part) is None else self._part(part, f"{where}[{i}]")
            for i, part in enumerate(parts)
        ]

    def _part(self, part: Mapping[str, Any], where: str) -> Image | Audio:
        if isinstance(part, PlacedPart):
            where = part.where
        self._n_items += 1
        if self._n_items > self._policy.max_items:
            raise ValidationError(
                f"{where}: the conversation has more than {self._policy.max_items} pictures and "
                "sounds; leave older ones out"
            )
        with loading(where):
            check_takes(self._llm, str(is_media_part(part)), where)
            media = load_part(part, where, self._policy)
        self._check_sum(media, where)
        return media

    def _check_sum(self, media: Image | Audio, where: str) -> None:
        if isinstance(media, Audio):
            self._seconds += media.duration_s
            most_s = self._policy.max_audio_s
            if self._seconds > most_s:
                raise ValidationError(
                    f"{where}: the sounds of the conversation last more than {most_s:g} s together"
                )
            return
        self._n_pixels += media.width * media.height
        most = self._policy.max_pixels * _MOST_LARGE
        if self._n_pixels > most:
            raise ValidationError(
                f"{where}: the pictures of the conversation have more than {most:,} pixels "
                "together; send smaller ones"
            )


def _has_media(message: Any) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = [content] if isinstance(content, Mapping) else content
    return isinstance(parts, (list, tuple)) and any(map(is_media_part, parts))
