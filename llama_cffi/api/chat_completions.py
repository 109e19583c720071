"""Chat completions in OpenAI's format: preparing requests and shaping responses."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from ..chat.reasoning import ReasoningSplitter, opens_thinking
from ..chat.tools import normalise_tool_choice, normalise_tools
from ..errors import ValidationError
from ..generation.aliases import ALIASES, canonical
from ..generation.chat_renderer import ChatOptions, ChatRenderer
from ..generation.context_policy import DROP_TURNS, drop_oldest_turns
from ..generation.options import GenerationOptions, resolve_sampling
from ..generation.sampling_params import SamplingOptions, SamplingParams
from ..generation.seeds import SeedSequence
from ..grammars import LlamaGrammar
from ..validation import as_list, check_bool, check_int, reject_unknown
from .aio import prepared_async
from .aio import stream_async as background
from .channel import Channel, between
from .chat_message import ChatAssembler, DocumentReader, FirstCall, PlainReader
from .functions import add_function_call, as_tools
from .openai_options import OpenAIOptions, take_openai_options
from .running import PreparedRequest, is_shared, openai_limit, usage
from .running import run as start
from .running import run_async as submit_async
from .thinking import ThinkingBudget, ThinkMarkers, think_markers
from .timings import RunningTimings, prompt_progress, timings
from .tool_grammar import call_grammar

if TYPE_CHECKING:
    from ..binding import Model
    from ..chat.families import Family
    from ..chat.formats import ToolFormat
    from ..generation.prompt_progress import PromptProgress
    from ..generation.sequence import Step
    from ..generation.stats import GenerationStats
    from ..scheduler import RequestHandle
    from .running import AnyEngine
    from .types import (
        ChatCompletionResponseChoice,
        ChatCompletionStreamResponseChoice,
        CompletionUsage,
        CreateChatCompletionResponse,
        CreateChatCompletionStreamResponse,
    )

    Message: TypeAlias = Mapping[str, object]
    Tool: TypeAlias = Mapping[str, object] | Callable[..., object]

__all__ = [
    "ChatCompletionOptions",
    "ChatPreparer",
    "Extensions",
    "MoreChatCompletionOptions",
    "PreparedChat",
    "start_stream",
    "stream",
    "whole",
    "whole_async",
]


class MoreChatCompletionOptions(GenerationOptions, ChatOptions, OpenAIOptions, total=False):
    """`ChatCompletionOptions` without the length; None means the default.

    `tools`: tool definitions, or Python functions. `tool_choice`: `auto`, `none`, `required`, or a
    dict that names a function; the last two constrain the answer to calls that match the schemas:
    at least one, and exactly one of a named function. `parallel_tool_calls`: False: at most one
    call, any further one is dropped.
    `response_format`: `{"type": "json_object"}` with an optional `schema`, or `{"type":
    "json_schema", "json_schema": {"schema": ...}}`. `grammar`: the content must match it.
    `logprobs`, `top_logprobs`: return the log-probability of each token, and of this many
    alternatives. `thinking_budget`: end reasoning after this many tokens, as the chat template
    would end it, and continue with the answer; 0: no reasoning. `n`: number of answers.
    `continue_final_message`: the last message is the assistant's, and the answer continues it,
    without reasoning. `model`: the name in the response. `context_policy`: `drop_oldest_turns`, see
    `context_policy.drop_oldest_turns`, or one of the engine's. `modalities`: `["text"]`.
    `verbosity`: `medium`. OpenAI's other options: see `OpenAIOptions`; its deprecated `functions`
    and `function_call` mean `tools` and `tool_choice`.
    """

    tools: Sequence[Tool] | None
    tool_choice: str | Mapping[str, object] | None
    parallel_tool_calls: bool | None
    response_format: Mapping[str, object] | None
    top_logprobs: int | None
    thinking_budget: int | None
    n: int | None
    continue_final_message: bool | None
    model: str | None
    modalities: Sequence[str] | None
    verbosity: str | None


class ChatCompletionOptions(MoreChatCompletionOptions, total=False):
    """The options of a chat completion: `MoreChatCompletionOptions` and the length.

    `max_tokens`, or OpenAI's newer `max_completion_tokens`: most tokens to generate; None: until
    the model ends the answer or the context is full.
    """

    max_tokens: int | None
    max_completion_tokens: int | None


_OWN = (
    "tools", "tool_choice", "parallel_tool_calls", "response_format", "top_logprobs", "logprobs",
    "thinking", "thinking_budget", "reasoning_effort", "chat_template_kwargs",
    "continue_final_message", "n", "model", "max_tokens", "context_policy", "grammar",
    "structured", "functions", "function_call",
)  # fmt: skip


class Extensions(NamedTuple):
    """llama-server's fields of a response that were asked for.

    Attributes:
        timings: `timings` of the whole answer, in a stream in its last chunk.
        timings_per_token: `timings` so far, in each chunk of a stream.
        progress: Chunks with the `prompt_progress`, in a stream.
    """

    timings: bool = False
    timings_per_token: bool = False
    progress: bool = False


@dataclass(frozen=True)
class PreparedChat:
    """A prepared chat completion.

    Attributes:
        request: The request to the engine.
        model: The model.
        name: The model's name in the response.
        make_reader: Creates the parser that splits one answer into reasoning, tool calls and
            content.
        has_functions: Whether calls are also given in OpenAI's deprecated form.
        includes_usage: Whether a stream ends with a chunk that has the usage.
        includes_stop_reason: Whether the last choice of a stream has `stop_reason`.
        extensions: llama-server's fields of the response.
        id: The response's id.
        created: The response's time, Unix seconds.
    """

    request: PreparedRequest
    model: Model
    name: str
    make_reader: Callable[[], Any]
    has_functions: bool = False
    includes_usage: bool = False
    includes_stop_reason: bool = False
    extensions: Extensions = field(default_factory=Extensions)
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def assemblers(self) -> list[ChatAssembler]:
        """Return an assembler for each answer."""
        vocab = self.model.vocab
        has_stop = self.includes_stop_reason
        return [
            ChatAssembler(i, self.make_reader(), vocab, has_stop) for i in range(self.request.n)
        ]


class ChatPreparer:
    """Prepares chat completions of one model; needs no engine.

    Args:
        model: The model.
        renderer: Renders its conversations.
        n_ctx: Context size, tokens.
        context_policy: Default context policy; None: the engine's.
        default_sampling: Default sampling parameters.
        seeds: Draws the seeds of requests without one; None: random ones.
    """

    def __init__(
        self,
        model: Model,
        renderer: ChatRenderer,
        n_ctx: int,
        context_policy: str | None = None,
        default_sampling: SamplingParams | None = None,
        seeds: SeedSequence | None = None,
    ) -> None:
        self.model, self.renderer, self.n_ctx = model, renderer, n_ctx
        self._policy, self._sampling = context_policy, default_sampling
        self._seeds = seeds or SeedSequence()

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse `llm.chat("...")`.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "chat is not a method; call "
            'create_chat_completion([{"role": "user", "content": "..."}])'
        )

    @property
    def family(self) -> Family:
        """The model family."""
        return self.renderer.family

    @cached_property
    def _markers(self) -> ThinkMarkers:
        """The text around reasoning."""
        reasoning = self.family.tool_format.reasoning
        return think_markers(self.model.vocab, self.renderer.template, reasoning)

    def sampling(self, options: Mapping[str, Any], thinking: bool | None = None) -> SamplingParams:
        """Return the `SamplingParams` of a request.

        Args:
            options: `SamplingOptions` and `sampling`.
            thinking: Whether the model reasons first, for `sampling="model"`.

        Raises:
            ValidationError: A value is out of range.
        """
        options = {"sampling": self._sampling, **options}
        top_k = options.get("top_k")
        if isinstance(top_k, int) and top_k < 0:  # "all tokens" in llama-cpp-python
            options["top_k"] = 0
        sampling = options["sampling"]
        has_seed = isinstance(sampling, SamplingParams) and sampling.seed != -1
        if options.get("seed") is None and not has_seed:
            options["seed"] = self._seeds.draw()
        return resolve_sampling(
            {name: value for name, value in options.items() if value is not None},
            lambda: self.renderer.recommended_sampling(thinking),
        )

    def prepare(
        self,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        name: str = "",
        *,
        stream: bool = False,
        reasoning_end: threading.Event | None = None,
    ) -> PreparedChat:
        """Check the options of one chat completion, render and tokenize its messages.

        Args:
            messages: In OpenAI's format, oldest first.
            options: `ChatCompletionOptions`.
            name: The model's name in the response, if the options have none.
            stream: Whether the answer is streamed.
            reasoning_end: Ends the reasoning of a running answer when it is set; None: nothing
                does but `thinking_budget`.

        Raises:
            TemplateError: The chat template refuses the messages.
            UnknownOptionError: An option does not exist.
            ValidationError: An option is out of range.
        """
        options = canonical(options)
        fields = take_openai_options(options, stream)
        reject_unknown(options, OPTION_NAMES, "a chat completion", ALIASES)
        own = {key: options[key] for key in _OWN if key in options}
        rest = {k: v for k, v in options.items() if k not in own}
        thinking, effort = own.get("thinking"), own.get("reasoning_effort")
        functions = own.get("functions")
        given: Any
        given, asked = as_tools(
            functions, own.get("function_call"), own.get("tools"), own.get("tool_choice")
        )
        tools = normalise_tools(given)
        choice = normalise_tool_choice(asked, tools)
        # Naming a function asks for one call of it, as with OpenAI.
        parallel = choice.name is None and own.get("parallel_tool_calls", True)
        grammar = _grammar(own)
        offered = tools if choice.mode != "none" else []
        is_continued = check_bool(
            "continue_final_message", own.get("continue_final_message", False)
        )
        messages, media = self.renderer.take_media(messages)
        render = partial(
            self.renderer.render,
            tools=offered,
            thinking=thinking,
            reasoning_effort=effort,
            chat_template_kwargs=own.get("chat_template_kwargs"),
            continue_final_message=is_continued,
            media=media,
        )
        limit = openai_limit(own.get("max_tokens"))
        policy = own.get("context_policy", self._policy)
        if policy == DROP_TURNS:
            messages = drop_oldest_turns(
                self.renderer.plain_messages(messages, bool(offered)),
                lambda some: len(render(some).tokens),
                limit,
                self.n_ctx,
            )
            policy = "error"
        tokens, text = render(messages)
        form = self.family.tool_format
        is_open = opens_thinking(text, form.reasoning[0])
        is_words = grammar is not None or not offered
        after = form.content_head if grammar is not None else ""
        if choice.mode == "required":
            if grammar is not None:
                raise ValidationError("tool_choice='required' and a grammar exclude each other")
            parts = form.grammar_parts(choice.allowed(tools), parallel, True)
            grammar = call_grammar(parts, self.renderer.special_tokens)
        thinks, _ = self.renderer.resolve_thinking(thinking, effort)
        thinks = thinks and not is_continued
        awaited = grammar is not None and (is_open or bool(thinks))
        reasoning_limit, after = self._reasoning_limit(
            form, after, is_open, awaited, is_words, own.get("thinking_budget"), reasoning_end
        )
        sampling = {key: rest.pop(key) for key in [*rest] if key in _SAMPLING}
        if grammar is not None:
            sampling.update(structured=grammar, structured_after=after)
        run: Any = {
            **rest,
            "sampling": self.sampling(sampling, thinks),
            "logprobs": _n_logprobs(own),
            "special": True,  # the parser needs the markers
            "suppress_think": False,
        }
        if policy is not None:
            run["context_policy"] = policy
        n = check_int("n", own.get("n", 1), 1)

        def make_reader() -> Any:
            reader: Any = PlainReader(ReasoningSplitter(*form.reasoning, is_open))
            if offered or form.content_head:
                reader = form.stream(offered, starts_open=is_open)
                reader = reader if parallel else FirstCall(reader)
            if grammar is None or choice.mode == "required":
                return reader
            triggers = as_list("grammar_triggers", sampling.get("grammar_triggers") or ())
            return DocumentReader(reader, [after] if after else triggers, is_included=not after)

        run = self.renderer.with_stops(run)
        request = PreparedRequest(tokens, limit, run, n, reasoning_limit)
        name = own.get("model") or name
        return PreparedChat(request, self.model, name, make_reader, bool(functions), *fields)

    async def prepare_async(
        self,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        name: str = "",
        *,
        stream: bool = False,
        reasoning_end: threading.Event | None = None,
    ) -> PreparedChat:
        """Call `prepare` in an event loop, which goes on meanwhile if the messages are long."""
        call = partial(
            self.prepare, messages, options, name, stream=stream, reasoning_end=reasoning_end
        )
        return await prepared_async(call, messages)

    def _reasoning_limit(
        self,
        form: ToolFormat,
        after: str,
        is_open: bool,
        awaited: bool,
        is_words: bool,
        budget: int | None,
        end: threading.Event | None,
    ) -> tuple[Callable[[], ThinkingBudget] | None, str]:
        """Return what creates the reasoning limit, and the text after which a grammar begins."""
        if not awaited and budget is None and end is None:
            return None, after
        markers = self._markers
        if markers.after.strip() and not is_words:
            markers = markers._replace(after="")  # tool calls may follow instead of content
        limit = partial(
            ThinkingBudget, self.model.vocab, form.reasoning, markers, is_open, budget, awaited, end
        )
        limit()  # raises for an invalid budget
        return limit, form.reasoning[1].strip() + markers.after if awaited else after


def whole(
    prepared: PreparedChat, runs: Sequence[Generator[Step, None, GenerationStats]]
) -> CreateChatCompletionResponse:
    """Collect all *runs* and return OpenAI's response."""
    choices, stats = [], []
    assemblers = prepared.assemblers()
    for assembler, run in zip(assemblers, runs, strict=True):
        with closing(run):
            while True:
                try:
                    assembler.add(next(run))
                except StopIteration as e:
                    choices.append(assembler.choice(e.value))
                    stats.append(e.value)
                    break
    return _response(prepared, choices, stats, assemblers)


