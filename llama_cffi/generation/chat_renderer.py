"""Rendering conversations into prompts, for every class and command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from ..chat.families import Family, identify
from ..chat.messages import plain_messages, plain_tools
from ..chat.reasoning import resolve_reasoning_effort
from ..chat.template import ChatTemplate
from ..chat.token_injection import Segment, TokenInjection
from ..errors import ValidationError
from ..validation import as_list

if TYPE_CHECKING:
    from ..binding import Model
    from ..chat.messages import Message

__all__ = ["ChatOptions", "ChatRenderer", "RenderedChat", "as_messages"]

_log = logging.getLogger(__name__)
# Keys of general.sampling.* (gguf-py/gguf/constants.py, since 2025-12) -> options.
_SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "penalty_last_n",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat_mode",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
_INTEGERS = frozenset(("top_k", "penalty_last_n", "mirostat_mode"))


class ChatOptions(TypedDict, total=False):
    """Options of rendering a conversation.

    `thinking`: whether the model reasons first; None: the model's default. `reasoning_effort`:
    OpenAI's `none`, `minimal`, `low`, `medium` or `high`, instead of `thinking`.
    `chat_template_kwargs`: additional variables for the chat template.
    """

    thinking: bool | None
    reasoning_effort: str | None
    chat_template_kwargs: Mapping[str, object] | None


class RenderedChat(NamedTuple):
    """A rendered conversation.

    Attributes:
        tokens: Token ids, with BOS where the template or the vocabulary adds it.
        text: The rendered text.
    """

    tokens: list[int]
    text: str


class ChatRenderer:
    """Renders conversations through a model's own Jinja chat template.

    The text of special tokens in messages, tools or arguments stays text: only the template itself
    can write control tokens. A model without a template gets the contents as plain text, with a
    warning in the log.

    Args:
        model: The model.
        chat_format: Name of a built-in template of llama.cpp, or source of a Jinja template; None:
            the model's own template.

    Attributes:
        family: The model family: tool format, reasoning markers, recommended sampling.

    Raises:
        ValidationError: *chat_format* is not a str.
    """

    def __init__(self, model: Model, chat_format: str | None = None) -> None:
        if chat_format is not None and not isinstance(chat_format, str):
            raise ValidationError(
                f"chat_format must be the name or source of a template, got {chat_format!r}"
            )
        self._model = model
        is_source = chat_format is not None and ("{{" in chat_format or "{%" in chat_format)
        self._builtin = None if is_source else chat_format
        source = chat_format if is_source else model.chat_template
        self._source = None if self._builtin else source
        self.family: Family = identify(model.metadata, model.path.name, self._source)
        self._has_warned = False

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text of each control token -> token id."""
        vocab = self._model.vocab
        return {vocab.text(t): t for t in range(vocab.n_tokens) if vocab.is_control(t)}

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The Jinja template; None: a built-in template of llama.cpp is used, or none."""
        if self._source is None:
            return None
        vocab = self._model.vocab
        bos, eos = ("" if t is None else vocab.text(t) for t in (vocab.bos, vocab.eos))
        return ChatTemplate(self._source, bos, eos, special_tokens=self._guarded)

    @cached_property
    def _guarded(self) -> list[str]:
        """Token texts that messages may not inject.

        llama.cpp treats some of GPT-OSS's control tokens as words; these are found by their form.
        """
        vocab = self._model.vocab
        return [
            text
            for token, text in enumerate(map(vocab.text, range(vocab.n_tokens)))
            if vocab.is_control(token) or (text.startswith("<|") and text.endswith("|>"))
        ]

    @cached_property
    def _injection(self) -> TokenInjection:
        return TokenInjection(self._guarded, ())

    def resolve_thinking(
        self, thinking: bool | None, reasoning_effort: str | None
    ) -> tuple[bool | None, dict[str, str]]:
        """Return whether to reason, and template variables; see `resolve_reasoning_effort`.

        Raises:
            ValidationError: The effort is unknown, both are given, or the model does not support
                it.
        """
        return resolve_reasoning_effort(self.family, self.template, thinking, reasoning_effort)

    def with_stops(self, options: Mapping[str, object]) -> dict[str, object]:
        """Return *options* with the family's end-of-turn strings, which not every GGUF defines.

        Raises:
            ValidationError: `turn_stops` is not a list.
        """
        given = as_list("turn_stops", options.get("turn_stops") or ())
        return {**options, "turn_stops": [*given, *self.family.stops]}

    def recommended_sampling(self, thinking: bool | None = None) -> Mapping[str, float]:
        """Return the sampling options that the model's authors recommend.

        Those in the GGUF (`general.sampling.*`) override those known for the family.

        Args:
            thinking: Whether the model reasons first; None: the model's default.

        Raises:
            ValidationError: The model does not support this value of *thinking*.
        """
        metadata = self._model.metadata
        stored = {
            option: float(metadata[f"general.sampling.{key}"])
            for key, option in _SAMPLING_KEYS.items()
            if f"general.sampling.{key}" in metadata
        }
        found = {**self.family.recommended(thinking), **stored}
        return {name: int(v) if name in _INTEGERS else v for name, v in found.items()}

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None = None,
        thinking: bool | None = None,
        *,
        reasoning_effort: str | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> RenderedChat:
        """Render a conversation into tokens and text.

        Args:
            messages: In OpenAI's format, oldest first.
            tools: Tool definitions, or Python functions to derive them from.
            thinking: Whether the model reasons first; None: the model's default.
            reasoning_effort: OpenAI's `none` to `high`, instead of *thinking*.
            chat_template_kwargs: Additional variables for the template.

        Raises:
            TemplateError: The template does not compile, fails, or refuses these messages.
            ValidationError: A message is invalid, or the model does not support *thinking*.
        """
        if not isinstance(chat_template_kwargs, (Mapping, type(None))):
            raise ValidationError(
                f"chat_template_kwargs must be a mapping, got {chat_template_kwargs!r}"
            )
        thinking, effort = self.resolve_thinking(thinking, reasoning_effort)
        variables = {**effort, **(chat_template_kwargs or {})}
        segments = list(self._segments(messages, tools or None, thinking, variables))
        return RenderedChat(self._tokenize(segments), "".join(s.text for s in segments))

    def _segments(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None,
        thinking: bool | None,
        variables: Mapping[str, object],
    ) -> Sequence[Segment]:
        messages = _tagged(messages, self.family.tag(thinking))
        if self.template is None:
            if tools and self._builtin:
                raise ValidationError(
                    f"chat_format={self._builtin!r} does not support tools; use the model's own "
                    "template"
                )
            if tools:
                messages = _instructed(
                    messages, self.family.tool_format.explain(plain_tools(tools) or []), True
                )
            chat = plain_messages(messages)
            return self._plain(chat) if self._builtin is None else self._built_in(chat)
        if tools and not self.template.supports_tools:
            text = self.family.tool_format.explain(plain_tools(tools) or [])
            messages = _instructed(messages, text, self.template.supports_system)
            tools = None
        kwargs: dict[str, Any] = {**self.family.template_kwargs(thinking), **variables}
        return self.template.render_segments(messages, tools, **kwargs)

    def _plain(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the contents as plain text, for a model without a template."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s has no chat template: it gets the messages as plain text; set chat_format, "
                "to 'chatml' or the source of a Jinja template",
                self._model.path.name,
            )
        return [Segment("\n\n".join(filter(None, map(_text_of, messages))), False)]

    def _built_in(self, messages: Sequence[Message]) -> list[Segment]:
        """Render with one of llama.cpp's built-in templates."""

        def render(values: Mapping[str, Sequence[Message]]) -> str:
            pairs = [(m["role"], _text_of(m)) for m in values["messages"]]
            return self._model.apply_chat_template(pairs, template=self._builtin)

        values = {"messages": [{"role": m["role"], "content": _text_of(m)} for m in messages]}
        return self._injection.segments(render(values), values, render)

    def _tokenize(self, segments: Sequence[Segment]) -> list[int]:
        vocab = self._model.vocab
        if self.template is None and self._builtin is None:
            return vocab.tokenize("".join(segment.text for segment in segments))
        # Jinja templates write BOS; llama.cpp's built-in ones leave it to the vocabulary.
        add_special = self.template is None
        tokens: list[int] = []
        for segment in segments:
            found = vocab.tokenize(segment.text, add_special, segment.is_template)
            if not segment.is_template and len(found) == 1:  # see `_guarded`
                found = [t for part in segment.text for t in vocab.tokenize(part, False)]
            tokens += found
            add_special = False
        return tokens


