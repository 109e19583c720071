"""Llama with the demo model."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.loras import write_lora
from support.tiny_gguf import write_tiny

import llama_cffi
from llama_cffi import (
    Llama,
    LlamaConfig,
    LlamaGrammar,
    ModelLoadError,
    SamplingParams,
    UnifiedLLM,
    ValidationError,
)
from llama_cffi.demo import model_path

GREEDY = SamplingParams(temperature=0)
STORY = (
    "<|im_start|>user\nTell me a story about a fox named Milo.<|im_end|>\n<|im_start|>assistant\n"
)
SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=1024, n_threads=1, embeddings=True) as llm:
        yield llm


def no_end(llm: Llama) -> dict[int, float]:
    """Return logit biases with which an answer does not end."""
    return dict.fromkeys(llm.model.vocab.eog_tokens, -float("inf"))


def get_weather(city: str) -> str:
    """Get the weather.

    Args:
        city: The city.
    """
    return city


def test_chat_and_stream_give_the_same_answer(llm: Llama) -> None:
    whole = llm.create_chat_completion(SUM, temperature=0)
    choice = whole["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "42"}
    assert choice["finish_reason"] == "stop"
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    chunks = list(llm.create_chat_completion(SUM, temperature=0, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "42"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_common_prefix_is_reused(llm: Llama) -> None:
    llm.reset()
    assert llm.create_chat_completion(SUM, temperature=0)["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 0
    }
    usage = llm.create_chat_completion(SUM, temperature=0)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_separate_from_the_content(llm: Llama, stream: bool) -> None:
    answer = llm.create_chat_completion(SUM, temperature=0, thinking=True, stream=stream)
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in answer]
        thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
        content = "".join(delta.get("content", "") for delta in deltas)
    else:
        message = answer["choices"][0]["message"]
        thought, content = message["reasoning_content"], message["content"]
    assert (thought, content) == ("17 + 25 = 30 + 12 = 42", "42")


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize("stream", [False, True])
def test_tool_call_has_the_right_arguments(llm: Llama, choice: Any, stream: bool) -> None:
    if choice == "named":
        choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = llm.create_chat_completion(
        WEATHER, tools=[get_weather], tool_choice=choice, temperature=0, stream=stream
    )
    if stream:
        chunks = [chunk["choices"][0] for chunk in answer]
        parts = [call for c in chunks for call in c["delta"].get("tool_calls", ())]
        name = parts[0]["function"]["name"]
        arguments = "".join(part["function"].get("arguments", "") for part in parts)
        reason = chunks[-1]["finish_reason"]
    else:
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert answer["choices"][0]["message"]["content"] is None
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        reason = answer["choices"][0]["finish_reason"]
    assert (name, json.loads(arguments), reason) == (
        "get_weather",
        {"city": "Paris"},
        "tool_calls",
    )


def test_required_tool_call_is_enforced(llm: Llama) -> None:
    answer = llm.create_chat_completion(
        SUM, tools=[get_weather], tool_choice="required", temperature=0, max_tokens=100
    )
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)


def test_schema_is_enforced_at_high_temperature(llm: Llama) -> None:
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["n", "tags"],
        "additionalProperties": False,
    }
    for seed in range(5):
        answer = llm.create_chat_completion(
            SUM,
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
            temperature=1.5,
            seed=seed,
        )
        jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), schema)


def test_parse_returns_the_type(llm: Llama) -> None:
    @dataclasses.dataclass
    class Answer:
        value: int

    assert isinstance(llm.parse("What is 17 + 25?", Answer, temperature=0), Answer)
    assert llm.parse("What is 17 + 25?", int, temperature=0) == 42


def test_grammar_of_a_completion(llm: Llama) -> None:
    for grammar in (
        LlamaGrammar.from_string('root ::= "yes" | "no"'),
        'root ::= "yes" | "no"',
        LlamaGrammar.from_choices(["yes", "no"]),
    ):
        text = llm("Is it?", grammar=grammar, temperature=1.5)["choices"][0]["text"]
        assert text in ("yes", "no")


def test_special_tokens_in_messages_stay_text(llm: Llama) -> None:
    tokens, _ = llm.chat.renderer.render([{"role": "user", "content": "<|im_end|>"}])
    plain, _ = llm.chat.renderer.render([{"role": "user", "content": "x"}])
    end = llm.tokenize("<|im_end|>", False, True)
    assert len(end) == 1
    assert tokens.count(end[0]) == plain.count(end[0])


def test_logprobs_are_computed_from_raw_logits(llm: Llama) -> None:
    answer = llm(STORY, max_tokens=4, temperature=0, logprobs=3)["choices"][0]
    found = answer["logprobs"]
    assert len(found["tokens"]) == 4
    assert "".join(found["tokens"]) == answer["text"]
    tokens = llm.tokenize(STORY, special=True)
    for i in range(4):
        list(llm.engine.steps(tokens, 1, temperature=0))
        logits = llm.engine.context.logits().astype(np.float64)
        expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        best = int(np.argmax(expected))
        assert found["token_logprobs"][i] == pytest.approx(expected[best], abs=1e-3)
        top = sorted(found["top_logprobs"][i].values(), reverse=True)
        assert top == pytest.approx(sorted(expected, reverse=True)[: len(top)], abs=1e-3)
        tokens.append(best)


def test_completion_echo_n_stop_and_limits(llm: Llama) -> None:
    text = llm(STORY, max_tokens=6, temperature=0)["choices"][0]["text"]
    echoed = llm(STORY, max_tokens=6, temperature=0, echo=True)["choices"][0]
    assert (echoed["text"], echoed["finish_reason"]) == (STORY + text, "length")
    stopped = llm(STORY, max_tokens=6, temperature=0, stop=text[3:5])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.find(text[3:5])], "stop")
    several = llm(STORY, max_tokens=6, n=2, best_of=3, seed=1)["choices"]
    assert [choice["index"] for choice in several] == [0, 1]
    chunks = list(llm(STORY, max_tokens=6, temperature=0, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    one = llm(STORY, max_tokens=6, temperature=0, stopping_criteria=lambda ids, _: True)
    assert one["choices"][0]["text"] == ""
    assert llm(STORY, max_tokens=4, seed=3) | {"id": 0, "created": 0, "usage": 0} == llm(
        llm.tokenize(STORY, special=True), max_tokens=4, seed=3
    ) | {"id": 0, "created": 0, "usage": 0}
    with pytest.raises(ValidationError, match="fill-in-the-middle"):
        llm("a", suffix="b")
    for bad in ({"max_tokens": 0}, {"n": 0}, {"logprobs": -1}, {"logit_bias": {"x": 1}}):
        with pytest.raises(ValidationError):
            llm("a", **bad)


def test_generate_and_stream_give_the_same_text(llm: Llama) -> None:
    whole = llm.generate(STORY, 12, GREEDY)
    assert whole
    assert whole == "".join(llm.generate_stream(STORY, 12, sampling=GREEDY))
    assert llm.generate(STORY, 12, GREEDY) == whole
    with pytest.raises(ValidationError):
        llm.generate("test", max_tokens=0)


def test_async(llm: Llama) -> None:
    async def main() -> None:
        whole = await llm.generate_async(STORY, 12, sampling=GREEDY)
        pieces = await llm.generate_async(STORY, 12, sampling=GREEDY, stream=True)
        assert not isinstance(pieces, str)
        assert "".join([piece async for piece in pieces]) == whole
        answers = await asyncio.gather(
            *(llm.create_chat_completion_async(SUM, temperature=0) for _ in range(3))
        )
        assert [a["choices"][0]["message"]["content"] for a in answers] == ["42"] * 3
        chunks = await llm.create_chat_completion_async(SUM, temperature=0, stream=True)
        assert len([chunk async for chunk in chunks]) > 2
        endless = llm.generate_async(STORY, 10**6, context_policy="shift", logit_bias=no_end(llm))
        task = asyncio.ensure_future(endless)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await llm.embed_async("x")) > 0
        ids = [llm.tokenize("a b"), llm.tokenize("c")]
        assert await llm.embed_async(ids) == llm.embed(["a b", "c"])
        usage = (await llm.create_embedding_async(ids))["usage"]
        assert usage["prompt_tokens"] == sum(map(len, ids))

    asyncio.run(main())
    assert llm.generate(STORY, 2)


def test_restored_state_continues_the_session(llm: Llama, tmp_path: Path) -> None:
    expected = llm.create_chat_completion(SUM, temperature=0)["choices"][0]["message"]
    held = list(llm.engine.format_chat(SUM))
    llm.save_state(tmp_path / "state")
    state = llm.get_state()
    for load in (
        lambda: llm.set_state(state),
        lambda: llm.load_state(tmp_path / "state"),
        lambda: llm.load_state(state),
    ):
        llm.reset()
        load()
        answer = llm.create_chat_completion(SUM, temperature=0)
        assert answer["choices"][0]["message"] == expected
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(held) - 1
    with pytest.raises(ValidationError):
        llm.set_state(state[:-1])
    assert llm.create_chat_completion(SUM, temperature=0)["choices"][0]["message"] == expected
    assert llm.kv_cache_seq_rm(0, 3)
    assert llm.create_chat_completion(SUM, temperature=0)["choices"][0]["message"] == expected


def test_embeddings(llm: Llama) -> None:
    rows = llm.create_embedding(["a", "b"])
    assert [row["index"] for row in rows["data"]] == [0, 1]
    assert rows["data"][0]["embedding"] == pytest.approx(llm.embed("a"), abs=0.01)
    with (
        Llama(model_path(), n_ctx=64, n_threads=1) as other,
        pytest.raises(ValidationError, match="embeddings=True"),
    ):
        other.embed("a")


def test_constructor(tmp_path: Path) -> None:
    config = LlamaConfig(model_path=model_path(), n_ctx=64, n_threads=1, chat_format="chatml")
    with Llama(model_path(), config=config) as llm:
        assert "<|im_start|>" in llm.chat.renderer.render(SUM)[1]
        llm.create_completion("a b c", max_tokens=4, logit_bias=no_end(llm))
        assert llm.perf().n_generated >= 3
        assert llm.perf().generation_ms > 0
        llm.perf_reset()
        assert llm.perf().generation_ms == 0
        assert llm.n_tokens("a b") == len(llm.tokenize("a b"))
        assert llm.detokenize(llm.tokenize("a b")) == "a b"
    llm.close()
    with pytest.raises(ValidationError):
        llm.generate("a")
    with pytest.raises(ModelLoadError):
        Llama("nonexistent.gguf")
    with pytest.raises(TypeError):
        Llama(model_path(), no_such_option=1)
    with pytest.raises(ValidationError):
        Llama()


def test_model_without_template_gets_plain_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny(tmp_path / "tiny.gguf", chat_template=None)
    with Llama(tmp_path / "tiny.gguf", n_ctx=64, n_threads=1) as llm:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        for _ in range(2):
            tokens, text = llm.renderer.render(messages)
            assert text == "Be brief.\n\nHi"
            assert tokens == llm.tokenize(text)
        answer = llm.create_chat_completion(messages, max_tokens=3)
        assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert [r.message.split(":")[0] for r in caplog.records] == ["tiny.gguf has no chat template"]


def test_adapter_changes_the_answer_and_stays_active(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf")
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(4, 64)), rng.normal(size=(64, 4)))
    pairs = {"blk.0.attn_q.weight": (a.astype(np.float32), b.astype(np.float32))}
    lora = write_lora(tmp_path / "lora.gguf", pairs)
    with Llama(path, n_ctx=64, n_threads=1) as llm:

        def logits() -> Any:
            list(llm.engine.steps([65, 66, 67], 1, temperature=0))
            return llm.engine.context.logits()

        plain = logits()
        llm.load_lora(lora, 2.0)
        changed = logits()
        assert not np.allclose(plain, changed, atol=1e-3)
        llm.reset()
        np.testing.assert_allclose(logits(), changed, atol=1e-5)
        llm.remove_lora(lora)
        np.testing.assert_allclose(logits(), plain, atol=1e-5)
        with pytest.raises(ValidationError):
            llm.remove_lora(lora)
        llm.load_lora(lora)
        llm.clear_lora()
        np.testing.assert_allclose(logits(), plain, atol=1e-5)


def test_module_functions() -> None:
    assert llama_cffi.print_system_info()
    llama_cffi.set_log_level("warning")
    llama_cffi.disable_logging()
    llama_cffi.reset_logging()


def test_shutdown_closes_all_instances() -> None:
    other = Llama(model_path(), n_ctx=64, n_threads=1)
    other.close()
    from llama_cffi.api import llama

    before = [each for each in llama._open if not each.closed]
    for each in before:
        llama._open.discard(each)
    try:
        one = Llama(model_path(), n_ctx=64, n_threads=1)
        llama_cffi.shutdown()
        llama_cffi.shutdown()
        assert one.engine.closed
    finally:
        llama._open.update(before)


def test_unified() -> None:
    with UnifiedLLM(model_path(), n_ctx=512, n_threads=1) as llm:
        assert llm.family.name == "demo"
        assert llm.generate("What is 17 + 25?", temperature=0) == "42"
        assert llm.generate("What is 17 + 25?", temperature=0, thinking=True) == "42"
        assert "".join(llm.generate("What is 17 + 25?", temperature=0, stream=True)) == "42"
        with pytest.raises(ValidationError):
            llm.generate("a", max_tokens=0)
        with pytest.raises(ValidationError):
            llm.generate("a " * 2000)


def test_loading_tells_its_progress(tiny_model: Path) -> None:
    told: list[float] = []
    with Llama(tiny_model, n_ctx=64, n_threads=1, progress=told.append):
        assert told[-1] == 1.0
        assert told == sorted(told)
    with pytest.raises(ValidationError, match="must be a bool or a function"):
        Llama(tiny_model, progress="yes")  # type: ignore[arg-type]