async def whole_async(
    prepared: PreparedChat, runs: Sequence[RequestHandle]
) -> CreateChatCompletionResponse:
    """Call `whole` in an event loop."""
    choices = []
    assemblers = prepared.assemblers()
    for assembler, run in zip(assemblers, runs, strict=True):
        async with aclosing(run.steps_async()) as steps:
            async for step in steps:
                assembler.add(step)
        choices.append(assembler.choice(run.stats))
    return _response(prepared, choices, [run.stats for run in runs], assemblers)


def stream(
    prepared: PreparedChat, runs: Sequence[Generator[Step, None, GenerationStats]]
) -> Iterator[CreateChatCompletionStreamResponse]:
    """Yield OpenAI's chunks, one answer after the other."""
    chunks = _Chunks(prepared)
    yield from chunks.first()
    yield from chunks.of_runs(runs)
    yield from chunks.end()


async def start_stream(
    prepared: PreparedChat, engine: AnyEngine
) -> AsyncGenerator[CreateChatCompletionStreamResponse, None]:
    """Submit the request; return OpenAI's chunks, those of several answers as they come.

    An `Engine` generates one answer after the other.

    Raises:
        ContextOverflowError: The prompt leaves no room for an answer.
        ValidationError: An option is out of range.
    """
    chunks, request = _Chunks(prepared), prepared.request
    channel: Channel[CreateChatCompletionStreamResponse] | None = None
    if prepared.extensions.progress or request.n > 1:
        channel = Channel()

    def report(i: int, progress: PromptProgress) -> None:
        chunks.timings[i].add_prompt(progress)
        if channel is not None and prepared.extensions.progress:
            channel.put_threadsafe(chunks.progress(i, progress))

    if prepared.extensions.progress or prepared.extensions.timings_per_token:
        request = replace(request, on_progress=report)
    if is_shared(engine):
        handles = await submit_async(engine, request)
        sources = [chunks.of_handle(i, handle) for i, handle in enumerate(handles)]
    else:
        runs = start(engine, request)
        sources = [background(lambda: chunks.of_runs(runs))]
    middle = sources[0] if channel is None else channel.read(sources)
    return between(chunks.first(), middle, chunks.end)


