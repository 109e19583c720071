"""Speculative decoding: the same answers in fewer steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_hybrid, write_recurrent, write_windowed
from support.rounding import EXACT
from support.tiny_gguf import write_tiny

from llama_cffi import (
    DraftModel,
    Engine,
    InferenceEngine,
    LlamaGrammar,
    Model,
    PromptLookup,
    Request,
    ValidationError,
    demo,
)
from llama_cffi.scheduler.speculative import Speculator

CONFIG: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, **EXACT}
TEXTS = [
    "A story about a cat.",
    "Repeat: the quick brown fox jumps over the lazy dog",
    "What is 17 + 25?",
    "The sun is",
    "Turn on the lamp in the kitchen.",
]
N = 60


@pytest.fixture(scope="module")
def alone(demo_f32: Path) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Return prompts and their greedy answers without speculative decoding."""
    with Engine(demo_f32, **CONFIG) as engine:
        prompts = [engine.tokenize(text) for text in TEXTS]
        prompts += [engine.format_prompt(text) for text in TEXTS]
        yield prompts, [engine.generate_tokens(p, N, temperature=0) for p in prompts]


class Wrong:
    """Draft tokens that are hardly ever right: the last token plus one."""

    n_draft = 4

    def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
        self.n_vocab = model.vocab.n_tokens

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        return [
            [(r.tokens[-1] + 1) % self.n_vocab] * n for r, n in zip(requests, lengths, strict=True)
        ]

    def forget(self, request: Request) -> None: ...
    def close(self) -> None: ...


DRAFTERS: list[Any] = [
    PromptLookup,
    lambda: PromptLookup(4, n_gram=1, n_gram_min=1),
    lambda: DraftModel(demo.model_path(), n_threads=1),
    lambda: DraftModel(demo.model_path(), 3, p_min=0.0, n_threads=1),
    Wrong,
]


@pytest.mark.parametrize("n_kv_tokens", [None, 1024])
@pytest.mark.parametrize("make", DRAFTERS)
def test_greedy_answers_stay_the_same(
    alone: Any, demo_f32: Path, make: Any, n_kv_tokens: int | None
) -> None:
    prompts, expected = alone
    with InferenceEngine(demo_f32, 4, draft=make(), n_kv_tokens=n_kv_tokens, **CONFIG) as engine:
        handles = [engine.submit(prompt, N, temperature=0) for prompt in prompts]
        for handle in handles:
            handle.result(60)
        assert [handle.request.generated_tokens for handle in handles] == expected
        n_drafted = sum(handle.stats.n_drafted for handle in handles)
        n_accepted = sum(handle.stats.n_accepted for handle in handles)
        assert n_drafted > 0
        assert n_accepted <= n_drafted
        cache = engine.cache.stats
        assert cache.n_free + cache.n_cached == cache.n_blocks
        if make is Wrong:
            # The rate drops, and few tokens are drafted from then on.
            assert n_drafted < 0.5 * sum(map(len, expected))


def test_the_model_as_its_own_draft_model_saves_steps(alone: Any, demo_f32: Path) -> None:
    # Each token of this answer leads by far. A draft past its end would not count as accepted.
    prompt, expected = alone[0][-1], alone[1][-1][:20]
    n_steps = {}
    for name, draft in (("none", None), ("self", DraftModel(demo.model_path(), n_threads=1))):
        with InferenceEngine(demo_f32, 1, draft=draft, **CONFIG) as engine:
            handle = engine.submit(prompt, 20, temperature=0)
            handle.result(60)
            assert handle.request.generated_tokens == expected
            n_steps[name] = engine.stats.n_steps
            if draft is not None:
                assert handle.stats.n_accepted == handle.stats.n_drafted > 0
    assert n_steps["self"] < n_steps["none"] / 2


def test_drafting_can_be_disabled_per_request(alone: Any, demo_f32: Path) -> None:
    prompts, expected = alone
    with InferenceEngine(demo_f32, 2, draft=PromptLookup(), **CONFIG) as engine:
        repeated = len(TEXTS) + 1
        handles = [engine.submit(prompts[repeated], N, temperature=0, n_draft=n) for n in (0, 1)]
        for handle in handles:
            handle.result(60)
            assert handle.request.generated_tokens == expected[repeated]
        assert handles[0].stats.n_drafted == 0
        assert handles[1].stats.n_drafted > 0
        with pytest.raises(ValidationError, match="n_draft"):
            engine.submit(prompts[0], n_draft=-1)


def test_structure_stops_and_penalties_with_drafts(demo_f32: Path) -> None:
    grammar = LlamaGrammar.from_json_schema(
        {"type": "array", "items": {"enum": ["a cat", "a dog"]}, "minItems": 4, "maxItems": 4}
    )
    options: list[dict[str, Any]] = [
        {"structured": grammar},
        {"stop": ["story", "e"]},
        {"repeat_penalty": 1.3},
        {"temperature": 0.9, "seed": 7},
        {"temperature": 0.9, "seed": 7, "structured": grammar},
    ]
    found = []
    for draft in (None, PromptLookup(6, 1, 1), DraftModel(demo.model_path(), n_threads=1)):
        with InferenceEngine(demo_f32, 3, draft=draft, **CONFIG) as engine:
            handles = [
                engine.submit("A story about a cat", 40, **{"temperature": 0, **o}) for o in options
            ]
            found.append([(h.result(60), h.stats.finish_reason) for h in handles])
    assert found[0] == found[1] == found[2]


