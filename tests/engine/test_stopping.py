"""How generations end: stop strings, JSON, cancel, deadlines, Ctrl-C, a full context."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builds import MIDDLE, NEWEST, OLD
from support.tiny_gguf import write_tiny

from llama_cffi import ContextOverflowError, DecodeAbortedError, Engine, ValidationError


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes seconds to prefill a few thousand tokens."""
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    return write_tiny(path, n_layer=12, n_embd=768, n_ctx=8192)


def says(text: str) -> str:
    """Return a grammar that allows only *text*."""
    return f"root ::= {json.dumps(text)}"


def test_end_of_generation_and_length(engine: Engine) -> None:
    assert engine.generate("x", grammar=says("hello")) == "hello"
    assert engine.stats.finish_reason == "eog"
    assert engine.stats.n_generated == 5  # one token per byte
    assert engine.generate("x", max_tokens=3, grammar=says("hello")) == "hel"
    assert engine.stats.finish_reason == "length"


def test_stop_strings(engine: Engine) -> None:
    text = "one two\nthree é four"
    for stop, expected in (
        ("two", "one "),
        (["zzz", "\nth"], "one two"),
        ("é", "one two\nthree "),
        (["three", "two\nthree"], "one "),
        ("nothing", text),
        ([], text),
    ):
        assert engine.generate("x", grammar=says(text), stop=stop) == expected
        streamed = "".join(engine.stream("x", grammar=says(text), stop=stop))
        assert streamed == expected
        found = expected != text
        assert engine.stats.finish_reason == ("stop" if found else "eog")
        if found:
            assert engine.stats.stop == (stop if isinstance(stop, str) else stop[-1])
    for wrong in ([""], [True], [1.5], "a\0b"):
        with pytest.raises(ValidationError):
            engine.generate("x", stop=wrong)


def test_stop_tokens_end_the_answer_and_are_not_part_of_it(engine: Engine) -> None:
    text = "one two"
    t, w = (engine.tokenize(letter, add_special=False)[0] for letter in "tw")
    for stop, expected in (
        (t, "one "),
        ([w], "one t"),
        ([t, w], "one "),
        (["wo", t], "one "),  # whichever comes first
        (["e", t], "on"),
        ([w, "e tw"], "one t"),  # text held back for a stop string is kept
        ([], text),
    ):
        assert engine.generate("x", grammar=says(text), stop=stop) == expected
        assert "".join(engine.stream("x", grammar=says(text), stop=stop)) == expected
        assert engine.stats.finish_reason == ("stop" if expected != text else "eog")
        assert engine.stats.stop in ("", "e")
        tokens = engine.generate_tokens([65], grammar=says(text), stop=stop)
        assert tokens[: len(expected)] == engine.tokenize(expected, add_special=False)
    for wrong in (-1, engine.model.vocab.n_tokens, [2**40]):
        with pytest.raises(ValidationError):
            engine.generate("x", stop=wrong)


def test_json_stop(engine: Engine) -> None:
    answer = '{"text": "a } \\" {", "list": [{"done": 1}], "done": true}'
    for keys, tail, expected in (
        (None, " and more", answer),
        (None, "", answer),
        (("done", "next_step"), "}}", answer),
        (("text",), " more", answer),
        (("next_step",), " more", answer + " more"),
        ((), " more", answer + " more"),
    ):
        options: dict[str, Any] = {} if keys is None else {"json_stop": keys}
        assert engine.generate("x", grammar=says(answer + tail), **options) == expected
        assert engine.stats.finish_reason == ("json" if expected == answer else "eog")
    for text, end in (
        ('So: {"done": true}', " more"),
        ('[{"a": {"done": 1}}]', "]"),
        ('<think>{"done": 0}</think>{"x": [{"next_step": ""}]}', "\n```"),
    ):
        assert engine.generate("x", grammar=says(text + end)) == text


def test_json_in_reasoning_does_not_end_an_answer_that_begins_inside_it(engine: Engine) -> None:
    text = '{"done": 0}</think>{"done": 1}'
    ask: dict[str, Any] = {"raw": True, "grammar": says(text + " more")}
    assert engine.generate("Go on.<think>\n", **ask) == text
    assert engine.generate("Go on.", **ask) == '{"done": 0}'
    ask["suppress_think"] = True
    assert engine.generate("<think>", **ask) == '{"done": 1}'


def test_token_ids_are_continued_without_the_defaults_for_text(engine: Engine) -> None:
    text = '{"done": 0}<|im_end|> more'
    steps = [step.text for step in engine.steps([65], grammar=says(text))]
    assert "".join(steps) == text