class _Chunks:
    """The chunks of one streamed chat completion."""

    def __init__(self, prepared: PreparedChat) -> None:
        self._prepared, self._assemblers = prepared, prepared.assemblers()
        self._stats: dict[int, GenerationStats] = {}
        self.timings = [RunningTimings() for _ in self._assemblers]

    def first(self) -> Iterator[CreateChatCompletionStreamResponse]:
        """Yield the first chunk of each answer."""
        for assembler in self._assemblers:
            yield _chunk(self._prepared, assembler.first())

    def progress(self, i: int, progress: PromptProgress) -> CreateChatCompletionStreamResponse:
        """Return a chunk with the progress of the prompt of answer *i*."""
        choice: Any = {"index": i, "delta": {}, "logprobs": None, "finish_reason": None}
        return {**_chunk(self._prepared, choice), "prompt_progress": prompt_progress(progress)}

    def of_runs(
        self, runs: Sequence[Generator[Step, None, GenerationStats]]
    ) -> Iterator[CreateChatCompletionStreamResponse]:
        """Yield the chunks of the steps of all answers, one answer after the other."""
        for i, run in enumerate(runs):
            with closing(run):
                while True:
                    try:
                        step = next(run)
                    except StopIteration as e:
                        yield from self._last(i, e.value)
                        break
                    yield from self._push(i, step)

    async def of_handle(
        self, i: int, handle: RequestHandle
    ) -> AsyncGenerator[CreateChatCompletionStreamResponse, None]:
        """Yield the chunks of the steps of answer *i*."""
        async with aclosing(handle.steps_async()) as steps:
            async for step in steps:
                for chunk in self._push(i, step):
                    yield chunk
        for chunk in self._last(i, handle.stats):
            yield chunk

    def end(self) -> Iterator[CreateChatCompletionStreamResponse]:
        """Yield what follows the last chunks of the answers."""
        if self._prepared.includes_usage:
            stats = [self._stats[i] for i in range(len(self._assemblers))]
            last: Any = {
                **_chunk(self._prepared),
                "usage": _usage(stats, self._assemblers),
                **_timings(self._prepared, stats[0]),
            }
            yield last

    def _push(self, i: int, step: Step) -> Iterator[CreateChatCompletionStreamResponse]:
        if not self._prepared.extensions.timings_per_token:
            for choice in self._assemblers[i].push(step):
                yield _chunk(self._prepared, choice)
            return
        found = self.timings[i].add(step)
        for choice in self._assemblers[i].push(step):
            yield {**_chunk(self._prepared, choice), "timings": found}

    def _last(self, i: int, stats: GenerationStats) -> Iterator[CreateChatCompletionStreamResponse]:
        self._stats[i] = stats
        for choice in self._assemblers[i].last(stats):
            chunk: Any = _chunk(self._prepared, choice)
            if choice["finish_reason"]:
                chunk.update(_timings(self._prepared, stats))
            yield chunk


