"""What Polaris Core's tests, README and example check, through `llama_cffi.Engine`.

https://github.com/Tech-Tweakers/polaris-core
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import llama_cffi as pc
from llama_cffi.demo import model_path

QUESTION = "What is 17 + 25?"
# (name in Polaris Core, default there), in its order.
ARGUMENTS = {
    "n_predict": 256,
    "temperature": 0.7,
    "top_p": 0.9,
    "repeat_penalty": 1.1,
    "top_k": 40,
    "min_p": 0.05,
    "penalty_freq": 0.0,
    "penalty_present": 0.0,
    "seed": -1,
    "grammar": "",
    "callback": None,
}
AT_LOAD = ("N_GPU_LAYERS", "BATCH", "UBATCH")
AT_CALL = (
    "SAFETY", "SPECIAL", "RESET_KV", "JINJA", "SUPPRESS_THINK", "STAGE", "FLUSH", "TOKFLUSH",
    "MS_FLUSH",
)  # fmt: skip


def says(text: str) -> str:
    """A grammar that allows only *text*."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'root ::= "{escaped}"'


@pytest.fixture(scope="module")
def engine() -> Iterator[pc.Engine]:
    with pc.Engine(str(model_path()), n_ctx=512, n_threads=1) as engine:
        yield engine


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ('{"done": true}', True),
        ('{"done": true', False),
        ('{"next_step": "foo"}', True),
        ('{"key": "\\"done\\""}', True),
        ('{"key": "\\"done\\"}', False),
        ('[{"done": true}]', True),
        ('{"nested": {"done": true}}', True),
        ("not json", False),
        ('Here is the plan:\n{"done": true}', True),
        ('```json\n[{"next_step": ["a"]}]', True),
        ('{"key": "} ]", "done": [{}, []]}', True),
        ('{"key": [', False),
    ],
)
def test_an_answer_ends_when_its_json_is_balanced(
    engine: pc.Engine, text: str, complete: bool
) -> None:
    tail = " and so on"
    asked: dict[str, Any] = {"grammar": says(text + tail)}
    if '"key"' in text:  # balanced without one of Polaris' keys
        asked["json_stop"] = ("done", "next_step", "key")
    assert engine.generate("go", **asked) == (text if complete else text + tail)
    chunks: list[bytes] = []
    engine.generate("go", **asked, callback=chunks.append)
    assert b"".join(chunks).decode() == (text if complete else text + tail)


def test_the_example_runs(capfd: pytest.CaptureFixture[str]) -> None:
    chunks: list[bytes] = []
    eng = pc.Engine(str(model_path()), n_ctx=512, n_threads=0, n_gpu_layers=-1)
    text = eng.generate(
        prompt=QUESTION,
        system_prompt="",
        n_predict=120,
        temperature=0.8,
        top_p=0.95,
        repeat_penalty=1.1,
        callback=chunks.append,
    )
    assert b"".join(chunks).decode("utf-8", errors="ignore") == text
    assert isinstance(eng.generate(prompt=QUESTION, n_predict=5, temperature=0.7), str)
    eng.close()
    with pc.Engine(str(model_path()), n_ctx=512, n_gpu_layers=0) as eng:
        assert isinstance(eng.generate("test"), str)
    assert capfd.readouterr() == ("", "")


def test_arguments_have_its_names_order_and_defaults(engine: pc.Engine) -> None:
    aliases = {"n_predict": "max_tokens", "penalty_freq": "frequency_penalty",
               "penalty_present": "presence_penalty"}  # fmt: skip
    ours = [aliases.get(name, name) for name in ARGUMENTS]
    for method, first in (
        ("generate", ["prompt", "system_prompt"]),
        ("generate_chat", ["messages"]),
    ):
        names = list(inspect.signature(getattr(engine, method)).parameters)
        assert names[: len(first) + len(ours)] == first + ours
    given: dict[str, Any] = {**ARGUMENTS, "n_predict": 12, "seed": 5}
    assert engine.generate(QUESTION, **given) == engine.generate(QUESTION, n_predict=12, seed=5)


