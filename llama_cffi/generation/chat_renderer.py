"""Rendering conversations into prompts, for every class and command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from ..chat.families import Family, identify
from ..chat.media_parts import Messages, split_at_media, take_media, without_marks
from ..chat.messages import plain_messages, plain_tools
from ..chat.reasoning import opens_thinking, resolve_reasoning_effort
from ..chat.template import ChatTemplate, pick_template
from ..chat.token_injection import Segment, TokenInjection
from ..errors import TemplateError, ValidationError
from ..validation import as_list, check_bool, check_choice, check_str, not_picklable
from .prompt import Prompt

if TYPE_CHECKING:
    from ..binding import Model
    from ..chat.formats import ToolFormat
    from ..chat.messages import Message
    from ..media import Audio, Image
    from .media import MediaProcessor

    MediaByMark = Mapping[str, Image | Audio]

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
_REPLY = "Zq7"  # a reply that no template writes by itself
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
        tokens: Token ids, with BOS where the template or the vocabulary adds it, and the cells of
            pictures and sounds.
        text: The rendered text; `<__media__>` for each picture or sound.
    """

    tokens: Prompt
    text: str

    @property
    def is_thinking(self) -> bool:
        """Whether the answer begins inside <think>."""
        return opens_thinking(self.text, "<think>")


