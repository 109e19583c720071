"""Chat completions in OpenAI's shapes, over one engine."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ..chat.reasoning import ReasoningSplitter, opens_thinking
from ..chat.tools import normalise_tool_choice, normalise_tools
from ..errors import ValidationError
from ..generation.chat_renderer import ChatRenderer
from ..generation.context_policy import DROP_TURNS, fit_turns
from ..grammars import LlamaGrammar
from ..validation import as_list, check_int
from .chat_answer import ChatAnswer, PlainReader, chunks
from .completions import events, sampling, seeded, usage
from .thinking import ThinkingBudget, ThinkMarkers, think_markers
from .tool_grammar import call_grammar

if TYPE_CHECKING:
    from ..chat.families import Family
    from ..generation.logprobs import Logprob
    from ..generation.sequence import Step
    from ..generation.stats import GenerationStats
    from .session import AnyEngine

__all__ = ["Chat"]

Message = Mapping[str, Any]


class Chat:
    """Conversations with one model.

    Args:
        engine: Generates.
        chat_format: See `ChatRenderer`.
        context_policy: For calls that give none; None: the engine's.

    Attributes:
        renderer: Renders the conversations.
    """

    def __init__(
        self, engine: AnyEngine, chat_format: str | None = None, context_policy: str | None = None
    ) -> None:
        self._engine = engine
        self._policy = context_policy
        self.renderer = ChatRenderer(engine.model, chat_format)

    @property
    def family(self) -> Family:
        """The model's family."""
        return self.renderer.family

    @cached_property
    def _markers(self) -> ThinkMarkers:
        """The text around a thought."""
        vocab, reasoning = self._engine.model.vocab, self.family.tool_format.reasoning
        return think_markers(vocab, self.renderer.template, reasoning)

    def create(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        response_format: Mapping[str, Any] | None = None,
        *,
        max_tokens: int | None = None,
        max_completion_tokens: int | None = None,
        temperature: float = 0.2,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        logprobs: bool | None = False,
        top_logprobs: int | None = None,
        thinking: bool | None = None,
        thinking_budget: int | None = None,
        reasoning_effort: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        grammar: LlamaGrammar | str | None = None,
        n: int = 1,
        stopping_criteria: Any = None,
        model: str = "",
        timeout_s: float | None = None,
        context_policy: str | None = None,
        deferred: bool = False,
        **options: Any,
    ) -> Any:
        """Answer a conversation in OpenAI's shape, or chunk by chunk with *stream*.

        Args:
            messages: Each with `role` and `content`, the oldest first.
            tools: Definitions, or Python functions.
            tool_choice: `auto`, `none`, `required`, or a dict that names a function; with the
                last two the answer is constrained to calls that fit the schemas.
            response_format: `{"type": "json_object"}`, with a `schema` if wanted, or
                `{"type": "json_schema", "json_schema": {"schema": ...}}`.
            max_tokens: Most tokens to generate; None or -1 = until the context is full.
            max_completion_tokens: OpenAI's newer name of *max_tokens*.
            temperature: See `SamplingParams`.
            stream: Give chunks.
            stop: Texts that end the answer.
            logprobs: Give the log-probability of each token.
            top_logprobs: And of so many in its place.
            thinking: Whether the model shall think first; None = as it is used to.
            thinking_budget: After so many tokens a thought is ended, as the chat template would
                end it, and the answer goes on; 0 = at once, None = no limit.
            reasoning_effort: OpenAI's `none`, `minimal`, `low`, `medium`, `high`, in place of
                *thinking*: told to a template that knows it, else off for the first two and on;
                see `thinking.switched`.
            chat_template_kwargs: What else the template reads.
            parallel_tool_calls: Whether constrained answers may hold several calls.
            grammar: A `LlamaGrammar`, or GBNF, for the content.
            n: How many answers.
            stopping_criteria: As for `Llama.create_completion`.
            model: The name that the response shows.
            timeout_s: The answer has to be there in so many seconds.
            context_policy: What happens when the conversation is too long: `drop_oldest_turns`
                (see `context_policy.fit_turns`), or one of the engine's; None = the constructor's.
            deferred: Return a function that waits for the response and returns it; with an engine
                for several requests the answer is under way then.
            **options: Other sampling arguments of `Llama.create_completion`.

        Raises:
            TemplateError: The template refuses the messages, or the model has none.
            ValidationError: An argument is out of range.
            ContextOverflowError: The conversation leaves no room.
        """
        n = check_int("n", n, 1)
        known = normalise_tools(tools)
        choice = normalise_tool_choice(tool_choice, known)
        grammar = _grammar(response_format, grammar)
        offered = known if choice.mode != "none" else []
        render = partial(
            self.renderer.render,
            tools=offered,
            thinking=thinking,
            reasoning_effort=reasoning_effort,
            chat_template_kwargs=chat_template_kwargs,
        )
        limit = max_completion_tokens if max_tokens is None else max_tokens
        policy = context_policy or self._policy
        if policy == DROP_TURNS:
            messages = fit_turns(
                messages,
                lambda some: len(render(some).tokens),
                None if limit is None else check_int("max_tokens", limit, -1),
                self._engine.n_ctx,
            )
            policy = "error"
        chosen = {} if policy is None else {"context_policy": policy}
        tokens, text = render(messages)
        form = self.family.tool_format
        start, end = form.reasoning
        is_open = opens_thinking(text, start)
        after, thought_limit = form.content_head if grammar is not None else "", None
        is_words = grammar is not None or not offered
        if choice.mode == "required":
            if grammar is not None:
                raise ValidationError("a required tool call and a grammar exclude each other")
            parts = form.grammar_parts(choice.allowed(known), parallel_tool_calls, True)
            grammar = call_grammar(parts, self.renderer.special_tokens)
        thinks, _ = self.renderer.resolve_thinking(thinking, reasoning_effort)
        awaited = grammar is not None and (is_open or bool(thinks))
        if awaited or thinking_budget is not None:
            markers = self._markers
            if markers.after.strip() and not is_words:
                markers = markers._replace(after="")  # the head of a content
            after = end.strip() + markers.after if awaited else after
            thought_limit = partial(
                ThinkingBudget, self._engine.model.vocab, form.reasoning, markers, is_open,
                thinking_budget, awaited,
            )  # fmt: skip
            thought_limit()  # what is wrong is said now
        params = sampling(
            temperature=temperature, grammar=grammar, structured_after=after, **options
        )
        top = (top_logprobs or 0) if logprobs or top_logprobs else None
        stops = [stop] if isinstance(stop, str) else as_list("stop", stop or ())
        stops.extend(self.family.stops)

        def begin(i: int) -> Generator[Step, None, GenerationStats]:
            return events(
                self._engine, tokens, limit, seeded(params, i), stop=stops, top=top,
                special=True, suppress_think=False, timeout_s=timeout_s,
                stopping_criteria=stopping_criteria, thought_limit=thought_limit, **chosen,
            )  # fmt: skip

        def reader() -> Any:
            if offered or form.content_head:
                return form.stream(offered, starts_open=is_open)
            return PlainReader(ReasoningSplitter(start, end, is_open))

        base = {"created": int(time.time()), "model": model}
        base["id"] = f"chatcmpl-{secrets.token_hex(12)}"
        answers = [ChatAnswer(begin(i), reader(), self._logprobs) for i in range(n)]
        if stream:
            return chunks({**base, "object": "chat.completion.chunk"}, answers)

        def response() -> Any:
            return {
                **base,
                "object": "chat.completion",
                "choices": [answer.whole(i) for i, answer in enumerate(answers)],
                "usage": usage([answer.stats for answer in answers]),
            }

        return response if deferred else response()

    def _logprobs(self, found: Sequence[Logprob]) -> Any:
        if not found:
            return None
        return {"content": [self._logprob(f) for f in found], "refusal": None}

    def _logprob(self, found: Logprob) -> Any:
        top = [self._token(token, value) for token, value in found.top]
        return {**self._token(found.token, found.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> Any:
        piece = self._engine.model.vocab.token_to_piece(token, True)
        return {
            "token": piece.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": list(piece),
        }


def _grammar(
    response_format: Mapping[str, Any] | None, grammar: LlamaGrammar | str | None
) -> LlamaGrammar | str | None:
    """Return what the content has to match.

    Raises:
        ValidationError: The format is none of OpenAI's, or there is a grammar, too.
        GrammarError: The schema cannot be enforced.
    """
    if response_format is None:
        return grammar
    if not isinstance(response_format, Mapping):
        raise ValidationError(f"response_format={response_format!r} is no dict with a type")
    kind = response_format.get("type")
    if kind == "text":
        return grammar
    if grammar is not None:
        raise ValidationError("response_format and grammar exclude each other")
    if kind == "json_object":
        schema = response_format.get("schema")
        return LlamaGrammar.json_object() if schema is None else _of_schema(schema)
    if kind == "json_schema":
        inner = response_format.get("json_schema") or response_format
        return _of_schema(inner.get("schema") if isinstance(inner, Mapping) else None)
    raise ValidationError(
        f"response_format type {kind!r} is none of text, json_object, json_schema"
    )


def _of_schema(schema: Any) -> LlamaGrammar:
    if schema is None:
        raise ValidationError('response_format has no {"json_schema": {"schema": ...}}')
    return LlamaGrammar.from_json_schema(schema)
