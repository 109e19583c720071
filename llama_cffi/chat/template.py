"""Chat templates: render messages to a prompt, byte for byte as transformers does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import TemplateError, ValidationError
from .messages import REASONING, Message, plain, plain_messages, plain_tools
from .template_caps import TemplateCaps
from .token_injection import Segment, TokenInjection

if TYPE_CHECKING:
    import jinja2

__all__ = ["ChatTemplate", "Segment", "pick_template"]

# Its trailing space shows whether the template trims.
_CONTINUE = "LLAMA_CFFI_CONTINUES_HERE "


class ChatTemplate:
    """A model's own Jinja chat template.

    The template is compiled when first used, so that a model with a broken template loads. The
    template writes BOS itself, so tokenize prompts with `add_special=False`.

    Args:
        source: Jinja source, as in a GGUF's `tokenizer.chat_template`.
        bos_token: Text of the BOS token.
        eos_token: Text of the EOS token.
        special_tokens: Texts that the tokenizer turns into control tokens.

    Attributes:
        source: Jinja source.
        bos_token: Text of the BOS token.
        eos_token: Text of the EOS token.
        special_tokens: Texts that the tokenizer turns into control tokens.

    Raises:
        ValidationError: The source is not a str, or is empty.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        special_tokens: Sequence[str] = (),
    ) -> None:
        if not isinstance(source, str) or not source:
            raise ValidationError(f"a chat template must be a non-empty str, got {source!r}")
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.special_tokens = tuple(token for token in special_tokens if token)

    def __repr__(self) -> str:
        return f"<ChatTemplate {self.source[:40]!r}{'…' if len(self.source) > 40 else ''}>"

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None = None,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool | str = False,
        documents: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> str:
        """Return the prompt.

        Args:
            messages: OpenAI's shape. Arguments of tool calls may be JSON strings.
            tools: Definitions, or Python functions, which become definitions.
            add_generation_prompt: Whether to end with the beginning of the model's answer.
            continue_final_message: Whether to end inside the last message, so that the model
                continues its content, or the field named here. There is no generation prompt then.
            documents: Documents, for templates that support them.
            **kwargs: Further variables of the template, such as `enable_thinking`; see `variables`.

        Raises:
            TemplateError: The template does not compile, fails, or refuses these messages.
            ValidationError: An argument has the wrong shape.
        """
        values = self._values(
            messages, tools, add_generation_prompt, continue_final_message, documents, kwargs
        )
        return self._render(values, continue_final_message, datetime.now())

    def render_segments(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None = None,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool | str = False,
        documents: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> list[Segment]:
        """Return the prompt in segments, so that no text of a caller becomes a control token.

        Joined, the segments are the result of `render`. Tokenize those that are not the template's
        with `parse_special=False`: these are special tokens in contents, tool calls and tools.

        Args:
            messages: As in `render`.
            tools: As in `render`.
            add_generation_prompt: As in `render`.
            continue_final_message: As in `render`.
            documents: As in `render`.
            **kwargs: As in `render`.

        Raises:
            TemplateError: The template does not compile, fails, or refuses these messages.
            ValidationError: An argument has the wrong shape.
        """
        values = self._values(
            messages, tools, add_generation_prompt, continue_final_message, documents, kwargs
        )
        now = datetime.now()  # the same for all renderings
        text = self._render(values, continue_final_message, now)
        return self._injection.segments(
            text, values, lambda marked: self._render(marked, continue_final_message, now)
        )

    def plain_messages(self, messages: Sequence[Mapping[str, object]]) -> list[Message]:
        """Return *messages* in the plain form that is rendered, whatever their shape.

        Parts of text are joined by what the template itself writes between them, or by a line
        break if it takes no parts. See `llama_cffi.chat.messages.plain_messages`.

        Args:
            messages: OpenAI's shape.

        Raises:
            TemplateError: The template does not compile.
            ValidationError: A message has the wrong shape.
        """
        return plain_messages(messages, self._roles, self._caps.separator)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names of further variables that the template reads, such as `enable_thinking`.

        Raises:
            TemplateError: The template does not compile.
        """
        _ = self._compiled
        from . import template_env

        return template_env.variables(self.source)

    @property
    def supports_system(self) -> bool:
        """Whether the template renders system messages.

        Raises:
            TemplateError: The template does not compile.
        """
        return self._caps.supports_system

    @property
    def supports_tools(self) -> bool:
        """Whether the template renders tool definitions.

        Raises:
            TemplateError: The template does not compile.
        """
        return self._caps.supports_tools

    @property
    def drops_calls(self) -> bool:
        """Whether the template renders messages with tool calls, but not the calls.

        Raises:
            TemplateError: The template does not compile.
        """
        return self._caps.drops_calls

    @property
    def shows_results(self) -> bool:
        """Whether the template renders results of tools.

        Raises:
            TemplateError: The template does not compile.
        """
        return self._caps.shows_results

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the template begins prompts with `bos_token`.

        Raises:
            TemplateError: The template does not compile.
        """
        text = self._probe([{"role": "user", "content": "?"}], None)
        return bool(self.bos_token) and text.startswith(self.bos_token)

    @cached_property
    def _compiled(self) -> jinja2.Template:
        from . import template_env

        return template_env.compile_template(self.source)

    @cached_property
    def _injection(self) -> TokenInjection:
        from . import template_env

        tokens = {*self.special_tokens, self.bos_token, self.eos_token} - {""}
        return TokenInjection(tokens, template_env.inspected(self.source))

    @cached_property
    def _caps(self) -> TemplateCaps:
        return TemplateCaps(self._probe)

    @cached_property
    def _roles(self) -> frozenset[str]:
        _ = self._compiled
        from . import template_env

        return template_env.roles(self.source)

    def _probe(self, messages: list[Message], tools: list[Message] | None) -> str:
        """Return a prompt, or "" if the template refuses the messages."""
        _ = self._compiled  # raises if the template does not compile
        values = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._render(values, False, datetime.now())
        except TemplateError:
            return ""

    def _values(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object] | Callable[..., object]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool | str,
        documents: Sequence[Mapping[str, object]] | None,
        kwargs: Mapping[str, object],
    ) -> dict[str, Any]:
        """Return the template's variables, in plain types."""
        chat = self._caps.fit(self.plain_messages(messages))
        return {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **plain(kwargs, "kwargs"),
            "messages": chat,
            "tools": self._caps.fit_tools(plain_tools(tools)),
            "documents": plain(documents, "documents"),
            "add_generation_prompt": bool(add_generation_prompt) and not continue_final_message,
        }

    def _render(
        self, values: dict[str, Any], continue_final_message: bool | str, now: datetime
    ) -> str:
        from . import template_env

        if not continue_final_message:
            return template_env.render(self._compiled, values, now)
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        messages, final = _tagged(values["messages"], field, self.source)
        text = template_env.render(self._compiled, {**values, "messages": messages}, now)
        place = text.rfind(_CONTINUE.strip())
        if place < 0 or final.strip() not in text:
            raise TemplateError(
                f"the chat template changes or omits the {field!r} of the last message, so it "
                "cannot be continued"
            )
        if text.startswith(_CONTINUE, place):
            return text[:place]
        return text[:place].rstrip()  # the template trims


