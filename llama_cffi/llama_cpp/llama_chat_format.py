"""Chat formats: built-in and Jinja templates, registered formatters and handlers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ..chat.template import ChatTemplate
from ..errors import ValidationError
from ..generation.chat_renderer import ChatRenderer, RenderedChat
from ..generation.prompt import Prompt
from ..hub import resolve_model
from .functions import as_tools, with_function_call

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from ..api.chat_completions import Message, Tool
    from ..binding import Model
    from .functions import ChatAnswer, ToolChoice
    from .llama import Llama
    from .processors import StoppingCriteria

__all__ = [
    "CHATML_CHAT_TEMPLATE",
    "MISTRAL_INSTRUCT_CHAT_TEMPLATE",
    "ChatFormatter",
    "ChatFormatterResponse",
    "Gemma4ChatHandler",
    "Jinja2ChatFormatter",
    "Llama3VisionAlpha",
    "Llama3VisionAlphaChatHandler",
    "LlamaChatCompletionHandler",
    "LlamaChatCompletionHandlerNotFoundException",
    "LlamaChatCompletionHandlerRegistry",
    "Llava15ChatHandler",
    "Llava16ChatHandler",
    "MTMDChatHandler",
    "MiniCPMv26ChatHandler",
    "MoondreamChatHandler",
    "NanoLlavaChatHandler",
    "ObsidianChatHandler",
    "Qwen25VLChatHandler",
    "TemplateChatHandler",
    "chat_formatter_to_chat_completion_handler",
    "get_chat_completion_handler",
    "hf_autotokenizer_to_chat_completion_handler",
    "hf_autotokenizer_to_chat_formatter",
    "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter",
    "register_chat_completion_handler",
    "register_chat_format",
    "template_of",
]

F = TypeVar("F", bound=Callable[..., Any])

CHATML_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL_INSTRUCT_CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}"
    "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}[INST] {{ ns.system }}{{ message.content }} [/INST]{% set ns.system = '' %}"
    "{% endif %}{% endfor %}"
)
# llama-cpp-python's names -> llama.cpp's names of built-in templates, or templates.
_BUILTIN = {
    "chatglm3": "chatglm3",
    "chatml": "chatml",
    "chatml-function-calling": CHATML_CHAT_TEMPLATE,
    "gemma": "gemma",
    "llama-2": "llama2-sys",
    "llama-3": "llama3",
    "mistral-instruct": MISTRAL_INSTRUCT_CHAT_TEMPLATE,
    "openchat": "openchat",
    "qwen": "chatml",
    "vicuna": "vicuna",
    "zephyr": "zephyr",
}
# Formats of 2023 without a template in llama.cpp.
_GONE = {
    "alpaca", "baichuan", "baichuan-2", "functionary", "functionary-v1", "functionary-v2", "intel",
    "mistrallite", "oasst_llama", "open-orca", "openbuddy", "phind", "pygmalion",
    "redpajama-incite", "saiga", "snoozy",
}  # fmt: skip
_OWN = "chat_template.default"


def template_of(name: str | None, metadata: Mapping[str, str]) -> str | None:
    """Return the `chat_format` of `llama_cffi.Llama` for one of llama-cpp-python.

    Args:
        name: llama-cpp-python's or llama.cpp's name of a format, `chat_template.<name>` for one
            in the GGUF, or the source of a Jinja template.
        metadata: The metadata of the GGUF.

    Raises:
        ValidationError: The format does not exist.
    """
    if name is None or name == _OWN:
        return None
    if name.startswith("chat_template."):
        source = metadata.get(f"tokenizer.{name}")
        if source is None:
            known = [k[10:] for k in metadata if k.startswith("tokenizer.chat_template.")]
            raise ValidationError(f"the model has no {name}; it has {[_OWN, *known]}")
        return source
    if name in _GONE:
        raise ValidationError(
            f"chat_format={name!r} is not supported: omit it for the model's own template, pass "
            "the source of a Jinja template, or register a function with register_chat_format"
        )
    return _BUILTIN.get(name, name)


@dataclass
class ChatFormatterResponse:
    """A formatted conversation.

    Attributes:
        prompt: The prompt; control tokens spelled out are parsed.
        stop: Strings that end the answer.
        stopping_criteria: As for `Llama.create_completion`.
        added_special: Whether the prompt contains BOS already.
    """

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteria | Sequence[StoppingCriteria] | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """Formats a conversation as a prompt."""

    def __call__(self, *, messages: Sequence[Message], **kwargs: Any) -> ChatFormatterResponse:
        """Return the prompt."""
        ...


class LlamaChatCompletionHandler(Protocol):
    """Answers a conversation; called with the arguments of `Llama.create_chat_completion`."""

    def __call__(self, *, llama: Llama, messages: Sequence[Message], **kwargs: Any) -> ChatAnswer:
        """Return OpenAI's response, or an iterator of chunks."""
        ...