def _response(
    prepared: PreparedChat,
    choices: list[ChatCompletionResponseChoice],
    stats: Sequence[GenerationStats],
    assemblers: Sequence[ChatAssembler],
) -> CreateChatCompletionResponse:
    if prepared.has_functions:
        for choice in choices:
            add_function_call(choice["message"])
    response: Any = {
        "id": prepared.id,
        "object": "chat.completion",
        "created": prepared.created,
        "model": prepared.name,
        "choices": choices,
        "usage": _usage(stats, assemblers),
        **_timings(prepared, stats[0]),
    }
    return response  # type: ignore[no-any-return]


def _timings(prepared: PreparedChat, stats: GenerationStats) -> dict[str, object]:
    """Return the field `timings` of a response, if it has one."""
    if not prepared.extensions.timings:
        return {}
    return {"timings": timings(stats, stats.n_generated)}


def _usage(
    stats: Sequence[GenerationStats], assemblers: Sequence[ChatAssembler]
) -> CompletionUsage:
    return usage(stats, sum(assembler.n_reasoning_tokens for assembler in assemblers))


def _chunk(
    prepared: PreparedChat, *choices: ChatCompletionStreamResponseChoice
) -> CreateChatCompletionStreamResponse:
    if prepared.has_functions:
        for choice in choices:
            add_function_call(choice["delta"])
    chunk: CreateChatCompletionStreamResponse = {
        "id": prepared.id,
        "object": "chat.completion.chunk",
        "created": prepared.created,
        "model": prepared.name,
        "choices": [*choices],
    }
    if prepared.includes_usage:
        chunk["usage"] = None
    return chunk