def test_suppress_think(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = says("<think>hm, {</think>\n\nYes <b>.")
    assert engine.generate("x", grammar=grammar) == "<think>hm, {</think>\n\nYes <b>."
    assert engine.generate("x", grammar=grammar, suppress_think=True) == "Yes <b>."
    monkeypatch.setenv("POLARIS_SUPPRESS_THINK", "1")
    chunks: list[bytes] = []
    assert engine.generate("x", grammar=grammar, callback=chunks.append) == "Yes <b>."
    assert b"".join(chunks) == b"Yes <b>."
    assert engine.generate("x", grammar=grammar, stop="hm") == "Yes <b>."
    assert engine.generate("x", grammar=grammar, suppress_think=False, stop="hm") == "<think>"
    cut = engine.generate("x", max_tokens=9, grammar=grammar)
    assert cut == ""


def test_special_writes_control_tokens(tmp_path: Path) -> None:
    def only_im_start(writer: Any) -> None:
        tensors = writer.tensors[0]
        for name in ("token_embd.weight", "output.weight"):
            tensors[name].tensor[:] = 0
        tensors["token_embd.weight"].tensor[:, 0] = 1
        tensors["output.weight"].tensor[257, 0] = 1

    path = write_tiny(tmp_path / "start.gguf", n_layer=1, edit=only_im_start)
    with Engine(path, n_ctx=64, n_threads=1) as engine:
        assert engine.generate("x", max_tokens=2, temperature=0, special=False) == ""
        text = engine.generate("x", max_tokens=2, temperature=0, special=True)
        assert text == "<|im_start|>" * 2


def test_cancel_from_a_callback(engine: Engine) -> None:
    seen: list[bytes] = []

    def stop_at_three(data: bytes) -> None:
        seen.append(data)
        if len(seen) == 3:
            engine.cancel()

    with pytest.raises(DecodeAbortedError, match="cancelled") as e:
        engine.generate("x", grammar=says("abcdefgh"), callback=stop_at_three, skip_forced=False)
    assert (e.value.reason, e.value.text) == ("cancel", "abc")
    assert engine.stats.finish_reason == "cancel"
    assert engine.generate("x", grammar=says("ok")) == "ok"
    engine.cancel()  # no effect while nothing runs
    assert engine.generate("x", grammar=says("ok")) == "ok"


def test_cancel_from_another_thread_in_prefill_and_decode(slow_model: Path) -> None:
    with Engine(slow_model, n_ctx=4096, n_threads=1) as engine:
        short = list(range(60))
        expected = engine.generate_tokens(short, 3, temperature=0)
        for tokens, wait_s in ((list(range(250)) * 15, 0.2), (short, 0.5)):
            timer = threading.Timer(wait_s, engine.cancel)
            timer.start()
            with pytest.raises(DecodeAbortedError):
                engine.generate_tokens(
                    tokens, 3000, temperature=1.0, seed=1, logit_bias={256: -99, 258: -99}
                )
            timer.join()
            assert engine.generate_tokens(short, 3, temperature=0) == expected


def test_deadline_in_prefill(slow_model: Path) -> None:
    with Engine(slow_model, n_ctx=4096, n_threads=1) as engine:
        with pytest.raises(DecodeAbortedError, match=r"0\.1 s") as e:
            engine.generate("word " * 700, timeout_s=0.1)
        assert e.value.reason == engine.stats.finish_reason == "deadline"
        assert engine.stats.n_generated == 0
        assert engine.generate("x", grammar=says("ok"), timeout_s=60) == "ok"


def test_deadline_in_decode(engine: Engine) -> None:
    options: dict[str, Any] = {"context_policy": "shift", "logit_bias": {256: -99, 258: -99}}
    pieces: list[str] = []
    with pytest.raises(DecodeAbortedError):
        pieces.extend(engine.stream("x", "", 10**6, timeout_s=1, seed=1, **options))
    assert pieces
    assert engine.stats.finish_reason == "deadline"
    assert engine.generate("x", grammar=says("ok"), timeout_s=60) == "ok"
    with pytest.raises(ValidationError, match="timeout_s"):
        engine.generate("x", timeout_s=-1)


def test_deadline_while_waiting_for_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_cffi.generation.call_lock._LEAST_S", 1000)
    stream = engine.stream("x", grammar=says("abc"))
    next(stream)
    errors: list[Exception] = []

    def run() -> None:
        try:
            engine.generate("y", timeout_s=0.05)
        except DecodeAbortedError as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert len(errors) == 1
    assert next(stream) == "b"
    assert list(stream) == ["c"]


CTRL_C = """
    import sys
    from llama_cffi import Engine
    tokens = {"prefill": list(range(250)) * 15, "decode": list(range(60))}
    engine = Engine(sys.argv[1], n_ctx=4096, n_threads=1)
    expected = engine.generate_tokens(tokens["decode"], 3, temperature=0)
    options = {"seed": 1, "logit_bias": {256: -99, 258: -99}}
    def ready(ids, scores):
        if len(ids) == len(tokens["decode"]) + 2:
            print("ready", flush=True)
    if sys.argv[2] == "decode":
        options["logits_processor"] = [ready]
    try:
        if sys.argv[2] == "prefill":
            print("ready", flush=True)
        engine.generate_tokens(tokens[sys.argv[2]], 3000, **options)
        sys.exit("finished")
    except KeyboardInterrupt:
        # An interrupted prefill is undone; decoded tokens stay in the cache.
        print("interrupted", engine.stats.n_generated > 0, flush=True)
    assert engine.generate_tokens(tokens["decode"], 3, temperature=0) == expected
    print("usable")
"""


@pytest.mark.parametrize("build", [OLD, MIDDLE, NEWEST])
@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_ctrl_c(slow_model: Path, build: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CFFI_BUILD", build)
    import textwrap

    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CTRL_C), str(slow_model), where],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert out == f"interrupted {where == 'decode'}\nusable\n"


