"""How users call each class, for a strict type checker: `nox -s typing`. It is not run."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Literal

from typing_extensions import assert_type

from llama_cffi import (
    ChoiceAnswer,
    ChoiceQuestion,
    CreateChatCompletionResponse,
    CreateChatCompletionStreamResponse,
    CreateCompletionResponse,
    Decision,
    Embedder,
    Engine,
    InferenceEngine,
    Llama,
    LlamaGrammar,
    LlamaPool,
    MapResult,
    Model,
    NgramCache,
    PredicateAnswer,
    PredicateQuestion,
    PromptLookup,
    RequestHandle,
    ResponseCache,
    SamplerChain,
    SamplingParams,
    ScoreQuestion,
    Scorer,
    Step,
    UnifiedLLM,
    ask,
    complete,
    copy_gguf,
)
from llama_cffi.llama_cpp import Llama as DropIn


@dataclass
class City:
    """A city."""

    name: str


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return city


MESSAGES = [{"role": "user", "content": "Hi"}]


def engine() -> None:
    with Engine("m.gguf", n_ctx=512, flash_attn=True) as engine:
        assert_type(engine.generate("Hi", "Be brief.", 16, 0.7, seed=1), str)
        assert_type(engine.generate("Hi", stream=True, thinking=False), Iterator[str])
        engine.generate("Hi", n_predict=4, penalty_freq=0.1, reset_kv=True)
        engine.generate("Hi", sampling=SamplingParams(top_k=10), grammar=LlamaGrammar.json_object())
        assert_type(engine.generate_chat(MESSAGES, stop=["\n"], cache_prompt=False), str)
        assert_type(engine.generate_chat([("user", "Hi")], 16, 0.7, callback=print), str)
        assert_type(engine.stream_chat(MESSAGES, reasoning_effort="low"), Iterator[str])
        tokens = engine.tokenize_chat(MESSAGES, [get_weather])
        assert_type(engine.generate_tokens(tokens, 8, logit_bias={1: -1.0}), list[int])
        for step in engine.steps(tokens, logprobs=3):
            assert_type(step, Step)


def llama() -> None:
    llm = Llama("hf:owner/repo:Q4_K_M", n_ctx=2048, n_parallel=4, seed=3)
    assert_type(llm.generate("Once", 32, SamplingParams(), stop="."), str)
    assert_type(llm.generate("Once", stream=True), Iterator[str])
    assert_type(llm.create_completion("Once", max_tokens=4, n=2), CreateCompletionResponse)
    answer = llm.create_chat_completion(MESSAGES, tools=[get_weather], max_completion_tokens=5)
    assert_type(answer, CreateChatCompletionResponse)
    print(answer["choices"][0]["message"].get("tool_calls"))
    for chunk in llm.create_chat_completion(MESSAGES, stream=True, sampling="model"):
        assert_type(chunk, CreateChatCompletionStreamResponse)
    assert_type(llm.parse("Paris?", City, temperature=0), City)
    assert_type(llm.map(["Paris?"], City, "{}", errors="keep", temperature=0), MapResult[City])
    assert_type(llm.map(["Paris?"], {"type": "string"}), MapResult[object])
    assert_type(llm.map(["Paris?"], City)[0], City | None)
    assert_type(llm.embed("text"), list[float])
    assert_type(llm.embed([1, 2]), list[float])
    assert_type(llm.embed([[1, 2], "text"]), list[list[float]])
    assert_type(llm.generate("Once", stop=[llm.token_eot(), "\n"]), str)
    assert_type(llm.n_ctx(), int)
    print(
        llm.n_ctx - 16, llm.n_vocab() // 2, llm.metadata.get("general.name"), llm.perf()["n_eval"]
    )


async def pool() -> None:
    async with LlamaPool("m.gguf", n_parallel=2, n_ctx=512) as pool:
        assert_type(await pool.generate("Hi", temperature=0), str)
        assert_type(await pool.llm.generate_async("Hi", 8, stop=[2]), str)
        print((await pool.llm.generate_async("Hi", 8, logprobs=2))["logprobs"])
        assert_type(await pool.generate("Hi", stream=True), AsyncIterator[str])
        assert_type(await pool.generate_batch(["a", "b"], 8, min_p=0.1), list[str])
        chunks = await pool.create_chat_completion(MESSAGES, stream=True)
        async for chunk in chunks:
            print(chunk["choices"][0]["delta"].get("content"))


def inference_engine(model: Model) -> None:
    with InferenceEngine(model, 4, 512) as engine:
        handle = engine.submit("Hi", 16, priority=1, frequency_penalty=0.2, timeout_s=3.0)
        assert_type(handle, RequestHandle)
        assert_type(handle.result(), str)
        assert_type(engine.generate("Hi", stream=True), Iterator[str])


def one_line() -> None:
    assert_type(complete("Once", "m.gguf", 8, stop=[2, "\n"], ignore_eos=True), str)
    assert_type(complete("Once", "m.gguf", stream=True), Iterator[str])
    assert_type(ask(MESSAGES, "hf:owner/repo", system_prompt="Be brief."), str)
    assert_type(ask("Hi", "m.gguf", stream=True, temperature=0.5), Iterator[str])


def more(model: Model, llm: Llama) -> None:
    cache = ResponseCache(llm, max_entries=10, ttl_s=60)
    assert_type(cache.generate("Once", 8, temperature=0), str)
    answer = cache.create_chat_completion(MESSAGES, seed=1)
    assert_type(answer, CreateChatCompletionResponse)
    ngrams = NgramCache.load("answers.ngrams")
    with InferenceEngine(model, 4, draft=PromptLookup(cache=ngrams)) as engine:
        handle = engine.submit("Hi", id="mine", grammar='root ::= "a"', grammar_triggers=["a", 5])
        engine.submit("Hi", grammar='root ::= "a"', grammar_triggers=[re.compile("a")])
        engine.pause()
        engine.cancel("mine")
        engine.cancel(handle)
        engine.resume()
    chain = SamplerChain(model).add_temp(1.0).add_dist(1)
    assert_type(chain.insert(0, SamplerChain(model).add_top_k(4)), SamplerChain)
    assert_type(chain.remove(0), SamplerChain)
    copy_gguf("m.gguf", "n.gguf", {"general.name": "n", "a.b": [1, 2], "general.url": None})


def others(model: Model) -> None:
    unified = UnifiedLLM("m.gguf", n_ctx=512)
    assert_type(unified.generate("Hi", "Be brief.", 16, thinking=True, thinking_budget=64), str)
    assert_type(unified.generate_with_thinking("Hi", max_tokens=64), tuple[str, str])
    with Embedder("m.gguf") as embedder, Scorer(model) as scorer:
        print(embedder.embed(["a"]), scorer.perplexity("text"))
    with DropIn("m.gguf", n_ctx=512, verbose=False) as drop_in:
        print(drop_in.create_completion("Q:", max_tokens=3, temperature=0.1))
        assert_type(drop_in.embed([1, 2]), list[float])
        assert_type(drop_in.embed([[1, 2], [3]]), list[list[float]])


async def decisions(llm: Llama, engine: InferenceEngine, pool: LlamaPool) -> None:
    predicate, choice = PredicateQuestion("Is it?"), ChoiceQuestion("Which?", {"a": "x", "b": None})
    assert_type(llm.decide("Hi", bool), bool)
    assert_type(llm.decide("Hi", City, average_orders=True), City)
    assert_type(llm.decide("Hi", Decision[Literal["a", "b"]]).value, Literal["a", "b"])
    assert_type(llm.decide({"a": 1}, predicate), PredicateAnswer)
    assert_type(llm.decide(MESSAGES, [predicate, predicate]), list[PredicateAnswer])
    for answer in llm.decide("Hi", [predicate, choice, ScoreQuestion("How?", ["low", "high"])]):
        print(answer.name, answer.label_mass)
    assert_type(llm.decide_batch(["Hi"], bool), list[bool])
    assert_type(engine.decide_batch(["Hi"], [predicate], timeout_s=5), list[list[PredicateAnswer]])
    assert_type(await engine.decide_async("Hi", choice), ChoiceAnswer)
    assert_type(await llm.decide_async("Hi", bool), bool)
    assert_type(await pool.decide("Hi", Decision[bool]), Decision[bool])
    assert_type(await pool.decide_batch(["Hi"], [choice]), list[list[ChoiceAnswer]])