def test_the_distribution_stays_the_same(tiny_model: Path) -> None:
    """Chi-square of two sampled tokens, 1,500 draws with and without drafts."""
    counts = []
    for draft in (None, DraftModel(tiny_model, 2, p_min=0.0, n_threads=1)):
        with InferenceEngine(tiny_model, 16, 64, n_threads=1, draft=draft, max_waiting=2000) as e:
            handles = [
                e.submit([5, 6, 7], 4, temperature=0.4, top_k=4, top_p=1.0, min_p=0.0, seed=i)
                for i in range(1500)
            ]
            for handle in handles:
                handle.result(60)
            counts.append(Counter(tuple(h.request.generated_tokens[1:3]) for h in handles))
            if draft is not None:
                assert sum(h.stats.n_accepted for h in handles) > 100
    both = [key for key in counts[0] | counts[1] if counts[0][key] + counts[1][key] >= 20]
    assert len(both) >= 4
    square = sum((counts[0][k] - counts[1][k]) ** 2 / (counts[0][k] + counts[1][k]) for k in both)
    assert square < len(both) + 5 * (2 * len(both)) ** 0.5


def test_memories_that_cannot_truncate_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    recurrent = write_recurrent(tmp_path / "recurrent.gguf")
    windowed = write_windowed(tmp_path / "windowed.gguf")
    hybrid = write_hybrid(tmp_path / "hybrid.gguf")
    for path in (recurrent, windowed, hybrid):
        with pytest.raises(ValidationError, match="remove rejected draft tokens"):
            InferenceEngine(path, 2, 128, draft=PromptLookup())
        with pytest.raises(ValidationError, match=r"remove rejected|different vocabulary"):
            InferenceEngine(tiny_model, 2, 128, draft=DraftModel(path))
    with pytest.raises(ValidationError, match="different vocabulary"):
        InferenceEngine(tiny_model, 2, 128, draft=DraftModel(demo.model_path()))


def test_a_draft_model_frees_sequences_of_preempted_requests(tiny_model: Path) -> None:
    drafter = DraftModel(tiny_model, 2, p_min=0.0, n_threads=1)
    with Model(tiny_model) as model:
        drafter.open(model, 2, 64)
        requests = [Request([5, 6, 7 + i]) for i in range(5)]
        first = drafter.draft(requests[:2], [2, 2])
        for pair in (requests[2:4], requests[3:], requests[:1]):  # none has ended
            assert [len(draft) for draft in drafter.draft(pair, [2] * len(pair))] == [2] * len(pair)
        assert drafter.draft(requests[:2], [2, 2]) == first
        drafter.close()


def test_arguments_are_checked() -> None:
    for wrong in ({"n_draft": 0}, {"n_draft": 65}, {"n_gram": 1}, {"n_gram_min": 0}):
        with pytest.raises(ValidationError, match="n_"):
            PromptLookup(**wrong)
    for values in ({"n_draft": 0}, {"p_min": 1.5}):
        with pytest.raises(ValidationError, match=r"n_draft|p_min"):
            DraftModel("x.gguf", **values)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_lookup_finds_the_latest_longest_match(tokens: list[int], n: int) -> None:
    lookup = PromptLookup(n_gram=3, n_gram_min=1)
    request = Request(tokens[:1])
    (found,) = lookup.draft([request], [n])
    for token in tokens[1:]:  # a growing answer
        request.tokens.append(token)
        (found,) = lookup.draft([request], [n])
    expected: list[int] = []
    for size in (3, 2, 1):
        ends = [e for e in range(size, len(tokens)) if tokens[e - size : e] == tokens[-size:]]
        if ends:
            expected = tokens[ends[-1] : ends[-1] + n]
            break
    assert found == expected
    lookup.forget(request)
    assert not lookup._seen


def test_a_drafter_that_cannot_open_is_closed(tmp_path: Path) -> None:
    closed = []

    class Bad(Wrong):
        def open(self, model: Model, n_parallel: int, n_ctx: int) -> None:
            raise ValidationError("no")

        def close(self) -> None:
            closed.append(True)

    with (
        Model(write_tiny(tmp_path / "m.gguf")) as model,
        pytest.raises(ValidationError, match="no"),
    ):
        Speculator(Bad(), model, 2, 64)
    assert closed


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_on_every_build(child: Child, build: str) -> None:
    code = """
        from llama_cffi import DraftModel, Engine, InferenceEngine, PromptLookup, demo

        path, exact = demo.model_path(), {"n_ctx": 512, "n_threads": 1}
        with Engine(path, **exact) as engine:
            prompt = engine.format_prompt("Turn on the lamp in the kitchen.")
            alone = engine.generate_tokens(prompt, 60, temperature=0)
        for draft in (PromptLookup(8, 1, 1), DraftModel(path, n_threads=1)):
            with InferenceEngine(path, 3, draft=draft, **exact) as engine:
                handles = [engine.submit(prompt, 60, temperature=0) for _ in range(3)]
                for handle in handles:
                    handle.result(60)
                    assert handle.request.generated_tokens == alone
                    assert handle.stats.n_accepted > 0
        print("same")
    """
    run = child(code, LLAMA_CFFI_BUILD=build)
    assert run.stdout.strip() == "same", run.stderr
