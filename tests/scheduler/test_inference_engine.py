"""InferenceEngine: every request gets the answer that it gets alone, with any options."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_hybrid, write_recurrent, write_windowed
from support.rounding import EXACT
from support.tiny_gguf import write_tiny

from llama_cffi import (
    ContextOverflowError,
    Engine,
    Handle,
    InferenceEngine,
    LlamaGrammar,
    Model,
    ModelLoadError,
    QueueFullError,
    RequestHandle,
    RequestState,
    SamplingParams,
    ValidationError,
)
from llama_cffi.api.thinking import ThinkingBudget, ThinkMarkers
from llama_cffi.generation.request_scope import RequestScope

FOLDER = Path(__file__).parents[1] / "support"
RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], None, '__main__')"


def ask(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(demo_f32: Path) -> Iterator[Model]:
    with Model(demo_f32) as model:
        yield model


@pytest.fixture
def engine(model: Model) -> Iterator[InferenceEngine]:
    with InferenceEngine(model, 4, 512, n_threads=1) as engine:
        yield engine


# The oldest builds round keys and values, and lack sliding windows in models of two layers.
@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_64_concurrent_answers_equal_those_alone(
    child: Child, tmp_path: Path, demo_f32: Path, build: str
) -> None:
    models = [demo_f32, write_tiny(tmp_path / "tiny.gguf", n_ctx=512)]
    models.append(write_recurrent(tmp_path / "recurrent.gguf"))
    if build != OLD:
        models.append(write_windowed(tmp_path / "windowed.gguf"))
        models.append(write_hybrid(tmp_path / "hybrid.gguf"))
    result = child(RUN, FOLDER / "answers.py", 64, *models, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) == (6 if build == OLD else 15)
    assert [line for line in lines if not line.endswith("differ: []")] == []


def test_a_seed_gives_the_same_text_beside_other_requests(model: Model) -> None:
    with InferenceEngine(model, 4, 256, n_threads=1, **EXACT) as engine:

        def text() -> str:
            return engine.generate(ask("Tell me a story."), 30, temperature=1.5, seed=3)

        first = text()
        others = [engine.submit(ask(f"What is {i} + 3?"), 20, temperature=1.0) for i in range(6)]
        assert text() == first
        assert all(isinstance(other.result(), str) for other in others)
        assert others[0].stats.seed != others[1].stats.seed


def test_each_request_has_its_own_options(engine: InferenceEngine) -> None:
    colour = LlamaGrammar.from_choices(["red", "green", "blue"])
    wanted: list[tuple[dict[str, Any], Any]] = [
        ({"grammar": 'root ::= "yes" | "no"'}, lambda text: text in ("yes", "no")),
        ({"structured": colour}, lambda text: text in ("red", "green", "blue")),
        (
            {"logit_bias": {t: -100.0 for t in range(24, 34)}},
            lambda text: not any("0" <= c <= "9" for c in text),
        ),
        ({"stop": ["2"]}, lambda text: text == "4"),
        ({"sampling": SamplingParams(temperature=0)}, lambda text: text == "42"),
        ({"suppress_think": True}, lambda text: text == "42"),
    ]
    prompt = ask("What is 17 + 25?")
    handles = [
        engine.submit(prompt, 12, **{"temperature": 0} | o if "sampling" not in o else o)
        for o, _ in wanted
    ]  # type: ignore[arg-type]
    for handle, (options, holds) in zip(handles, wanted, strict=True):
        assert holds(handle.result()), (options, handle.text)
        assert handle.request.state is RequestState.FINISHED
    assert handles[3].stats.stop == "2"
    assert handles[3].stats.finish_reason == "stop"
    assert handles[4].stats.finish_reason == "eog"
    assert handles[1].stats.n_forced > 0


def test_thinking_is_limited_per_request(engine: InferenceEngine) -> None:
    vocab, marks = engine.model.vocab, ThinkMarkers("<think>\n", "\n</think>\n\n", "")

    def limit() -> ThinkingBudget:
        return ThinkingBudget(vocab, ("<think>", "</think>"), marks, False, 3)

    prompt = ask("What is 17 + 25? /think")
    free = engine.submit(prompt, 60, temperature=0, special=True)
    short = engine.submit(prompt, 60, temperature=0, special=True, reasoning_limit=limit)
    assert free.result().endswith("42")
    assert short.result().startswith("<think>")
    thoughts = [text.split("</think>")[0] for text in (free.text, short.text)]
    assert len(thoughts[1]) < len(thoughts[0])
    assert short.stats.n_forced > 0


def test_a_long_answer_ends_with_the_context_or_its_own_limit(model: Model) -> None:
    bias = {vocab: -100.0 for vocab in range(5)}  # it does not end by itself
    with InferenceEngine(model, 2, 256, n_threads=1) as engine:
        n = engine.n_ctx
        long = engine.submit([30] * 100, 1000, temperature=0, logit_bias=bias)
        short = engine.submit([30] * 100, 5, temperature=0, logit_bias=bias)
        last = engine.submit([30] * (n - 1), 1000, temperature=0, logit_bias=bias)
        assert (short.result(), short.stats.finish_reason, short.stats.n_generated)[1:] == (
            "length",
            5,
        )
        assert long.result()
        assert (long.stats.finish_reason, long.stats.n_generated) == ("context", n - 100)
        assert (last.result() is not None, last.stats.n_generated) == (True, 1)
        for prompt in ([30] * n, [30] * 5000):
            with pytest.raises(ContextOverflowError, match="no room"):
                engine.submit(prompt)
        fitted = engine.submit([30] * 400, 10, context_policy="truncate_left", temperature=0)
        fitted.result()
        assert fitted.stats.n_truncated == 400 - (n - 10)


def test_characters_of_several_tokens_are_not_split(model: Model) -> None:
    text = "añ€🙂" * 5
    with InferenceEngine(model, 4, 256, n_threads=1) as engine:
        grammar = f'root ::= "{text}"'
        handles = [engine.submit("say", 200, grammar=grammar, listens=True) for _ in range(6)]
        for handle in handles:
            pieces = list(handle)
            assert "".join(pieces) == text == handle.result()
            assert "\ufffd" not in "".join(pieces)
            assert len(pieces) > 5


def test_prefixes_are_evaluated_once(model: Model) -> None:
    """50 users with the same system prompt of 1,000 tokens, submitted together."""
    system = [40 + i % 200 for i in range(1000)]
    with InferenceEngine(model, 8, 1200, n_kv_tokens=6000, n_threads=1, n_batch=256) as engine:
        users = [[*system, 50 + i, 60] for i in range(50)]
        handles = [engine.submit(user, 4, temperature=0) for user in users]
        for handle in handles:
            handle.result()
        reused = [handle.stats.n_reused for handle in handles]
        assert reused[0] == 0
        assert min(reused[1:]) >= 1000 - engine.cache.block_size
        decoded = engine.stats.n_decoded
        assert decoded < 1000 + 50 * (2 + engine.cache.block_size + 5)
        before = handles[7].text
        engine.cache_clear()
        again = engine.submit(users[7], 4, temperature=0)
        again.result()
        assert again.stats.n_reused == 0
        assert before == again.text


@pytest.mark.behaviour(
    "completion: requests that fit one by one all finish when together they do not"
)
def test_requests_are_preempted_when_the_cache_is_full(model: Model) -> None:
    bias = {token: -100.0 for token in range(5)}
    prompts = [[30 + i, 40 + 2 * i, 50] for i in range(8)]
    options: dict[str, Any] = {"temperature": 0, "logit_bias": bias, "repeat_penalty": 1.1}
    settings: dict[str, Any] = {"n_threads": 1, **EXACT}
    with Engine(model, 256, safety=0, **settings) as alone:
        expected = [list(alone.steps(p, 60, json_stop=(), **options)) for p in prompts]
    with InferenceEngine(model, 8, 256, n_kv_tokens=256, block_size=8, **settings) as engine:
        handles = [engine.submit(p, 60, listens=True, **options) for p in prompts]
        found = [list(handle.steps()) for handle in handles]
        stats = engine.stats
    assert stats.n_preemptions > 0
    assert sum(handle.stats.n_preempted for handle in handles) == stats.n_preemptions
    assert [[s.token for s in f] for f in found] == [[s.token for s in e] for e in expected]
    assert [len(f) for f in found] == [60] * 8


def test_higher_priorities_go_first(model: Model) -> None:
    order: list[str] = []
    with InferenceEngine(model, 1, 256, n_threads=1, start=False) as engine:
        for name, priority in (("low", -1), ("middle", 0), ("high", 5), ("middle 2", 0)):
            handle = engine.submit(ask("What is 1 + 1?"), 4, priority=priority)
            handle.future.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        while engine.step():
            pass
    assert order == ["high", "middle", "middle 2", "low"]


def test_adapters_apply_to_one_request(tmp_path: Path) -> None:
    from support.loras import make_pairs, write_lora, write_merged

    pairs = make_pairs()
    lora = str(write_lora(tmp_path / "a.gguf", pairs))
    plain, merged = (
        write_tiny(tmp_path / "plain.gguf"),
        write_merged(tmp_path / "m.gguf", pairs, 0.7),
    )
    prompt, expected = [5, 6, 7, 8] * 10, []
    for path in (plain, merged):
        with Engine(path, 256, n_threads=1) as alone:
            expected.append(alone.detokenize(alone.generate_tokens(prompt, 12, temperature=0)))
            with (
                RequestScope(adapters={lora: 0.7}),
                pytest.raises(ValidationError, match="adapters"),
            ):
                alone.generate_tokens(prompt, 12)
    assert expected[0] != expected[1]
    with InferenceEngine(plain, 4, 128, n_threads=1) as engine:
        given: list[dict[str, float] | None] = [None, {lora: 0.7}] * 6
        handles = [engine.submit(prompt, 12, temperature=0, adapters=a) for a in given]
        assert [handle.result() for handle in handles] == expected * 6
        # Neither a missing file nor an invalid scale affects the others.
        missing = engine.submit(prompt, 4, adapters={str(tmp_path / "none.gguf"): 1.0})
        good = engine.submit(prompt, 12, temperature=0)
        with pytest.raises(ModelLoadError, match=r"none\.gguf"):
            missing.result()
        assert good.result() == expected[0]
        for scale in (float("nan"), "x", float("inf")):
            with pytest.raises(ValidationError, match="scale"):
                engine.submit(prompt, 4, adapters={lora: scale})  # type: ignore[dict-item]
        # Those of the engine are for requests without any.
        engine.set_adapters({lora: 0.7})
        assert engine.adapters == {lora: 0.7}
        none: list[dict[str, float]] = [{}, {lora: 0.0}]
        assert engine.submit(prompt, 12, temperature=0).result() == expected[1]
        for own in none:
            assert engine.submit(prompt, 12, temperature=0, adapters=own).result() == expected[0]
            with RequestScope(adapters=own):
                assert engine.submit(prompt, 12, temperature=0).result() == expected[0]
        with pytest.raises(ModelLoadError, match=r"none\.gguf"):
            engine.set_adapters({str(tmp_path / "none.gguf"): 1.0})
        assert engine.adapters == {lora: 0.7}
    with InferenceEngine(plain, 2, 128, n_threads=1, adapters={lora: 0.7}) as engine:
        assert engine.submit(prompt, 12, temperature=0).result() == expected[1]


def test_two_engines_share_a_model(model: Model) -> None:
    with InferenceEngine(model, 2, 256, n_threads=1) as a, InferenceEngine(model, 3, 256) as b:
        handles = [
            e.submit(ask(f"What is {i} + 2?"), 6, temperature=0) for i in range(8) for e in (a, b)
        ]
        texts = [handle.result() for handle in handles]
        assert texts[::2] == texts[1::2]
    assert not model.closed


def test_steps_without_a_thread(model: Model) -> None:
    engine = InferenceEngine(model, 2, 256, n_threads=1, start=False)
    handle = engine.submit(ask("What is 17 + 25?"), 8, temperature=0)
    assert engine.active_requests == [handle.request]
    n = 0
    while engine.step():
        n += 1
    assert (handle.result(), handle.done, engine.active_requests) == ("42", True, [])
    assert engine.stats.n_steps >= n
    assert not engine.step()
    late = engine.submit(ask("What is 1 + 2?"), 8, temperature=0)
    engine.shutdown()  # drains
    assert late.result() == "3"
    engine.shutdown()
    assert engine.context.closed


def test_warm_up_and_statistics(engine: InferenceEngine) -> None:
    engine.warm_up()
    assert engine.stats.n_finished == 1
    engine.generate(ask("What is 2 + 2?"), 4)
    stats, timeline = engine.stats, engine.timeline
    assert stats.n_steps == len(timeline)
    assert stats.n_decoded == sum(step.n_tokens for step in timeline)
    assert stats.n_generated == sum(step.n_generated for step in timeline)
    assert 0 < stats.total_s.p50 <= stats.total_s.p95 <= stats.total_s.p99
    assert stats.cache.n_free + stats.cache.n_cached == stats.cache.n_blocks


@pytest.mark.parametrize(
    "options",
    [
        {"n_parallel": 0}, {"n_parallel": 257}, {"n_ctx": -1}, {"n_batch": 0},
        {"n_prefill_chunk": 0}, {"n_kv_tokens": 10}, {"block_size": 0}, {"max_waiting": 0},
        {"ageing_s": 0.0},
        {"context_policy": "shift"}, {"context_policy": "x"}, {"n_parallel": 8, "n_batch": 4},
        {"n_parallel": 1.5}, {"n_ctx": "many"}, {"ageing_s": float("nan")}, {"nonsense": 1},
    ],
)  # fmt: skip
def test_invalid_arguments_of_an_engine(model: Model, options: dict[str, Any]) -> None:
    gc.collect()  # left by earlier tests
    before = len([c for c in model._children if not c.closed])
    with pytest.raises((ValidationError, TypeError)):
        InferenceEngine(model, **{"n_ctx": 256, "n_threads": 1, **options})
    gc.collect()
    assert len([c for c in model._children if not c.closed]) == before


def test_former_names_of_arguments(model: Model) -> None:
    former: dict[str, Any] = {"n_cells": 512, "n_chunk": 16}
    with pytest.warns(DeprecationWarning, match="is now called") as caught:
        engine = InferenceEngine(model, 2, 128, n_threads=1, **former)
    with engine:
        assert engine.context.kv_unified
        assert (engine.context.n_ctx, engine.scheduler.n_prefill_chunk) == (512, 16)
    assert len(caught) == 2
    assert Handle is RequestHandle


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": []}, {"prompt": [-1]}, {"prompt": [10**6]}, {"max_tokens": 0},
        {"max_tokens": 1.5}, {"priority": "x"}, {"priority": 0.5}, {"callback": 3},
        {"timeout_s": -1},
        {"timeout_s": float("nan")}, {"temperature": -1}, {"nonsense": 1}, {"n_draft": -1},
        {"context_policy": "shift"}, {"stop": [""]}, {"logprobs": -1}, {"sampling": 5},
    ],
)  # fmt: skip
def test_invalid_arguments_of_submit(engine: InferenceEngine, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        engine.submit(**{"prompt": [65], **options})
    assert engine.active_requests == []
    assert engine.generate(ask("What is 17 + 25?"), 8, temperature=0) == "42"


def test_a_full_queue(model: Model) -> None:
    engine = InferenceEngine(model, 2, 256, n_threads=1, max_waiting=3, start=False)
    handles = [engine.submit("x", 2) for _ in range(5)]  # two of them can run
    with pytest.raises(QueueFullError, match="max_waiting"):
        engine.submit("x", 2)
    with pytest.raises(QueueFullError, match="deadline"):
        engine.submit("x", 2, wait=True, timeout_s=0.01)
    engine.start()
    more = [engine.submit("x", 2, wait=True) for _ in range(10)]
    assert all(isinstance(handle.result(), str) for handle in handles + more)
    engine.shutdown()


def test_idle_is_refused(engine: InferenceEngine) -> None:
    with pytest.raises(ValidationError, match="share this context"), engine.idle():
        pass


def test_cache_prompt_false_decodes_the_whole_prompt(model: Model) -> None:
    with InferenceEngine(model, 2, 512, n_threads=1) as engine:
        prompt = ask("Tell me a long story. " * 20)
        reused = []
        for cache_prompt in (True, True, False):
            handle = engine.submit(prompt, 4, temperature=0, cache_prompt=cache_prompt)
            handle.result()
            reused.append(handle.stats.n_reused)
        n_prompt = handle.stats.n_prompt
        assert reused == [0, n_prompt - 1, 0]
        # Two at once: the second does not wait for the first one's prefix.
        both = [engine.submit(prompt, 4, temperature=0, cache_prompt=False) for _ in range(2)]
        assert len({handle.result() for handle in both}) == 1
        assert [handle.stats.n_reused for handle in both] == [0, 0]