def _text_of(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        kinds = [part.get("type") for part in parts if isinstance(part, dict)]
        raise ValidationError(f"without a Jinja template, content must be text, got {kinds}")
    return "\n".join(map(str, texts))


def _tagged(messages: Sequence[Mapping[str, object]], tag: str) -> Sequence[Mapping[str, object]]:
    """Append *tag*, which switches reasoning on or off, to the last message."""
    if not tag or not messages or not isinstance(messages[-1].get("content"), str):
        return messages
    last = messages[-1]
    return [*messages[:-1], {**last, "content": f"{last['content']} {tag}"}]


def _instructed(
    messages: Sequence[Mapping[str, object]], text: str, has_system: bool
) -> list[Mapping[str, object]]:
    """Add *text* to the system prompt or, without support for one, to the first message."""
    first = dict(messages[0]) if messages else {}
    content = first.get("content")
    if isinstance(content, str) and (first.get("role") == "system" or not has_system):
        parts = (content, text) if first.get("role") == "system" else (text, content)
        return [{**first, "content": "\n\n".join(parts)}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def as_messages(prompt: str, system_prompt: str = "") -> list[Mapping[str, object]]:
    """Return a conversation of one message of the user, after a system message if there is one.

    Raises:
        ValidationError: An argument is not a str.
    """
    for name, value in (("prompt", prompt), ("system_prompt", system_prompt)):
        if not isinstance(value, str):
            raise ValidationError(f"{name} must be a str, got {value!r}")
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]