class ChatRenderer:
    """Renders conversations through a model's own Jinja chat template.

    The text of special tokens in messages, tools or arguments stays text: only the template itself
    can write control tokens. A model without a template gets the contents as plain text, with a
    warning in the log.

    With tools, a model's template `tool_use` is used, if its GGUF has one.

    Args:
        model: The model.
        chat_format: Name of another template in the GGUF, such as `rag` for
            `tokenizer.chat_template.rag`, or of a built-in template of llama.cpp, or the source of
            a Jinja template; None: the model's own templates.
        media: Turns pictures and sounds into cells; None: they are refused.

    Attributes:
        family: The model family: tool format, reasoning markers, recommended sampling.

    Raises:
        ValidationError: *chat_format* is not a str; or it is None, and the GGUF has several
            templates without a default one.
    """

    def __init__(
        self, model: Model, chat_format: str | None = None, media: MediaProcessor | None = None
    ) -> None:
        if chat_format is not None and not isinstance(chat_format, str):
            raise ValidationError(
                f"chat_format must be the name or source of a template, got {chat_format!r}"
            )
        self._model, self._media = model, media
        metadata = model.metadata
        self._sources = _sources(model.chat_template, metadata)
        self._builtin: str | None = None
        if chat_format is not None:
            if "{{" in chat_format or "{%" in chat_format:
                self._sources = {"default": chat_format}
            elif chat_format in self._sources:
                self._sources = {"default": self._sources[chat_format]}
            else:
                self._sources, self._builtin = {}, _builtin(model, chat_format, self._sources)
        self.family: Family = identify(
            metadata, model.path.name, self._source(), tool_template=self._source(tools=True)
        )
        self._templates: dict[str, ChatTemplate] = {}
        self._has_warned = False

    __reduce__ = not_picklable("make one from the model of the other process")

    def __repr__(self) -> str:
        used = self._builtin or ", ".join(self._sources) or "no template"
        return f"<ChatRenderer {self._model.path.name} family={self.family.name}: {used}>"

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text of each control token -> token id."""
        vocab = self._model.vocab
        return {vocab.text(t): t for t in range(vocab.n_tokens) if vocab.is_control(t)}

    @property
    def template(self) -> ChatTemplate | None:
        """The Jinja template; None: a built-in template of llama.cpp is used, or none.

        Raises:
            ValidationError: The GGUF has several templates, and none of them is the default.
        """
        return self._template(tools=False)

    def _source(self, tools: bool = False) -> str | None:
        return pick_template(self._sources, tools=tools) if self._sources else None

    def _template(self, tools: bool) -> ChatTemplate | None:
        """Return the Jinja template for conversations with, or without, tools."""
        source = self._source(tools)
        if source is None:
            return None
        if source not in self._templates:
            vocab = self._model.vocab
            bos, eos = ("" if t is None else vocab.text(t) for t in (vocab.bos, vocab.eos))
            template = ChatTemplate(source, bos, eos, special_tokens=self._guarded)
            self._templates[source] = template
        return self._templates[source]

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
        if thinking is not None:
            check_bool("thinking", thinking)
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

    def take_media(self, messages: Messages) -> tuple[Messages, MediaByMark]:
        """Return messages with marks for pictures and sounds, and these by mark; see `take_media`.

        Raises:
            ValidationError: One cannot be loaded.
            FetchError: One cannot be fetched.
        """
        return (messages, {}) if self._media is None else take_media(messages)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None = None,
        thinking: bool | None = None,
        *,
        reasoning_effort: str | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        continue_final_message: bool | None = None,
        media: MediaByMark | None = None,
    ) -> RenderedChat:
        """Render a conversation into tokens and text.

        Args:
            messages: In OpenAI's format, oldest first.
            tools: Tool definitions, or Python functions to derive them from.
            thinking: Whether the model reasons first; None: the model's default.
            reasoning_effort: OpenAI's `none` to `high`, instead of *thinking*.
            chat_template_kwargs: Additional variables for the template.
            continue_final_message: End inside the last message, an assistant's, so that the model
                continues it, without reasoning.
            media: What `take_media` returned with *messages*; None: it is called here.

        Raises:
            TemplateError: The template does not compile, fails, or refuses these messages.
            FetchError: A picture or sound cannot be fetched.
            ValidationError: A message is invalid, the model does not support *thinking*, or the
                last message cannot be continued.
        """
        if media is None:
            messages, media = self.take_media(messages)
        elif media:  # some messages may have been dropped
            text = repr(messages)
            media = {mark: item for mark, item in media.items() if mark in text}
        if continue_final_message:
            thinks, _ = self.resolve_thinking(thinking, reasoning_effort)
            if thinking or (reasoning_effort is not None and thinks):
                raise ValidationError(
                    "continue_final_message continues an answer after its reasoning; leave out "
                    "thinking and reasoning_effort"
                )
            return self._continued(messages, tools, chat_template_kwargs, media)
        if not isinstance(chat_template_kwargs, (Mapping, type(None))):
            raise ValidationError(
                f"chat_template_kwargs must be a mapping, got {chat_template_kwargs!r}"
            )
        thinking, effort = self.resolve_thinking(thinking, reasoning_effort)
        variables = {**effort, **(chat_template_kwargs or {})}
        segments = list(self._segments(messages, tools or None, thinking, variables))
        return self._tokenize(segments, media)

    def render_without_reasoning(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None = None,
        *,
        chat_template_kwargs: Mapping[str, object] | None = None,
        media: MediaByMark | None = None,
    ) -> RenderedChat:
        """Render a conversation so that the model answers without reasoning.

        Where the template cannot switch reasoning off, reasoning that it opened is closed, and a
        model that reasons anyway, within <think>, is given an empty block; see `render` for
        arguments and errors.
        """
        family = self.family
        thinking = False if family.thinking in ("default", "request") else None
        chat = self.render(
            messages, tools, thinking, chat_template_kwargs=chat_template_kwargs, media=media
        )
        if family.reasoning is None:
            return chat
        begin, end = family.reasoning
        is_open = opens_thinking(chat.text, begin)
        reasons = family.thinking == "always" or (
            family.thinking == "default" and not family.switch
        )
        if begin != "<think>":
            return self._extended(chat, end) if is_open else chat
        if is_open:
            return self._extended(chat, "\n\n</think>\n\n")
        return self._extended(chat, "<think>\n\n</think>\n\n") if reasons else chat

    def render_reply_start(
        self, messages: Sequence[Mapping[str, object]], media: MediaByMark | None = None
    ) -> tuple[RenderedChat, bool]:
        """Render a conversation up to the first token of a reply's content, without reasoning.

        What the template writes between its generation prompt and the content of a reply, such as
        a channel, is part of the prompt.

        Args:
            messages: See `render`, also for the errors.
            media: See `render`.

        Returns:
            The prompt, and whether the template writes a space before the content.

        Raises:
            ValidationError: The prompt ends inside reasoning.
        """
        chat, lead = self.render_without_reasoning(messages, media=media), self._reply_lead
        spaced = lead.endswith(" ")
        if text := lead.removesuffix(" "):
            chat = self._extended(chat, text)
        reasoning = self.family.reasoning
        if reasoning is not None and opens_thinking(chat.text, reasoning[0]):
            raise ValidationError(
                f"the chat template of {self._model.path.name} opens reasoning "
                f"({reasoning[0].strip()}) that cannot be switched off, so the next token does not "
                "answer; set chat_format to a template without it"
            )
        return chat, spaced

    def render_variables(
        self, variables: Mapping[str, object], end: str = "", dropped: str = ""
    ) -> RenderedChat:
        """Render a template that reads other variables than messages.

        Args:
            variables: The template's variables.
            end: A mark; from its first place on, the text is not part of the prompt.
            dropped: A mark that is not part of the prompt either.

        Raises:
            TemplateError: The template fails.
            ValidationError: There is no Jinja template.
        """
        if self.template is None:
            raise ValidationError(f"{self._model.path.name} has no Jinja chat template")
        empty, kwargs = [{"role": "user", "content": ""}], dict[str, Any](variables)
        segments = []
        for segment in self.template.render_segments(empty, **kwargs):
            text, found, _ = segment.text.partition(end) if end else (segment.text, "", "")
            segments.append(segment._replace(text=text.replace(dropped, "") if dropped else text))
            if found:
                break
        return self._tokenize(segments, {})

    @cached_property
    def _reply_lead(self) -> str:
        """The text that the template writes between a prompt and the content of the reply."""
        messages: list[Mapping[str, object]] = [{"role": "user", "content": "?"}]
        reply = {"role": "assistant", "content": _REPLY}
        if self._builtin is not None:
            return ""
        if self.template is None:
            return " "  # the reply follows plain text
        thinking = False if self.family.thinking in ("default", "request") else None
        ended = {"add_generation_prompt": False}
        try:
            prompt = self.render_without_reasoning(messages).text
            whole = self.render([*messages, reply], None, thinking, chat_template_kwargs=ended).text
        except (TemplateError, ValidationError):
            return ""
        before, found, _ = whole.partition(_REPLY)
        return before[len(prompt) :] if found and before.startswith(prompt) else ""

    def _continued(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None,
        variables: Mapping[str, object] | None,
        media: MediaByMark,
    ) -> RenderedChat:
        """Render a conversation up to the end of the content of its last message."""
        last = plain_messages(messages, separator="\n\n")[-1]
        if last["role"] != "assistant" or "tool_calls" in last:
            raise ValidationError(
                "continue_final_message needs a last message of the assistant, without tool calls"
            )
        chat = self.render_without_reasoning(
            messages[:-1], tools, chat_template_kwargs=variables, media=media
        )
        content = last["content"]
        tokens = chat.tokens.part(0)
        tokens += self._model.vocab.tokenize(content, False) if content else []
        return RenderedChat(tokens, chat.text + content)

    def _extended(self, chat: RenderedChat, text: str) -> RenderedChat:
        """Append *text*, which replaces white space at the end where it begins with such."""
        vocab, tokens, before = self._model.vocab, chat.tokens.part(0), chat.text
        if text[0].isspace():  # two line breaks may be one token
            space = vocab.tokenize(before[len(before.rstrip()) :], False)
            if tokens[len(tokens) - len(space) :] == space:
                tokens, before = tokens.part(0, len(tokens) - len(space)), before.rstrip()
        tokens += vocab.tokenize(text, False, True)
        return RenderedChat(tokens, before + text)

    def _segments(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None,
        thinking: bool | None,
        variables: Mapping[str, object],
    ) -> Sequence[Segment]:
        template = self._template(bool(tools))
        chat = self.plain_messages(messages, bool(tools))
        tag = self.family.tag(thinking)
        if tag:  # switches reasoning on or off
            chat[-1]["content"] += f" {tag}"
        if tools and (template is None or not template.supports_tools):
            if self._builtin:
                raise ValidationError(
                    f"chat_format={self._builtin!r} does not support tools; use the model's own "
                    "template"
                )
            text = self.family.tool_format.explain(plain_tools(tools) or [])
            chat = _instructed(chat, text, template is None or template.supports_system)
            tools = None
        if any("tool_calls" in m for m in chat) and (template is None or template.drops_calls):
            chat = [_written(message, self.family.tool_format) for message in chat]
        if any(m["role"] == "tool" for m in chat) and not (template and template.shows_results):
            chat = _results_as_user(chat)
        if template is None:
            return self._plain(chat) if self._builtin is None else self._built_in(chat)
        kwargs: dict[str, Any] = {**self.family.template_kwargs(thinking), **variables}
        return template.render_segments(chat, tools, **kwargs)

    def plain_messages(
        self, messages: Sequence[Mapping[str, object]], tools: bool = False
    ) -> list[Message]:
        """Return *messages* in the plain form that is rendered; see `ChatTemplate.plain_messages`.

        Args:
            messages: In OpenAI's format.
            tools: Whether there are tools.

        Raises:
            ValidationError: A message is invalid.
        """
        template = self._template(tools)
        return plain_messages(messages) if template is None else template.plain_messages(messages)

    def _plain(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the contents as plain text, for a model without a template."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s has no chat template: it gets the messages as plain text; set chat_format, "
                "to 'chatml' or the source of a Jinja template",
                self._model.path.name,
            )
        return [Segment("\n\n".join(m["content"] for m in messages if m["content"]), False)]

    def _built_in(self, messages: Sequence[Message]) -> list[Segment]:
        """Render with one of llama.cpp's built-in templates."""

        def render(values: Mapping[str, Sequence[Message]]) -> str:
            return self._model.apply_chat_template(values["messages"], template=self._builtin)

        values = {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
        return self._injection.segments(render(values), values, render)

    def _tokenize(self, segments: Sequence[Segment], media: MediaByMark) -> RenderedChat:
        text = without_marks("".join(segment.text for segment in segments), media)
        # Jinja templates write BOS; llama.cpp's built-in ones leave it to the vocabulary.
        add_special = self.template is None
        if add_special and self._builtin is None:
            segments = [Segment("".join(segment.text for segment in segments), False)]
        prompt = Prompt()
        for segment in segments:
            for part in split_at_media(segment.text, media):
                if part in media:
                    assert self._media is not None  # it took them
                    self._media.add(prompt, media[part])
                    add_special = False
                elif part or add_special:
                    prompt += self._tokenize_part(part, segment.is_template, add_special)
                    add_special = False
        return RenderedChat(prompt, text)

    def _tokenize_part(self, text: str, is_template: bool, add_special: bool) -> list[int]:
        vocab = self._model.vocab
        found = vocab.tokenize(text, add_special, is_template)
        is_chat = self.template is not None or self._builtin is not None
        if is_chat and not is_template and len(found) == 1:  # see `_guarded`
            found = [token for part in text for token in vocab.tokenize(part, False)]
        return found


def _sources(default: str | None, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the sources of a model's templates by name."""
    key = "tokenizer.chat_template."
    named = {name[len(key) :]: text for name, text in metadata.items() if name.startswith(key)}
    return {**named, **({} if default is None else {"default": default})}


def _builtin(model: Model, name: str, own: Iterable[str]) -> str:
    """Return the name of a built-in template of llama.cpp.

    Raises:
        ValidationError: It has none of this name.
    """
    try:
        model.apply_chat_template([("user", "x")], template=name)
    except TemplateError:
        check_choice("chat_format", name, [*own, *model.builtin_chat_templates])
    return name


def _instructed(messages: list[Message], text: str, has_system: bool) -> list[Message]:
    """Add *text* to the system prompt or, without support for one, to the first message."""
    first = messages[0]
    if first["role"] == "system" or not has_system:
        parts = (first["content"], text) if first["role"] == "system" else (text, first["content"])
        return [{**first, "content": "\n\n".join(parts)}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _written(message: Message, form: ToolFormat) -> Message:
    """Return *message* with its tool calls as text, as the model writes them."""
    if "tool_calls" not in message:
        return message
    text = form.write(message["tool_calls"])
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join(filter(None, (message["content"], text)))}


def _results_as_user(messages: Sequence[Message]) -> list[Message]:
    """Return *messages* with the results of tools in user messages, one for adjacent results."""
    found: list[Message] = []
    is_result = False
    for message in messages:
        if message["role"] != "tool":
            found.append(message)
            is_result = False
            continue
        text = f"Result of {message.get('name', 'the function')}: {message['content']}"
        if is_result:
            found[-1]["content"] += f"\n{text}"
        else:
            found.append({"role": "user", "content": text})
        is_result = True
    return found


def as_messages(prompt: str, system_prompt: str = "") -> list[Mapping[str, object]]:
    """Return a conversation of one message of the user, after a system message if there is one.

    Raises:
        ValidationError: An argument is not a str.
    """
    for name, value in (("prompt", prompt), ("system_prompt", system_prompt)):
        check_str(name, value)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": prompt}]