def test_a_conversation_of_pairs(engine: pc.Engine) -> None:
    options: dict[str, Any] = {"n_predict": 16, "seed": 3}
    expected = engine.generate(QUESTION, "You answer briefly.", **options)
    pairs = [("system", "You answer briefly."), ("user", QUESTION)]
    assert engine.generate_chat(pairs, **options) == expected
    assert engine.generate_chat([("system", ""), *pairs], **options) == expected
    # A role that ChatML does not have counts as user.
    turns = [("user", QUESTION), ("assistant", "42"), ("tool", "ok")]
    as_user = [*turns[:2], ("user", "ok")]
    assert engine.tokenize_chat(turns) == engine.tokenize_chat(as_user)


@pytest.mark.parametrize("name", AT_LOAD)
def test_variables_read_when_an_engine_is_created(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"POLARIS_{name}", "?")
    with pytest.raises(pc.ValidationError, match=f"POLARIS_{name}='\\?'"):
        pc.Engine(model_path(), n_ctx=256)


@pytest.mark.parametrize("name", AT_CALL)
def test_variables_read_at_each_call(
    engine: pc.Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"POLARIS_{name}", "?")
    with pytest.raises(pc.ValidationError, match=f"POLARIS_{name}='\\?'"):
        engine.generate(QUESTION, n_predict=1, callback=print)
    monkeypatch.delenv(f"POLARIS_{name}")
    assert isinstance(engine.generate(QUESTION, n_predict=1), str)


def test_jinja_asks_for_what_is_the_default(
    engine: pc.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = engine.tokenize_chat([("user", QUESTION)])
    monkeypatch.setenv("POLARIS_JINJA", "1")
    assert engine.tokenize_chat([("user", QUESTION)]) == usual
    monkeypatch.setenv("POLARIS_JINJA", "0")
    chatml = f"<|im_start|>user\n{QUESTION}\n<|im_end|>\n<|im_start|>assistant\n"
    assert engine.tokenize_chat([("user", QUESTION)]) == engine.tokenize(chatml, parse_special=True)


def test_suppress_think_prevents_thinking(
    engine: pc.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"temperature": 0, "n_predict": 100}
    assert "<think>" in engine.generate(QUESTION + " /think", **options)
    monkeypatch.setenv("POLARIS_SUPPRESS_THINK", "1")
    assert engine.generate(QUESTION + " /think", **options) == "42"
    # As Polaris Core writes it; with a model's own template, as that template does.
    monkeypatch.setenv("POLARIS_JINJA", "0")
    monkeypatch.setenv("POLARIS_STAGE", "prompt")
    assert engine.generate("hi").endswith("<|im_start|>assistant\n<think>\n\n</think>\n")


def test_stages_of_the_pipeline(
    engine: pc.Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = engine.detokenize(engine.tokenize_chat([("user", "test")]), special=True)
    for stage, report in (
        ("prompt", re.escape(prompt)),
        ("tokenize", r"\[OK\] tokenize: \d+ toks"),
        ("prefill", r"\[OK\] prefill in \d+\.\d+s"),
        ("sample", r"\[OK\] sample.*"),
        ("piece", r"\[OK\] piece.*"),
        ("push", r"\[OK\] push.*"),
    ):
        monkeypatch.setenv("POLARIS_STAGE", stage)
        assert re.fullmatch(report, engine.generate("test"), re.S)
    assert capsys.readouterr().out == ""


def test_a_prompt_over_the_context_is_cut_at_its_beginning(engine: pc.Engine) -> None:
    text = engine.generate("word " * 1000 + QUESTION, temperature=0, n_predict=8)
    assert isinstance(text, str)
    kept = engine.n_ctx - 16 - 8
    assert engine.stats.n_prompt == kept
    whole = engine.tokenize_chat([("user", "word " * 1000 + QUESTION)])
    assert engine.tokens[:kept] == whole[-kept:]


def test_the_margin_of_the_context_stays_free(
    engine: pc.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARIS_SAFETY", "100")
    engine.generate("word " * 1000, n_predict=1000)
    assert len(engine.tokens) <= engine.n_ctx - 100