@dataclass(frozen=True)
class TemplateChatHandler:
    """Answers conversations in a chat format.

    Attributes:
        chat_format: As for `Llama`.
    """

    chat_format: str | None

    def __call__(
        self,
        *,
        llama: Llama,
        messages: Sequence[Message],
        functions: Sequence[Mapping[str, object]] | None = None,
        function_call: ToolChoice | None = None,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice | None = None,
        **options: Any,
    ) -> ChatAnswer:
        """Return OpenAI's response, or an iterator of chunks.

        Raises:
            ValidationError: The format does not exist, or an argument is out of range.
        """
        tools, tool_choice = as_tools(functions, function_call, tools, tool_choice)
        arguments = {**options, "tools": tools, "tool_choice": tool_choice}
        preparer = llama.preparer_of(self.chat_format)
        answer = llama.answer(preparer, messages, arguments)
        return with_function_call(answer) if functions else answer


class LlamaChatCompletionHandlerNotFoundException(Exception):  # noqa: N818
    """No handler of this name is registered."""


class LlamaChatCompletionHandlerRegistry:
    """Registered handlers by name, shared by the whole process."""

    _handlers: dict[str, LlamaChatCompletionHandler] = {}  # noqa: RUF012

    def register_chat_completion_handler(
        self, name: str, chat_handler: LlamaChatCompletionHandler, overwrite: bool = False
    ) -> None:
        """Register a handler.

        Raises:
            ValidationError: The name is taken.
        """
        if not overwrite and name in self._handlers:
            raise ValidationError(f"handler {name!r} exists already; pass overwrite=True")
        self._handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        """Remove a handler.

        Raises:
            ValidationError: No handler of this name is registered.
        """
        if self._handlers.pop(name, None) is None:
            raise ValidationError(self._unknown(name))

    def get_chat_completion_handler_by_name(self, name: str) -> LlamaChatCompletionHandler:
        """Return a registered handler, or that of a format of llama-cpp-python.

        Raises:
            LlamaChatCompletionHandlerNotFoundException: There is none of this name.
        """
        handler = self.get(name) or (TemplateChatHandler(name) if name in _BUILTIN else None)
        if handler is None:
            raise LlamaChatCompletionHandlerNotFoundException(
                f"{self._unknown(name)}; formats are {list(_BUILTIN)}"
            )
        return handler

    def get(self, name: str | None) -> LlamaChatCompletionHandler | None:
        """Return the handler of this name; None: not registered."""
        return self._handlers.get(name or "")

    def _unknown(self, name: str) -> str:
        return f"handler {name!r} is not registered; registered are {list(self._handlers)}"


_registry = LlamaChatCompletionHandlerRegistry()
get_chat_completion_handler = _registry.get_chat_completion_handler_by_name


def register_chat_completion_handler(name: str) -> Callable[[F], F]:
    """Return a decorator that registers a handler as `chat_format` *name*."""

    def register(handler: F) -> F:
        _registry.register_chat_completion_handler(name, handler)
        return handler

    return register


def register_chat_format(name: str) -> Callable[[F], F]:
    """Return a decorator that registers a formatter as `chat_format` *name*."""

    def register(formatter: F) -> F:
        handler = chat_formatter_to_chat_completion_handler(formatter)
        _registry.register_chat_completion_handler(name, handler)
        return formatter

    return register


