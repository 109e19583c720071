"""POST /completion and /completions: checked requests, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from ...api.aio import prepared_async, whole_async
from ...api.channel import Channel
from ...api.running import PreparedRequest, is_shared, run, run_async
from ...binding import Vocab
from ...generation.prompt_progress import PromptProgress
from ...grammars import LlamaGrammar
from ...scheduler import InferenceEngine
from ..body import BOOL, INTEGER, LIST, OBJECT, STRING, Kind, Object, either, list_of, take
from ..call import Answer, Call, Endpoint, Json, Stream
from ..errors import invalid
from ..fields import GENERATION, OPENAI, generation_options, parse_grammar
from ..lora import use_adapters
from ..models import ServedModel
from ..paths import bare_post
from .answer import CompletionAnswer, Run, Wanted, progress_event
from .prompts import has_media, prompt_tokens

if TYPE_CHECKING:
    from ...api.running import AnyEngine

__all__ = ["FIELDS", "answer", "check", "routes"]

FIELDS: Mapping[str, Kind] = {
    **{name: kind for name, kind in GENERATION.items() if name not in OPENAI},
    "model": STRING,
    "prompt": either(STRING, LIST, OBJECT),
    "stream": BOOL,
    "n": INTEGER,
    "n_cmpl": INTEGER,
    "json_schema": OBJECT,
    "n_probs": INTEGER,
    "logprobs": INTEGER,
    "post_sampling_probs": BOOL,
    "return_tokens": BOOL,
    "return_progress": BOOL,
    "timings_per_token": BOOL,
    "response_fields": list_of(STRING),
    "t_max_predict_ms": INTEGER,
    "n_indent": INTEGER,
    "id_slot": INTEGER,
    "speculative.n_max": INTEGER,
}
_SLOW = {"grammar", "json_schema"}  # to compile; for the rest a thread would cost more


def routes() -> list[BaseRoute]:
    """Return the routes of this module; with /v1 these paths are OpenAI's."""
    complete = Endpoint(_complete)
    return [bare_post("/completion", complete), bare_post("/completions", complete)]


async def _complete(call: Call) -> Answer:
    model = call.model
    given = take(call.body, FIELDS, "prompt")
    prompt, policy = given["prompt"], call.state.settings.media_policy

    def prepare() -> tuple[Wanted, list[list[int]]]:
        return check(model, given), prompt_tokens(model.llm, prompt, policy)

    is_slow = not _SLOW.isdisjoint(given) or has_media(prompt)
    preparing = whole_async(prepare) if is_slow else prepared_async(prepare, prompt)
    wanted, prompts = await preparing
    return await answer(call, wanted, prompts)


async def answer(call: Call, wanted: Wanted, prompts: Sequence[Sequence[int]]) -> Answer:
    """Answer *prompts*, each of them *n* times.

    Raises:
        ContextOverflowError: A prompt does not fit into the context.
        QueueFullError: Too many requests are waiting already.
    """
    model = wanted.model
    use_adapters(call)
    for tokens in prompts:
        model.check_length(len(tokens))
    call.admit(model, len(prompts) * wanted.n)
    channel = Channel[bytes]() if wanted.stream else None
    answers: list[CompletionAnswer] = []
    for tokens in prompts:
        answers += await _started(wanted, len(answers), tokens, channel)
    if channel is None:
        found = [await one.whole() for one in answers]
        return Json(found if len(found) > 1 else found[0])
    if len(answers) == 1 and not wanted.return_progress:
        return Stream(answers[0].events())
    return Stream(channel.read([one.events() for one in answers]))


async def _started(
    wanted: Wanted, index: int, tokens: Sequence[int], channel: Channel[bytes] | None
) -> list[CompletionAnswer]:
    """Submit the answers to a prompt, of which the first has the number *index*."""

    def report(i: int, progress: PromptProgress) -> None:
        if channel is not None:
            channel.put_threadsafe(progress_event(index + i, progress))

    request = PreparedRequest(
        tokens,
        # Evaluating alone is generating one token that is not shown.
        None if wanted.n_predict == -1 else max(1, wanted.n_predict),
        wanted.options,
        wanted.n,
        on_progress=report if channel is not None and wanted.return_progress else None,
    )
    runs = await _submitted(wanted.model.llm.engine, request)
    return [CompletionAnswer(wanted, index + i, tokens, one) for i, one in enumerate(runs)]


