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

__all__ = ["MediaBudget", "PlacedPart", "check_takes", "load_messages", "loading"]

_WHAT = {None: "a picture or sound", "image": "a picture", "audio": "a sound"}
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
    return await whole_async(lambda: _loaded(llm, messages, policy))


def check_takes(llm: Llama, kind: str | None, where: str) -> None:
    """Refuse a picture or sound that a model does not take.

    Args:
        llm: The model.
        kind: `image` or `audio`; None: either.
        where: Its place in the request.

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
    takes = {"image": projector.supports_images, "audio": projector.supports_audio}
    if kind is not None and not takes[kind]:
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
        message = str(e)
        message = message if message.startswith(where) else f"{where}: {message}"
        raise ValidationError(message) from None
    except ValidationError:
        raise
    except LlamaError as e:
        raise not_supported(f"{where} cannot be used here: {e}") from None


class MediaBudget:
    """What the pictures and sounds of one conversation may be together.

    Args:
        policy: The limits.
    """

    def __init__(self, policy: MediaPolicy) -> None:
        self._policy = policy
        self._n_items = self._n_pixels = 0
        self._seconds = 0.0

    def add(self, media: Image | Audio, where: str) -> None:
        """Count a picture or sound.

        Raises:
            ValidationError: It is too much.
        """
        self._n_items += 1
        most_s, most = self._policy.max_audio_s, self._policy.max_pixels * _MOST_LARGE
        if self._n_items > self._policy.max_items:
            raise ValidationError(
                f"{where}: the conversation has more than {self._policy.max_items} pictures and "
                "sounds; leave older ones out"
            )
        if isinstance(media, Audio):
            self._seconds += media.duration_s
        else:
            self._n_pixels += media.width * media.height
        if self._seconds > most_s:
            raise ValidationError(
                f"{where}: the sounds of the conversation last more than {most_s:g} s together; "
                "leave older ones out"
            )
        if self._n_pixels > most:
            raise ValidationError(
                f"{where}: the pictures of the conversation have more than {most:,} pixels "
                "together; send smaller ones"
            )


def _loaded(llm: Llama, messages: Sequence[Any], policy: MediaPolicy) -> list[Any]:
    budget = MediaBudget(policy)

    def load(part: Any, where: str) -> Any:
        if (kind := is_media_part(part)) is None:
            return part
        if isinstance(part, PlacedPart):
            where = part.where
        with loading(where):
            check_takes(llm, kind, where)
            media = load_part(part, where, policy)
        budget.add(media, where)
        return media

    found = []
    for i, message in enumerate(messages):
        if _has_media(message):
            content = message["content"]
            parts = [content] if isinstance(content, Mapping) else content
            place = f"messages[{i}]['content']"
            loaded = [load(part, f"{place}[{j}]") for j, part in enumerate(parts)]
            message = {**message, "content": loaded}
        found.append(message)
    return found


def _has_media(message: Any) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = [content] if isinstance(content, Mapping) else content
    return isinstance(parts, (list, tuple)) and any(map(is_media_part, parts))
