"""Tool calling end to end with held-out requests; `nox -s tools` has more of them."""

from __future__ import annotations

import dataclasses
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_cffi import Llama
from llama_cffi.chat.formats import FORMATS
from llama_cffi.demo import model_path

# tools/ is not part of the package. Last, so that the installed package precedes the checkout.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools import tool_calls
from tools.train_demo.split import is_heldout
from tools.train_demo.template import to_json

PER_KIND = 20
LEAST = 0.9


@pytest.fixture(scope="module")
def variants() -> Iterator[dict[str, tool_calls.Variant]]:
    with Llama(model_path(), n_ctx=tool_calls.N_CTX, n_threads=1, n_gpu_layers=0) as llm:
        yield {variant.name: variant for variant in tool_calls.measure(llm, PER_KIND, seed=5)}


@pytest.fixture(scope="module")
def demo() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=1024, n_threads=1) as llm:
        yield llm


@pytest.mark.parametrize("stream", ["", ", streamed"])
@pytest.mark.parametrize(
    "variant",
    [
        *(f"{kind}, {how}" for kind in tool_calls.OFFERED for how in ("auto", "required", "named")),
        "tool_answer, auto",
        "tool_plain, auto",
    ],
)
def test_tool_and_arguments_are_right(
    variants: dict[str, tool_calls.Variant], variant: str, stream: str
) -> None:
    found = variants[variant + stream]
    assert found.n >= PER_KIND // tool_calls.NAMED_EVERY
    assert found.accuracy >= LEAST, found.wrong


@pytest.mark.parametrize("kind", tool_calls.OFFERED)
def test_requests_are_held_out(kind: str) -> None:
    for request in tool_calls.requests(kind, 50, seed=6):
        assert len(request.tools) in tool_calls.OFFERED[kind]
        name, arguments = request.calls[0]
        key = f"tool:{name}:{to_json(arguments)}"
        if len(request.calls) == 2:
            key += f":{next(iter(request.calls[1][1].values()))}"
        assert is_heldout(key)


def test_wrong_answers_are_counted() -> None:
    (request,) = tool_calls.requests("tool_call", 1, seed=7)
    name, arguments = request.calls[0]

    def judged(
        name: str, arguments: str, reason: str = "tool_calls", times: int = 1
    ) -> tuple[int, int, int]:
        call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
        variant = tool_calls.Variant("")
        answer = tool_calls.Answer({"content": None, "tool_calls": [call] * times}, reason)
        variant.count(request, request.calls, answer)
        return variant.tool, variant.arguments, variant.both

    right = to_json(arguments)
    assert judged(name, right) == (1, 1, 1)
    assert judged("other", right) == (0, 1, 0)
    assert judged(name, "{}") == (1, 0, 0)
    assert judged(name, right[:-1]) == (1, 0, 0)
    assert judged(name, right, "stop") == (1, 1, 0)
    assert judged(name, right, times=2) == (0, 0, 0)


def test_chunks_are_merged_however_they_are_split() -> None:
    texts = ['{"city"', ': "Rome"}']
    rng = random.Random(0)
    parts = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        *({"index": 0, "function": {"arguments": text}} for text in texts),
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    chunks = []
    while parts:
        together = [parts.pop(0) for _ in range(min(len(parts), rng.randrange(1, 3)))]
        chunks.append({"choices": [{"delta": {"tool_calls": together}, "finish_reason": None}]})
    chunks.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    answer = tool_calls.collect(chunks)
    assert answer.calls == [("f", {"city": "Rome"}), ("g", {})]
    assert answer.finish_reason == "tool_calls"
    assert [call["id"] for call in answer.message["tool_calls"]] == ["a", "b"]


CITY = {"type": "string", "enum": ["Paris", "Rome"]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": CITY},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("look_up", "forecast")
]
NAMED = {"type": "function", "function": {"name": "forecast"}}


@pytest.mark.parametrize(
    "name", ["hermes", "llama3", "generic", "mistral", "deepseek-v3.1", "glm", "harmony", "gemma4"]
)
def test_how_many_calls_a_choice_gives(demo: Llama, name: str) -> None:
    """A model that never ends by itself: a named call is one, `required` is one or more."""
    demo.renderer.family = dataclasses.replace(
        demo.chat.family, tool_format=FORMATS[name], stops=()
    )
    never_ends = {token: float("-inf") for token in demo.model.vocab.eog_tokens}
    counts: dict[tuple[str, bool], int] = {}
    for what, choice, parallel in (
        ("named", NAMED, None),
        ("named, parallel", NAMED, True),
        ("required, not parallel", "required", False),
        ("required", "required", None),
    ):
        for stream, seed in itertools.product((False, True), range(6)):
            # The most probable answer, then any, until one has two calls.
            if counts.get((what, stream), 0) > 1 or (seed and what != "required"):
                continue
            answer = demo.create_chat_completion(
                [{"role": "user", "content": "x"}],
                tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel, stream=stream,
                logit_bias=never_ends, max_tokens=200, seed=seed,
                temperature=100.0 if seed else 0.0, top_k=0, top_p=1.0, min_p=0.0,
            )  # fmt: skip
            if stream:
                parts = [p for c in answer for p in c["choices"][0]["delta"].get("tool_calls", ())]
                named = [part["function"]["name"] for part in parts if "id" in part]
            else:
                calls = answer["choices"][0]["message"].get("tool_calls", [])
                named = [call["function"]["name"] for call in calls]
            if choice == NAMED:
                assert {*named} == {"forecast"}
            counts[what, stream] = max(len(named), counts.get((what, stream), 0))
    for stream in (False, True):
        assert counts["named", stream] == counts["named, parallel", stream] == 1
        assert counts["required, not parallel", stream] == 1
        assert (counts["required", stream] > 1) == FORMATS[name].is_parallel