class Jinja2ChatFormatter:
    """Formats with a Jinja template.

    Args:
        template: The source.
        eos_token: The template's variable; also ends the answer.
        bos_token: The template's variable.
        add_generation_prompt: End the prompt with the header of the answer.
        stop_token_ids: Tokens that end the answer.
    """

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.template, self.eos_token, self.bos_token = template, eos_token, bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else set(stop_token_ids)
        self._template = ChatTemplate(template, bos_token, eos_token)

    def __call__(
        self, *, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **kwargs: Any
    ) -> ChatFormatterResponse:
        """Return the prompt."""
        prompt = self._template.render(messages, tools, self.add_generation_prompt, **kwargs)
        criteria = None if self.stop_token_ids is None else [self._is_stop]
        stop = [self.eos_token] if self.eos_token else None
        return ChatFormatterResponse(prompt, stop, criteria, added_special=True)

    def _is_stop(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        return int(tokens[-1]) in (self.stop_token_ids or ())

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        """Return a handler, for `Llama(chat_handler=...)`."""
        return chat_formatter_to_chat_completion_handler(self)


class _FormattedRenderer(ChatRenderer):
    """Renders a conversation that a formatter formatted."""

    def __init__(self, model: Model, response: ChatFormatterResponse) -> None:
        super().__init__(model)
        self._response = response

    def render(self, *_: object, **__: object) -> RenderedChat:
        """Return the prompt as tokens and as a str."""
        text, adds_special = self._response.prompt, not self._response.added_special
        tokens = self._model.vocab.tokenize(text, adds_special, True)
        return RenderedChat(Prompt(tokens), text)


def chat_formatter_to_chat_completion_handler(
    chat_formatter: ChatFormatter,
) -> LlamaChatCompletionHandler:
    """Return a handler whose prompts *chat_formatter* formats."""

    def handler(
        *,
        llama: Llama,
        messages: Sequence[Message],
        functions: Sequence[Mapping[str, object]] | None = None,
        function_call: ToolChoice | None = None,
        tools: Sequence[Tool] | None = None,
        tool_choice: ToolChoice | None = None,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> ChatAnswer:
        response = chat_formatter(
            messages=messages,
            functions=functions,
            function_call=function_call,
            tools=tools,
            tool_choice=tool_choice,
        )
        tools, tool_choice = as_tools(functions, function_call, tools, tool_choice)
        arguments = {
            **options,
            "tools": tools,
            "tool_choice": tool_choice,
            "stop": [*_as_list(stop), *_as_list(response.stop)],
            "stopping_criteria": response.stopping_criteria,
        }
        renderer = _FormattedRenderer(llama.model, response)
        answer = llama.answer(llama.preparer(renderer), messages, arguments)
        return with_function_call(answer) if functions else answer

    return handler


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """Return a formatter with the template of a `tokenizer_config.json`.

    Raises:
        ValidationError: It lacks chat_template, bos_token or eos_token.
    """
    parts = []
    for name in ("chat_template", "eos_token", "bos_token"):
        value = tokenizer_config.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(value, str):
            raise ValidationError(f"the tokenizer's configuration has no {name}")
        parts.append(value)
    return Jinja2ChatFormatter(parts[0], parts[1], parts[2], add_generation_prompt)


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """Return a handler with the template of a `tokenizer_config.json`."""
    return chat_formatter_to_chat_completion_handler(
        hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    )


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: str) -> ChatFormatter:
    """Return a formatter with the template of a tokenizer on the hub.

    Raises:
        ImportError: The package `transformers` is not installed.
    """
    from transformers import AutoTokenizer  # type: ignore[import-not-found]

    tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)

    def formatter(*, messages: Sequence[Message], **_: Any) -> ChatFormatterResponse:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False)
        return ChatFormatterResponse(str(prompt), tokenizer.eos_token, added_special=True)

    return formatter


def hf_autotokenizer_to_chat_completion_handler(
    pretrained_model_name_or_path: str,
) -> LlamaChatCompletionHandler:
    """Return a handler with the template of a tokenizer on the hub."""
    return chat_formatter_to_chat_completion_handler(
        hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path)
    )


def _as_list(stop: str | Sequence[str] | None) -> Sequence[str]:
    return [stop] if isinstance(stop, str) else stop or []