async def _submitted(engine: AnyEngine, request: PreparedRequest) -> Sequence[Run]:
    """Submit a request to either engine."""
    if is_shared(engine):
        return await run_async(engine, request)
    return run(engine, request)


def check(model: ServedModel, given: Object) -> Wanted:
    """Check the fields of a request.

    Raises:
        ApiError: A value is out of range, or asks for something that is not there.
        LlamaError: The same.
    """
    llm = model.llm
    vocab = llm.model.vocab
    n_vocab = len(vocab)
    own = {name: given[name] for name in given if name not in GENERATION}
    rest = {name: value for name, value in given.items() if name not in own}
    n: int = own.get("n_cmpl", rest.get("n", 1))
    rest["n"] = n
    if own.get("n_indent", 0) > 0:
        raise invalid("n_indent", "n_indent is not supported; leave it out, or give 0")
    if "logit_bias" in rest:
        rest["logit_bias"] = _with_ids(vocab, rest["logit_bias"])
    settings = generation_options(rest, n_vocab)
    n_predict, stop = settings.pop("max_tokens", -1), settings.pop("stop", ())
    cache_prompt = settings.pop("cache_prompt", True)
    if n_predict < -1:
        message = f"n_predict must be at least 0, or -1 for no limit, got {n_predict}"
        raise invalid("n_predict", message)
    n_probs = own.get("n_probs", own.get("logprobs", 0))
    if n_probs < 0:
        raise invalid("n_probs", f"n_probs must be at least 0, got {n_probs}")
    grammar, schema = settings.get("grammar", ""), own.get("json_schema")
    if schema is not None:
        if grammar:
            raise invalid("json_schema", "give json_schema or grammar, not both")
        settings["grammar"] = LlamaGrammar.from_json_schema(schema)
    else:
        parse_grammar(settings)
    sampling = llm.chat.sampling(settings)
    stops = [s for s in ([stop] if isinstance(stop, str) else stop) if s]
    post_sampling = own.get("post_sampling_probs", False)
    options: dict[str, Any] = {"sampling": sampling, "cache_prompt": cache_prompt}
    if stops:
        options["stop"] = stops
    if n_probs:
        options |= {"logprobs": min(n_probs, n_vocab), "post_sampling_probs": post_sampling}
    n_draft = own.get("speculative.n_max")
    if n_draft is not None and n_draft < 0:
        raise invalid("speculative.n_max", f"speculative.n_max must be at least 0, got {n_draft}")
    if n_draft is not None and isinstance(llm.engine, InferenceEngine):
        options["n_draft"] = n_draft
    return Wanted(
        model=model,
        n=n,
        n_predict=n_predict,
        t_max_predict_s=max(0, own.get("t_max_predict_ms", 0)) / 1e3,
        sampling=sampling,
        stop=stops,
        n_probs=min(n_probs, n_vocab),
        post_sampling_probs=post_sampling,
        options=options,
        stream=given.get("stream", False),
        return_tokens=own.get("return_tokens", False),
        return_progress=own.get("return_progress", False),
        timings_per_token=own.get("timings_per_token", False),
        response_fields=own.get("response_fields", ()),
        grammar=grammar,
        json_schema=schema,
    )


def _with_ids(vocab: Vocab, given: Any) -> list[Any]:
    """Return a bias whose texts are replaced by their tokens; other items are not checked."""
    found: list[Any] = []
    for pair in given.items() if isinstance(given, dict) else given:
        text = pair[0] if isinstance(pair, (list, tuple)) and len(pair) == 2 else None
        if isinstance(text, str) and not (text.isascii() and text.isdigit()):
            found += [(token, pair[1]) for token in vocab.tokenize(text, False)]
        else:
            found.append(pair)
    return found
