"""Completions and conversations with llama-cpp-python's arguments, through its caches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..api import chat_completions, completions
from ..api.chat_completions import ChatPreparer
from ..api.running import run
from ..generation.chat_renderer import ChatRenderer
from ..generation.prompt import common_prefix_length
from .echo import prepend
from .functions import as_messages, as_tools, with_function_call
from .llama_cache import BaseLlamaCache
from .llama_chat_format import LlamaChatCompletionHandlerRegistry, template_of
from .llama_grammar import closed
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from .options import seed_of
from .processors import several
from .stepping import Stepping, check_tfs

__all__ = ["Completing"]


class Completing(Stepping):
    """What answers.

    Attributes:
        chat_format: See `Llama`; it may be set.
        chat_handler: See `Llama`; it may be set.
        cache: Where the states of answers are kept.
        tokenizer_: Turns prompts into tokens.
    """

    chat_format: str | None
    chat_handler: Any
    cache: BaseLlamaCache | None
    tokenizer_: BaseLlamaTokenizer
    spm_infill: bool
    metadata: dict[str, str]
    _chats: dict[str | None, ChatPreparer]

    def create_completion(  # type: ignore[override]
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: Any = None,
        logits_processor: Any = None,
        grammar: Any = None,
        logit_bias: Mapping[Any, float] | None = None,
        **options: Any,
    ) -> Any:
        """Continue *prompt* and return OpenAI's shape, or an iterator of chunks with *stream*.

        See `llama_cffi.Llama.create_completion`; *max_tokens* of 0 or less is until the context
        is full, and *tfs_z* has to be 1.
        """
        check_tfs(tfs_z)
        given: str | Sequence[int] = prompt
        if isinstance(prompt, str) and not isinstance(self.tokenizer_, LlamaTokenizer):
            given = self.tokenize(prompt, special=suffix is None)
        if suffix is not None and self.spm_infill:
            given, suffix = completions.prompt_tokens(self.model, given, suffix, spm=True), None
        if self.cache is not None:
            self._recall(completions.prompt_tokens(self.model, given, suffix))
        scored: list[int] | None = None
        if echo and logprobs is not None and not stream:
            scored = completions.prompt_tokens(self.model, given, suffix)
            rows, given, suffix = self._all_rows(scored), scored, None
        answer = super().create_completion(
            given,
            suffix,
            max_tokens=_limit(max_tokens),
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            logprobs=logprobs,
            echo=echo and scored is None,
            stop=stop,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_penalty=repeat_penalty,
            top_k=top_k,
            stream=stream,
            seed=None if seed is None else seed_of(seed),
            mirostat_mode=mirostat_mode,
            mirostat_tau=mirostat_tau,
            mirostat_eta=mirostat_eta,
            model=model,
            stopping_criteria=several(stopping_criteria),
            logits_processor=several(logits_processor),
            grammar=grammar,
            logit_bias=logit_bias,
            **{"penalty_last_n": self.last_n_tokens_size, **options},
        )
        if scored is not None:
            text = prompt if isinstance(prompt, str) else self.engine.detokenize(prompt)
            answer = prepend(answer, self.model.vocab, text, scored, rows, logprobs or 0)
        return self._remembering(answer)

    __call__ = create_completion  # type: ignore[assignment]

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        functions: Sequence[Any] | None = None,
        function_call: Any = None,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: Any = None,
        grammar: Any = None,
        logit_bias: Mapping[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **options: Any,
    ) -> Any:
        """Answer a conversation in OpenAI's shape, or chunk by chunk with *stream*.

        See `llama_cffi.Llama.create_chat_completion`; functions are OpenAI's older tools, and
        *tfs_z* has to be 1.
        """
        asked = {k: v for k, v in locals().items() if k not in ("self", "options", "__class__")}
        asked |= options
        handler = self.chat_handler or LlamaChatCompletionHandlerRegistry().get(self.chat_format)
        if handler is not None:
            return handler(llama=self, **asked)
        for name in ("messages", "functions", "function_call"):
            del asked[name]
        asked["tools"], asked["tool_choice"] = as_tools(
            functions, function_call, tools, tool_choice
        )
        chat = self._chats.get(self.chat_format)
        if chat is None:
            source = template_of(self.chat_format, self.metadata)
            renderer = ChatRenderer(self.model, source)
            chat = ChatPreparer(self.model, renderer, self.n_ctx)
            self._chats[self.chat_format] = chat
        answer = self.answer(chat, as_messages(messages), **asked)
        return with_function_call(answer) if functions else answer

    def create_chat_completion_openai_v1(self, *args: Any, **options: Any) -> Any:
        """Do `create_chat_completion` and return the types of the package `openai`.

        Raises:
            ImportError: It is not installed.
        """
        from openai.types.chat import (  # type: ignore[import-not-found]
            ChatCompletion,
            ChatCompletionChunk,
        )

        answer = self.create_chat_completion(*args, **options)
        if isinstance(answer, Mapping):
            return ChatCompletion(**answer)
        return (ChatCompletionChunk(**chunk) for chunk in answer)

    def answer(
        self, chat: ChatPreparer, messages: Sequence[Mapping[str, Any]], **asked: Any
    ) -> Any:
        """Let *chat* answer, with llama-cpp-python's arguments, through the cache."""
        check_tfs(asked.pop("tfs_z", 1.0))
        seed = asked.pop("seed", None)
        asked["seed"] = self.config.seed if seed is None else seed_of(seed)
        asked["model"] = asked.get("model") or self.model_path
        asked["max_tokens"] = _limit(asked.get("max_tokens"))
        asked["logits_processor"] = several(asked.get("logits_processor"))
        if asked.get("response_format"):
            asked["response_format"] = _closed_format(asked["response_format"])
        if self.cache is not None:
            tools, kwargs = asked.get("tools"), asked.get("chat_template_kwargs") or {}
            rendered = chat.renderer.render(
                messages, tools, asked.get("thinking"), chat_template_kwargs=kwargs
            )
            self._recall(rendered.tokens)
        asked.setdefault("penalty_last_n", self.last_n_tokens_size)
        stream = asked.pop("stream", False)
        prepared = chat.prepare(messages, asked, self.model_path)
        runs = run(self.engine, prepared.request)
        shape = chat_completions.stream if stream else chat_completions.whole
        return self._remembering(shape(prepared, runs))

    def _recall(self, prompt: Sequence[int]) -> None:
        """Load the state of the cache that has more of *prompt* than is evaluated."""
        if self.cache is None:
            return
        try:
            state = self.cache[prompt]
        except KeyError:
            return
        if common_prefix_length(state.input_ids.tolist(), prompt) > common_prefix_length(
            list(self.eval_tokens), prompt
        ):
            self.set_state(state.llama_state)

    def _remembering(self, answer: Any) -> Any:
        """Put the state into the cache when the answer is there."""
        if self.cache is None:
            return answer
        if not isinstance(answer, Mapping):
            return self._remembering_after(answer)
        state = self.save_state()
        self.cache[state.input_ids.tolist()] = state
        return answer

    def _remembering_after(self, chunks: Iterator[Any]) -> Iterator[Any]:
        yield from chunks
        self._remembering({})


def _limit(max_tokens: int | None) -> int | None:
    return None if max_tokens is None or max_tokens <= 0 else max_tokens


def _closed_format(response_format: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the format with a schema that forbids properties it does not name."""
    inner = response_format.get("json_schema")
    if isinstance(inner, Mapping):
        return {**response_format, "json_schema": _closed_format(inner)}
    if "schema" in response_format:
        return {**response_format, "schema": closed(response_format["schema"])}
    return response_format
