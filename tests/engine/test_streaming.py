"""Callbacks, flush limits, streams, threads, prefix caching, statistics, environment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.children import Child

from llama_cffi import Engine, Model, SamplingParams, ValidationError
from llama_cffi.generation.stats import GenerationStats

TEXT = "añb€c🙂d" * 3
GRAMMAR = f'root ::= "{TEXT}"'
N_TOKENS = len(TEXT.encode())  # the tiny model has one token per byte


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        yield engine


def test_callback_gets_the_bytes(engine: Engine) -> None:
    chunks: list[bytes] = []
    result = engine.generate("x", grammar=GRAMMAR, callback=chunks.append)
    assert result == b"".join(chunks).decode() == TEXT
    assert all(type(chunk) is bytes and chunk for chunk in chunks)
    assert len(chunks) == N_TOKENS  # one per token, even inside characters
    assert engine.generate("x", grammar=GRAMMAR) == TEXT


@pytest.mark.parametrize(
    ("names", "values", "sizes"),
    [
        (("FLUSH", "TOKFLUSH", "MS_FLUSH"), (10, 0, 0), {10}),
        (("FLUSH", "TOKFLUSH", "MS_FLUSH"), (0, 7, 0), {7}),
        (("FLUSH", "TOKFLUSH", "MS_FLUSH"), (5, 7, 0), {5}),
        (("FLUSH", "TOKFLUSH", "MS_FLUSH"), (0, 0, 0), {N_TOKENS}),
        (("FLUSH", "TOKFLUSH", "MS_FLUSH"), (0, 0, 3_600_000), {N_TOKENS}),
    ],
)
@pytest.mark.parametrize("by", ["LLAMA_CFFI_", "POLARIS_", "argument"])
def test_flush_limits(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    values: tuple[int, ...],
    sizes: set[int],
    by: str,
) -> None:
    options: dict[str, Any] = {}
    if by == "argument":
        options = dict(zip(("flush_bytes", "flush_tokens", "flush_ms"), values, strict=True))
    with Engine(tiny_model, n_ctx=128, n_threads=1, **options) as engine:
        if by != "argument":
            for name, value in zip(names, values, strict=True):
                monkeypatch.setenv(by + name, str(value))
        chunks: list[bytes] = []
        engine.generate("x", grammar=GRAMMAR, callback=chunks.append)
        assert b"".join(chunks) == TEXT.encode()
        assert {len(chunk) for chunk in chunks[:-1]} <= sizes
        assert len(chunks[-1]) <= max(sizes)


def test_flush_by_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FLUSH", "0"), ("TOKFLUSH", "0"), ("MS_FLUSH", "1")):
        monkeypatch.setenv(f"LLAMA_CFFI_{name}", value)
    chunks: list[bytes] = []
    engine.generate(
        "x", max_tokens=200, seed=1, logit_bias={256: -99, 258: -99}, callback=chunks.append
    )
    assert len(chunks) > 1


@pytest.mark.parametrize("error", [LookupError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_exceptions_in_callbacks_reach_the_caller(engine: Engine, error: BaseException) -> None:
    seen: list[bytes] = []

    def fail(data: bytes) -> None:
        seen.append(data)
        if len(seen) == 4:
            raise error

    with pytest.raises(type(error)) as e:
        engine.generate("x", grammar=GRAMMAR, callback=fail)
    assert e.value is error
    assert len(seen) == 4
    assert engine.generate("x", grammar=GRAMMAR) == TEXT


def test_callback_must_be_callable(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="callback"):
        engine.generate("x", callback=3)  # type: ignore[arg-type]


def test_callback_cannot_generate_with_its_own_engine(engine: Engine) -> None:
    calls: dict[str, Any] = {
        "generate": lambda: engine.generate("y"),
        "stream": lambda: next(engine.stream("y")),
        "tokens": lambda: engine.generate_tokens([1]),
    }
    for call in calls.values():
        with pytest.raises(ValidationError, match="in a callback of its generation"):
            engine.generate("x", grammar=GRAMMAR, callback=lambda _data, call=call: call())
    lengths: list[int] = []
    # Tokenizing does not need the lock.
    engine.generate(
        "x", grammar=GRAMMAR, callback=lambda d: lengths.append(len(engine.tokenize("ab")))
    )
    assert set(lengths) == {2}


def test_callback_can_use_another_engine(engine: Engine, tiny_model: Path) -> None:
    with Engine(engine.model, n_ctx=64, n_threads=1) as other:
        texts: list[str] = []

        def ask(_data: bytes) -> None:
            texts.append(other.generate("y", grammar='root ::= "z"'))

        assert engine.generate("x", grammar=GRAMMAR, callback=ask) == TEXT
        assert texts == ["z"] * N_TOKENS
    assert not engine.model.closed  # the other engine does not own it


def test_close_in_a_callback(tiny_model: Path) -> None:
    engine = Engine(tiny_model, n_ctx=64, n_threads=1)
    with pytest.raises(ValidationError, match="closed"):
        engine.generate("x", grammar=GRAMMAR, callback=lambda _: engine.close(), skip_forced=False)
    assert engine.model.closed


def test_stream_yields_whole_characters(engine: Engine) -> None:
    pieces = list(engine.stream("x", grammar=GRAMMAR))
    assert "".join(pieces) == TEXT
    assert len(pieces) == len(TEXT)
    assert "\ufffd" not in "".join(pieces)
    cut = "".join(engine.stream("x", max_tokens=2, grammar=GRAMMAR))
    assert cut == "a\ufffd"  # the first byte of ñ


def test_chat(engine: Engine) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hé"}]
    options: dict[str, Any] = {"temperature": 1.0, "seed": 4}
    expected = engine.generate("hé", "s", 20, 1.0, seed=4)
    chunks: list[bytes] = []
    assert engine.generate_chat(messages, 20, callback=chunks.append, **options) == expected
    assert b"".join(chunks).decode("utf-8", "replace") == expected
    assert "".join(engine.stream_chat(messages, 20, **options)) == expected
    assert engine.format_chat(messages) == engine.format_prompt("hé", "s")
    for wrong in ([{"role": "user"}], [3], "hello"):
        with pytest.raises(ValidationError, match="message"):
            engine.generate_chat(wrong)  # type: ignore[arg-type]


def test_sampling_arguments(engine: Engine) -> None:
    params = SamplingParams(temperature=1.3, seed=9, repeat_penalty=1.0, top_p=0.9)
    whole = engine.generate("x", max_tokens=20, sampling=params)
    assert whole == engine.generate("x", "", 20, 1.3, repeat_penalty=1.0, seed=9)
    assert engine.stats.seed == 9
    assert engine.generate_tokens([1], 3, sampling=SamplingParams(temperature=0)) == (
        engine.generate_tokens([1], 3, temperature=0)
    )
    assert engine.stats.seed is None
    with pytest.raises(ValidationError, match="temprature"):
        engine.generate("x", temprature=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="SamplingParams"):
        engine.generate("x", sampling={"top_k": 1})  # type: ignore[typeddict-item]


def test_eight_engines_in_eight_threads(tiny_model: Path) -> None:
    """Engines that share a model give the same text as one alone."""
    options: dict[str, Any] = {"temperature": 1.5, "seed": 7, "top_k": 0}
    with Model(tiny_model) as model:
        engines = [Engine(model, n_ctx=128, n_threads=1) for _ in range(8)]
        expected = engines[0].generate("x", max_tokens=40, **options)
        answers: list[str] = []

        def run(engine: Engine) -> None:
            for _ in range(3):
                answers.append(engine.generate("x", max_tokens=40, **options))

        threads = [threading.Thread(target=run, args=(engine,)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == [expected] * 24
        for engine in engines:
            engine.close()
        assert not model.closed


def test_other_threads_run_while_c_computes(child: Child, tmp_path: Path) -> None:
    """Decoding releases the GIL: a counter advances during a prefill."""
    from support.tiny_gguf import write_tiny

    path = write_tiny(tmp_path / "wide.gguf", n_layer=8, n_embd=768, n_ctx=1024)
    code = """
        import sys, threading, time
        from llama_cffi import Batch, Context, Model
        model = Model(sys.argv[1])
        context, batch = Context(model, n_ctx=1024, n_batch=1024, n_threads=1), Batch(800)
        batch.fill([5] * 800, 0)
        ticks, done = [0], threading.Event()
        def count():
            while not done.is_set():
                ticks[0] += 1
                time.sleep(0.001)
        thread = threading.Thread(target=count)
        thread.start()
        time.sleep(0.05)
        before = ticks[0]
        context.decode(batch)
        during = ticks[0] - before
        done.set()
        thread.join()
        print(during)
    """
    result = child(code, path, timeout=900)  # with the kernels of an old processor
    assert result.stderr == ""
    assert int(result.stdout) > 20


def test_prefix_caching(engine: Engine) -> None:
    prompt = [i % 200 for i in range(100)]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    fresh = engine.generate_tokens(prompt, **options)
    assert engine.stats.n_reused == 0
    assert engine.stats.n_prefilled == 100
    again = engine.generate_tokens(prompt, **options)
    assert (again, engine.stats.n_reused, engine.stats.n_prefilled) == (fresh, 99, 1)
    # A continued conversation: prompt and answer are cached, except the last token.
    longer = [*prompt, *fresh, 7, 8]
    held = len(prompt) + len(fresh) - 1
    continued = engine.generate_tokens(longer, **options)
    assert engine.stats.n_reused == held
    assert engine.generate_tokens(longer, cache_prompt=False, **options) == continued
    assert engine.stats.n_reused == 0
    other = engine.generate_tokens([1, 2, 3], **options)
    assert engine.stats.n_reused == 0
    assert other == engine.generate_tokens([1, 2, 3], reset_kv=True, **options)


def test_statistics(tiny_model: Path) -> None:
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        assert engine.stats == GenerationStats()
        engine.generate_tokens([1] * 50, 10, temperature=0, logit_bias={256: -1e5, 258: -1e5})
        stats = engine.stats
        assert (stats.n_prompt, stats.n_generated, stats.finish_reason) == (50, 10, "length")
        assert 0 < stats.prefill_s <= stats.time_to_first_token_s
        assert stats.decode_s > 0
        assert stats.prefill_tokens_per_s == pytest.approx(50 / stats.prefill_s)
        assert stats.decode_tokens_per_s == pytest.approx(10 / stats.decode_s)
        engine.generate_tokens([1] * 5, 3, temperature=0, logit_bias={256: -1e5, 258: -1e5})
        total = engine.total_stats
        assert (total.n_prompt, total.n_generated) == (55, 13)
        assert total.prefill_s == pytest.approx(stats.prefill_s + engine.stats.prefill_s)


def test_constructor_reads_the_environment(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARIS_BATCH", "64")
    monkeypatch.setenv("POLARIS_UBATCH", "32")
    monkeypatch.setenv("POLARIS_N_GPU_LAYERS", "0")
    with Engine(tiny_model, n_ctx=128, n_threads=1) as engine:
        assert (engine.context.n_batch, engine.context.n_ubatch) == (64, 32)
    with Engine(tiny_model, n_ctx=128, n_threads=1, n_batch=100, n_ubatch=50) as engine:
        assert (engine.context.n_batch, engine.context.n_ubatch) == (100, 50)
    monkeypatch.setenv("LLAMA_CFFI_N_GPU_LAYERS", "all")
    with pytest.raises(ValidationError, match="LLAMA_CFFI_N_GPU_LAYERS='all'"):
        Engine(tiny_model)


def test_invalid_constructor_arguments(tiny_model: Path) -> None:
    for options in ({"context_policy": "forget"}, {"safety": -1}, {"flush_ms": -1}, {"flavour": 1}):
        with pytest.raises((ValidationError, TypeError), match=next(iter(options))):
            Engine(tiny_model, n_ctx=64, **options)  # type: ignore[arg-type]