def pick_template(
    templates: Mapping[str, str], name: str | None = None, *, tools: bool = False
) -> str:
    """Return the source of one of a model's templates.

    Args:
        templates: Sources by name (`default`, `tool_use`, `rag`) or by GGUF key
            (`tokenizer.chat_template`, `tokenizer.chat_template.tool_use`).
        name: Name of the template; None: `tool_use` if there are tools and the model has it, else
            `default`, else the only one.
        tools: Whether there are tools.

    Raises:
        ValidationError: The model has no template with that name; the error lists the names.
    """
    key = "tokenizer.chat_template"
    named = {
        (n[len(key) :].lstrip(".") if n.startswith(key) else n) or "default": source
        for n, source in templates.items()
    }
    if name is None:
        name = "tool_use" if tools and "tool_use" in named else "default"
        if name not in named and len(named) == 1:
            (name,) = named
    if name not in named:
        raise ValidationError(
            f"the model has no chat template {name!r}; available: "
            + (", ".join(map(repr, sorted(named))) or "none")
        )
    return named[name]


def _tagged(messages: list[Message], field: str, source: str) -> tuple[list[Message], str]:
    """Return *messages* with a tag after the last one's field, and the field's text."""
    message = dict(messages[-1])
    final = message.get(field)
    if final is None:
        raise ValidationError(f"the last message has no {field!r} to continue")
    # Reasoning has several names; the template reads one of them.
    names = [n for n in REASONING if message.get(n) == final] if field in REASONING else [field]
    if not any(name in source for name in names):
        raise TemplateError(f"the chat template never reads {field!r}, so it cannot be continued")
    if isinstance(final, list):
        parts = list(final)
        at = next(
            (
                i
                for i in reversed(range(len(parts)))
                if isinstance(parts[i], dict) and "text" in parts[i]
            ),
            None,
        )
        if at is None:
            raise ValidationError(f"the last message's {field!r} has no text part to continue")
        final = parts[at]["text"]
        parts[at] = {**parts[at], "text": final + _CONTINUE}
        message[field] = parts
    elif isinstance(final, str):
        message.update(dict.fromkeys(names, final + _CONTINUE))
    else:
        raise ValidationError(f"the last message's {field!r} must be text to be continued")
    return [*messages[:-1], message], final
