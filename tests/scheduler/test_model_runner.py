"""ModelRunner: batches that C refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.children import Child
from support.odd_models import write_recurrent

from llama_cffi import Engine, GenerationError, InferenceEngine, KvCacheFullError, Model, Request
from llama_cffi.binding import Batch, Context
from llama_cffi.demo import model_path

PROMPTS = [[40 + i, 50 + 2 * i, *range(60, 75 + i)] for i in range(6)]
OPTIONS: dict[str, Any] = {"temperature": 0, "logit_bias": dict.fromkeys(range(5), -100.0)}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(model_path()) as model:
        yield model


@pytest.fixture(scope="module")
def expected(model: Model) -> list[str]:
    with InferenceEngine(model, 1, 256, n_threads=1, flash_attn=False) as engine:
        return [engine.generate(prompt, 12, **OPTIONS) for prompt in PROMPTS]


Decode = Callable[[Context, Batch], None]


def failing(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[Batch], Exception | None]
) -> list[int]:
    """Let `Context.decode` refuse some batches; return the sizes of all of them."""
    decode: Decode = Context.decode
    sizes: list[int] = []

    def refuse(context: Context, batch: Batch) -> None:
        sizes.append(len(batch))
        if (error := fails(batch)) is not None:
            raise error
        decode(context, batch)

    monkeypatch.setattr(Context, "decode", refuse)
    return sizes


def run(model: Model, **options: Any) -> tuple[list[Any], InferenceEngine]:
    with InferenceEngine(
        model, 6, 256, n_threads=1, flash_attn=False, start=False, **options
    ) as engine:
        handles = [engine.submit(prompt, 12, **OPTIONS) for prompt in PROMPTS]
        while engine.step():
            pass
    return handles, engine


def test_batches_without_a_slot_are_halved(
    model: Model, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = KvCacheFullError("no slot")
    sizes = failing(monkeypatch, lambda batch: full if len(batch) > 5 else None)
    handles, _ = run(model)
    assert [handle.result() for handle in handles] == expected
    assert max(sizes) > 50  # the first attempt
    assert 3 in sizes  # half of 7, which is too many


def test_no_slot_for_one_token_fails_that_request(
    model: Model, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = KvCacheFullError("no slot")

    def fails(batch: Batch) -> Exception | None:
        return full if 2 in batch.starts() else None  # sequence 2

    failing(monkeypatch, fails)
    handles, engine = run(model)
    failed = [i for i, handle in enumerate(handles) if handle.request.error is not None]
    assert len(failed) == 1
    with pytest.raises(KvCacheFullError):
        handles[failed[0]].result()
    assert [h.text for i, h in enumerate(handles) if i not in failed] == [
        text for i, text in enumerate(expected) if i not in failed
    ]
    assert engine.stats.n_failed == 1


def test_another_error_fails_only_the_request_that_causes_it(
    model: Model, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda b: GenerationError("broken") if 3 in b.starts() else None)
    handles, engine = run(model)
    failed = [i for i, handle in enumerate(handles) if handle.request.error is not None]
    assert len(failed) == engine.stats.n_failed == 1
    assert [h.text for i, h in enumerate(handles) if i not in failed] == [
        text for i, text in enumerate(expected) if i not in failed
    ]


def test_occasional_failures_change_nothing(
    model: Model, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [0]

    def fails(batch: Batch) -> Exception | None:
        counts[0] += 1
        return KvCacheFullError("no slot") if counts[0] % 3 == 0 else None

    failing(monkeypatch, fails)
    for layout in (
        {},
        {"n_kv_tokens": 512, "block_size": 16},
        {"n_batch": 16, "n_prefill_chunk": 4},
    ):
        handles, _ = run(model, **layout)  # type: ignore[arg-type]
        if "n_kv_tokens" not in layout:  # there 8-bit weights may round differently
            assert [handle.result() for handle in handles] == expected
        assert all(handle.stats.n_generated == 12 for handle in handles)


def test_lost_recurrent_sequences_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed decode costs a recurrent model the whole sequence."""
    with Model(write_recurrent(tmp_path / "recurrent.gguf")) as model:
        with Engine(model, 256, n_threads=1, safety=0) as alone:
            tokens = [alone.generate_tokens(p, 12, **OPTIONS) for p in PROMPTS]
        decode: Decode = Context.decode
        counts = [0]

        def fail_after(context: Context, batch: Batch) -> None:
            decode(context, batch)
            counts[0] += 1
            if counts[0] % 4 == 0 and len(batch.starts()) > 1:  # alone, it would be at fault
                for seq_id in batch.starts():
                    context.memory.seq_rm(seq_id)
                raise GenerationError("sequences are empty now")

        monkeypatch.setattr(Context, "decode", fail_after)
        handles, engine = run(model)
        assert [handle.request.generated_tokens for handle in handles] == tokens
        assert engine.stats.n_preemptions > 0


def test_batches_have_the_positions_of_the_request(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are relative, so that shifted ones give the same answer."""
    monkeypatch.setattr(Request, "positions", lambda _, start, end: range(start + 9, end + 9))
    starts: list[int] = []
    failing(monkeypatch, lambda batch: starts.extend(batch.starts().values()))
    prompt = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
    with InferenceEngine(model, 2, 256, n_threads=1) as engine:
        assert engine.generate(prompt, 8, temperature=0) == "42"
    assert min(starts) == 9


# Old builds need a slot in one piece, which gaps in the cache prevent.
FRAGMENTED = """
    import random, sys
    from llama_cffi import InferenceEngine
    from llama_cffi.demo import model_path
    rng = random.Random(1)
    layout = {"n_kv_tokens": 640, "block_size": 16}
    with InferenceEngine(model_path(), 8, 256, **layout, n_threads=1) as engine:
        handles = []
        for i in range(60):
            prompt = [rng.randrange(30, 200) for _ in range(rng.choice((3, 20, 90, 150)))]
            handles.append(engine.submit(prompt, rng.randrange(1, 30), temperature=0))
            if i % 5 == 4:
                handles[-2].cancel()
        states = [handle.future.exception(60) and handle.request.state.value for handle in handles]
        assert set(states) <= {None, "cancelled"}, states
        assert states.count(None) >= 48, states
        assert engine.stats.n_failed == 0
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
def test_fragmented_caches_serve_every_request(child: Child, build: str) -> None:
    result = child(FRAGMENTED, LLAMA_CFFI_BUILD=build)
    assert (result.returncode, result.stderr) == (0, "")
