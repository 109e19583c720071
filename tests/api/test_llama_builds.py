"""Llama with the oldest, a middle and the newest build: chat, tools, schemas, state, adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.loras import make_pairs, write_lora

from llama_cffi.demo import model_path

CODE = """
import asyncio, json, operator, sys
from llama_cffi import Llama, LlamaGrammar, SamplingParams

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Bo"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "n"],
    "additionalProperties": False,  # otherwise answers at high temperature fill the context
}
greedy = SamplingParams(temperature=0)
found = {}

def get_weather(city: str) -> str:
    '''Get the weather.

    Args:
        city: The city.
    '''
    return city

def content(answer):
    return answer["choices"][0]["message"]["content"]

demo, tiny, lora = sys.argv[1:]
with Llama(demo, None, greedy, n_ctx=1024, n_threads=1, embeddings=True) as llm:
    found["chat"] = content(llm.create_chat_completion(SUM, temperature=0))
    chunks = llm.create_chat_completion(SUM, temperature=0, stream=True, thinking=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    found["thought"] = "".join(delta.get("reasoning_content", "") for delta in deltas)
    for choice in ("auto", "required"):
        answer = llm.create_chat_completion(
            WEATHER, tools=[get_weather], tool_choice=choice, temperature=0
        )
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        found["tools " + choice] = [call["function"]["name"], call["function"]["arguments"]]
    for seed in range(3):
        answer = llm.create_chat_completion(
            SUM, response_format={"type": "json_object", "schema": SCHEMA}, temperature=1.5,
            seed=seed,
        )
        value = json.loads(content(answer))
        assert value["name"] in ("Ada", "Bo") and isinstance(value["n"], int), value
    found["grammar"] = content(
        llm.create_chat_completion(SUM, grammar='root ::= "yes"', temperature=1.5)
    )
    found["parse"] = llm.parse("What is 17 + 25?", int, temperature=0)
    prompt = llm.chat.renderer.render([{"role": "user", "content": "Tell me a story."}])[1]
    choice = llm(prompt, max_tokens=8, temperature=0, logprobs=1)["choices"][0]
    found["completion"] = choice["text"]
    found["logprobs"] = choice["logprobs"]["token_logprobs"]
    found["several"] = len(llm(prompt, max_tokens=4, n=2, best_of=3, seed=1)["choices"])
    expected = llm.generate(prompt, 20)
    state = llm.get_state()
    llm.reset()
    n = llm.set_state(state)
    assert llm.generate(prompt, 20) == expected
    assert llm.engine.stats.n_reused > 5
    llm.kv_cache_seq_rm(0, 4, -1)
    assert llm.generate(prompt, 20) == expected
    assert llm.engine.stats.n_reused == 4
    llm.kv_cache_seq_rm(0, 4, 7)
    llm.kv_cache_seq_add(0, 7, -1, -3)
    assert llm.kv_cache_seq_pos_max(0) == n - 4
    assert llm.generate(prompt, 20) == expected
    a, b, c = llm.embed(["a fox", "a fox", "17 + 25"])
    alike = lambda x, y: sum(map(operator.mul, x, y))
    assert alike(a, b) > 0.999 and alike(a, c) < 0.9 and len(a) == 192
    found["embedding"] = a[:8]

    async def main():
        answers = await asyncio.gather(
            *(llm.create_chat_completion_async(SUM, temperature=0) for _ in range(8))
        )
        assert {content(answer) for answer in answers} == {"42"}
        task = asyncio.ensure_future(
            llm.generate_async("x", 10**6, context_policy="shift", temperature=1.0)
        )
        await asyncio.sleep(0.1)
        task.cancel()
        assert await asyncio.wait_for(llm.generate_async(prompt, 20), 60) == expected

    asyncio.run(main())
    assert "=" in llm.model.library.system_info
    assert llm.perf().n_generated > 0

with Llama(tiny, None, greedy, n_ctx=64, n_threads=1) as llm:
    plain = llm.generate("abc", 12)
    llm.load_lora(lora)
    found["lora"] = changed = llm.generate("abc", 12)
    assert changed != plain
    llm.reset()
    assert llm.generate("abc", 12) == changed
    llm.remove_lora(lora)
    assert llm.generate("abc", 12) == plain
    with Llama(tiny, None, greedy, n_ctx=64, n_threads=1, lora_path=lora) as born:
        assert born.generate("abc", 12) == changed
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def newest(child: Child, tiny_model: Path, lora: Path) -> dict[str, object]:
    return ask(child, NEWEST, tiny_model, lora)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("lora") / "lora.gguf", make_pairs())


def ask(child: Child, build: str, tiny_model: Path, lora: Path) -> dict[str, object]:
    done = child(CODE, model_path(), tiny_model, lora, LLAMA_CFFI_BUILD=build)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_newest_build(newest: dict[str, object]) -> None:
    assert newest["chat"] == "42"
    assert newest["thought"] == "17 + 25 = 30 + 12 = 42"
    assert newest["tools auto"] == newest["tools required"] == ["get_weather", '{"city": "Paris"}']
    assert (newest["grammar"], newest["parse"], newest["several"]) == ("yes", 42, 2)


@pytest.mark.parametrize("build", [OLD, MIDDLE])
def test_other_builds_give_the_same_answers(
    child: Child, newest: dict[str, object], tiny_model: Path, lora: Path, build: str
) -> None:
    found = ask(child, build, tiny_model, lora)
    for name, error in (("logprobs", 0.1), ("embedding", 0.02)):
        found[name] = pytest.approx(found[name], abs=error)
    assert newest == found