# Formats of models whose files have no chat template.
_MOONDREAM = (
    "{% for message in messages %}{% if message.role == 'assistant' %} {{ message.content }}"
    "{{ eos_token }}{% elif message.role == 'user' %}"
    "{{ '\n\nQuestion: ' + message.content + '\n\nAnswer:' }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


class Llava15ChatHandler:
    """Answers conversations with pictures and sounds: `Llama(..., chat_handler=...)`.

    All handlers are the same: the projector tells how a picture is encoded, and the model's own
    chat template where it goes. `Llama(..., mmproj=...)` does the same without a handler.

    Args:
        clip_model_path: The projector: a GGUF file, or `hf:owner/repo:file`.
        verbose: Accepted; nothing is printed.
        image_min_tokens: Least tokens of a picture, for models with pictures of any size; None and
            -1: the model's.
        image_max_tokens: Most tokens of a picture, likewise.
        use_gpu: Accepted; a GPU is used if the build has one.
        **options: Variables of the chat template, such as `enable_thinking`.

    Attributes:
        CHAT_FORMAT: A chat format in place of the model's own, for subclasses.
        DEFAULT_SYSTEM_MESSAGE: The system message of conversations without one, for subclasses.
        clip_model_path: As above.
        verbose: As above.

    Raises:
        ValidationError: There is no such file.
    """

    CHAT_FORMAT: str | None = None
    DEFAULT_SYSTEM_MESSAGE: str | None = None
    _WITHOUT_TEMPLATE = "vicuna"

    def __init__(
        self,
        clip_model_path: str | os.PathLike[str],
        verbose: bool = True,
        *,
        image_min_tokens: int | None = None,
        image_max_tokens: int | None = None,
        use_gpu: bool = True,
        **options: object,
    ) -> None:
        self.clip_model_path, self.verbose = os.fspath(clip_model_path), verbose
        is_on_hub = self.clip_model_path.startswith("hf:")
        if not (is_on_hub or Path(self.clip_model_path).expanduser().is_file()):
            raise ValidationError(f"clip_model_path: there is no file {self.clip_model_path}")
        self._tokens = image_min_tokens, image_max_tokens
        self._variables = options

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | Literal["auto"] = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Load a projector from the Hugging Face hub, through its cache.

        Args:
            repo_id: `owner/repo`, with `@revision` if wanted.
            filename: The file, or a pattern; None: the only one with `mmproj` in its name.
            local_dir: A folder for the file, in place of the cache.
            local_dir_use_symlinks: Ignored, as by huggingface_hub.
            cache_dir: The cache of the hub.
            **options: Arguments of the class.

        Raises:
            FetchError: The file cannot be fetched.
            ValidationError: No file in the repository matches, or several do.
        """
        spec = f"hf:{repo_id}:{filename or '*mmproj*'}"
        return cls(resolve_model(spec, cache_dir=cache_dir, local_dir=local_dir), **options)

    @property
    def llama_options(self) -> dict[str, Any]:
        """The arguments of `Llama` that this handler stands for."""
        least, most = (None if n == -1 else n for n in self._tokens)
        found = {"image_min_tokens": least, "image_max_tokens": most}
        given = {name: n for name, n in found.items() if n is not None}
        return {"mmproj": self.clip_model_path, **given}

    def __call__(self, *, llama: Llama, messages: Sequence[Message], **options: Any) -> ChatAnswer:
        """Return OpenAI's response, or an iterator of chunks.

        Raises:
            ValidationError: The model was opened without this handler, or an argument is out of
                range.
        """
        if llama.config.mmproj != self.clip_model_path:
            raise ValidationError(
                f"the model was opened with mmproj={llama.config.mmproj!r}; pass this handler to "
                "it: Llama(model_path, chat_handler=handler)"
            )
        chat_format = self.CHAT_FORMAT
        if chat_format is None and not llama.model.chat_template:
            chat_format = self._WITHOUT_TEMPLATE
        if self.DEFAULT_SYSTEM_MESSAGE and not any(m.get("role") == "system" for m in messages):
            messages = [{"role": "system", "content": self.DEFAULT_SYSTEM_MESSAGE}, *messages]
        if self._variables:
            given = options.get("chat_template_kwargs") or {}
            options["chat_template_kwargs"] = {**self._variables, **given}
        answer: ChatAnswer = TemplateChatHandler(chat_format or llama.chat_format)(
            llama=llama, messages=messages, **options
        )
        return answer


class MTMDChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `chatml`."""

    _WITHOUT_TEMPLATE = "chatml"


class Gemma4ChatHandler(MTMDChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `gemma`."""

    _WITHOUT_TEMPLATE = "gemma"


class ObsidianChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `chatml`."""

    _WITHOUT_TEMPLATE = "chatml"


class MoondreamChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: Moondream's."""

    _WITHOUT_TEMPLATE = _MOONDREAM


class Llava16ChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `vicuna`."""


class NanoLlavaChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `chatml`."""

    _WITHOUT_TEMPLATE = "chatml"


class Llama3VisionAlphaChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `llama-3`."""

    _WITHOUT_TEMPLATE = "llama-3"


Llama3VisionAlpha = Llama3VisionAlphaChatHandler


class MiniCPMv26ChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `chatml`."""

    _WITHOUT_TEMPLATE = "chatml"


class Qwen25VLChatHandler(Llava15ChatHandler):
    """See `Llava15ChatHandler`; for a model without a chat template: `chatml`."""

    _WITHOUT_TEMPLATE = "chatml"


if not TYPE_CHECKING:  # so that type checkers report names that do not exist

    def __getattr__(name):
        hint = ""
        if name.endswith("ChatHandler"):
            hint = ": MTMDChatHandler is for every model with a projector; text needs no handler"
        raise AttributeError(f"{__name__} has no {name!r}{hint}")