def _n_logprobs(own: Mapping[str, Any]) -> int | None:
    """Return the number of alternatives per token; None: no log-probabilities."""
    top = own.get("top_logprobs")
    if top is None and not own.get("logprobs"):
        return None
    return 0 if top is None else check_int("top_logprobs", top, 0)


def _grammar(own: Mapping[str, Any]) -> LlamaGrammar | None:
    """Return the grammar that the content must match, if any.

    Raises:
        ValidationError: The response format is invalid, or a grammar is given too.
        GrammarError: The schema cannot be enforced.
    """
    grammar = own.get("grammar", own.get("structured"))
    if isinstance(grammar, str):
        grammar = LlamaGrammar.from_string(grammar) if grammar else None
    if grammar is not None and not isinstance(grammar, LlamaGrammar):
        raise ValidationError(f"grammar must be GBNF or a LlamaGrammar, got {grammar!r}")
    form = own.get("response_format")
    if form is None:
        return grammar
    if not isinstance(form, Mapping):
        advice = (
            f"for instances of it call parse(messages, {form.__name__})"
            if isinstance(form, type)
            else 'write {"type": "json_object"}'
        )
        raise ValidationError(f"response_format must be a dict with a type, got {form!r}; {advice}")
    kind = form.get("type")
    if kind == "text":
        return grammar
    if grammar is not None:
        raise ValidationError("response_format and grammar exclude each other; give only one")
    if kind == "json_object":
        schema = form.get("schema")
        return LlamaGrammar.json_object() if schema is None else _schema_grammar(schema)
    if kind == "json_schema":
        inner = form.get("json_schema") or form
        return _schema_grammar(inner.get("schema") if isinstance(inner, Mapping) else None)
    if kind in ("object", "array") or (kind is None and "properties" in form):
        raise ValidationError(
            "response_format is a JSON Schema; write "
            '{"type": "json_schema", "json_schema": {"schema": ...}}'
        )
    raise ValidationError(
        f"response_format type {kind!r} must be one of text, json_object, json_schema"
    )


def _schema_grammar(schema: Any) -> LlamaGrammar:
    if schema is None:
        raise ValidationError('response_format has no {"json_schema": {"schema": ...}}')
    return LlamaGrammar.from_json_schema(schema, closed=True)


_SAMPLING = frozenset(SamplingOptions.__annotations__) | {"sampling"}
OPTION_NAMES = tuple(dict.fromkeys((*_OWN, *GenerationOptions.__annotations__)))
