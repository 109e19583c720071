"""The prompts of `Engine`: the model's chat template, or Polaris Core's prompt format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..chat.messages import plain_messages
from ..errors import ValidationError
from ..generation.chat_renderer import ChatRenderer, RenderedChat
from . import environment

if TYPE_CHECKING:
    from ..binding import Model
    from ..generation.media import MediaProcessor

    Messages = Sequence[Mapping[str, object] | tuple[str, str]]
    Tools = Sequence[Mapping[str, object] | Callable[..., object]]

__all__ = ["ChatPrompts"]

_ROLES = ("system", "user", "assistant")
# What Polaris Core writes, and what it appends to suppress reasoning.
_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}\n<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n{% endif %}{% endif %}"
)


class ChatPrompts:
    """Renders the conversations of an engine.

    Args:
        model: The model.
        chat_format: See `Engine`.
        media: Turns pictures and sounds into cells.
    """

    def __init__(self, model: Model, chat_format: str | None, media: MediaProcessor) -> None:
        self._model, self._chat_format, self._media = model, chat_format, media

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Renders through `chat_format`, or the model's chat template; created on first use."""
        return ChatRenderer(self._model, self._chat_format, self._media)

    @cached_property
    def _chatml(self) -> ChatRenderer:
        bos = "{{ bos_token }}" if self._model.vocab.add_bos else ""
        return ChatRenderer(self._model, bos + _CHATML, self._media)

    def render(
        self,
        messages: Messages,
        tools: Tools | None = None,
        options: Mapping[str, Any] | None = None,
        suppress_think: bool | None = None,
    ) -> RenderedChat:
        """Render a conversation; see `ChatRenderer.render`, also for the errors.

        Args:
            messages: In OpenAI's format, or pairs `(role, content)`; see `Engine.generate_chat`.
            tools: Tool definitions, or Python functions.
            options: `ChatOptions`.
            suppress_think: Keep the model from reasoning, unless *options* say whether it does;
                None: the environment's choice.

        Raises:
            ValidationError: An environment variable has an invalid value.
        """
        uses_own = self._chat_format is not None or environment.flag("JINJA", None, True)
        renderer, dicts = self.renderer if uses_own else self._chatml, _as_dicts(messages)
        given = {name: value for name, value in (options or {}).items() if value is not None}
        suppresses = environment.flag("SUPPRESS_THINK", suppress_think, False)
        if suppresses and not given.keys() & {"thinking", "reasoning_effort"}:
            return renderer.render_without_reasoning(dicts, tools, **given)
        return renderer.render(dicts, tools, **given)


def _as_dicts(
    messages: Sequence[Mapping[str, object] | tuple[str, str]],
) -> Sequence[Mapping[str, object]]:
    """Return *messages* with the pairs `(role, content)` among them as Polaris Core reads them.

    Raises:
        ValidationError: A pair is not two strings.
    """
    found: list[Mapping[str, object]] = []
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        return plain_messages(messages)  # which refuses them
    for message in messages:
        if not isinstance(message, (tuple, list)):
            found.append(message)
            continue
        if len(message) != 2 or not all(isinstance(part, str) for part in message):
            raise ValidationError(
                f"a message must be a dict or a pair (role, content) of str, got {message!r}"
            )
        role, content = message
        if content:
            found.append({"role": role if role in _ROLES else "user", "content": content})
    return found