def test_generation_continues_if_the_handler_does_not_raise(slow_model: Path) -> None:
    """The aborted prefill is repeated."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    try:
        with Engine(slow_model, n_ctx=1024, n_threads=1) as engine:
            tokens = list(range(250)) * 2
            expected = engine.generate_tokens(tokens, 3, temperature=0)
            timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
            timer.start()
            again = engine.generate_tokens(tokens, 3, temperature=0, cache_prompt=False)
            timer.join()
            assert again == expected
            assert seen == [signal.SIGINT]
            assert engine.stats.n_retries > 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_overflow_and_safety_margin(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [5] * (engine.n_ctx - 20)
    with pytest.raises(ContextOverflowError, match=r"no room.*254 tokens.*256.*16"):
        engine.generate_tokens([5] * 254, 1)
    found = engine.generate_tokens(tokens, 100, temperature=0)
    assert len(found) <= 4
    if len(found) == 4:
        assert engine.stats.finish_reason == "context"
    monkeypatch.setenv("POLARIS_SAFETY", "19")
    assert len(engine.generate_tokens(tokens, 100, temperature=0)) <= 1
    monkeypatch.setenv("LLAMA_CFFI_SAFETY", "20")
    with pytest.raises(ContextOverflowError, match="no room"):
        engine.generate_tokens(tokens, 100)


def test_truncation(engine: Engine) -> None:
    tokens = [i % 250 for i in range(400)]
    for policy, kept in (
        ("truncate_left", tokens[400 - 230 :]),
        ("truncate_middle", [*tokens[:115], *tokens[400 - 115 :]]),
    ):
        found = engine.generate_tokens(tokens, 10, temperature=0, context_policy=policy)
        assert engine.stats.n_truncated == 170
        assert engine.stats.n_prompt == 230
        assert found == engine.generate_tokens(kept, 10, temperature=0)
        assert engine.stats.n_truncated == 0
    with pytest.raises(ValidationError, match="truncate_left"):
        engine.generate_tokens(tokens, 10, context_policy="middle")


def test_context_shift(tiny_model: Path) -> None:
    with Engine(tiny_model, n_ctx=64, n_threads=1, context_policy="shift", safety=0) as engine:
        n_ctx = engine.n_ctx
        bias = {256: float("-inf"), 258: float("-inf")}
        found = engine.generate_tokens([1, 2, 3], 3 * n_ctx, temperature=0, logit_bias=bias)
        assert len(found) == 3 * n_ctx
        assert engine.stats.finish_reason == "length"
        assert engine.stats.n_shifted > n_ctx
        # Up to the first shift, the answer equals that of any other policy.
        usual = engine.generate_tokens(
            [1, 2, 3], 3 * n_ctx, temperature=0, logit_bias=bias, context_policy="error"
        )
        assert engine.stats.finish_reason == "context"
        assert found[: len(usual)] == usual
        assert len(usual) == n_ctx - 3
        with pytest.raises(ContextOverflowError):
            engine.generate_tokens([1] * n_ctx, 1)


@pytest.mark.parametrize("options", [{"stop": 1.5}, {"json_stop": "done"}])
def test_stop_and_json_stop_must_be_lists(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be a list"):
        engine.generate("a", max_tokens=1, **options)
