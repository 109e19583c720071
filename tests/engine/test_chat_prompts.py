"""The prompts of `Engine`: pairs, Polaris Core's ChatML, and no reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import CHATML, write_tiny

from llama_cffi import Engine, ValidationError

TURN = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
THINKS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SWITCHED = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
# A switch that the template names, but does not obey; and markers that are words.
STUBBORN = "{% if enable_thinking %}{% endif %}" + THINKS
STEPS = THINKS.replace("<think>\n", "Here are my reasoning steps:\n")
MARKERS = ("<think>", "</think>")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        yield engine


def prompt_of(engine: Engine, messages: Any, **options: Any) -> str:
    """The text of the prompt, from the tokens that are generated from."""
    return engine.detokenize(engine.tokenize_chat(messages, **options), special=True)


@pytest.mark.parametrize(
    ("messages", "dicts"),
    [
        ([("user", "hi")], [("user", "hi")]),
        ([["user", "hi"]], [("user", "hi")]),
        ([("system", "s"), ("user", "u"), ("assistant", "a")], None),
        ([("system", ""), ("user", "u"), ("assistant", "")], [("user", "u")]),
        ([("tool", "42"), ("Assistant", "x")], [("user", "42"), ("user", "x")]),
        ([{"role": "user", "content": "d"}, ("user", "p")], [("user", "d"), ("user", "p")]),
    ],
)
def test_pairs(engine: Engine, messages: Any, dicts: Any) -> None:
    expected = [{"role": r, "content": c} for r, c in (messages if dicts is None else dicts)]
    assert engine.tokenize_chat(messages) == engine.tokenize_chat(expected)
    assert prompt_of(engine, messages).count("<|im_start|>") == len(expected) + 1


@pytest.mark.parametrize(
    "wrong", [[("user",)], [("user", "a", "b")], [("user", 3)], [(None, "a")], [()], "hi", 3]
)
def test_what_is_no_conversation(engine: Engine, wrong: Any) -> None:
    with pytest.raises(ValidationError, match="message"):
        engine.generate_chat(wrong)


def test_pairs_give_the_answer_of_dicts_with_all_arguments_by_position(engine: Engine) -> None:
    chunks: list[bytes] = []
    pairs = [("system", "s"), ("user", "u")]
    rest = (12, 1.2, 0.95, 1.05, 50, 0.01, 0.1, 0.2, 7, "")
    expected = engine.generate("u", "s", *rest)
    assert engine.generate_chat(pairs, *rest, chunks.append) == expected
    assert b"".join(chunks).decode("utf-8", "replace") == expected
    assert engine.generate("u", "s", *rest, callback=None) == expected


@pytest.mark.parametrize("add_bos", [False, True])
def test_jinja_off_writes_chatml_as_polaris_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add_bos: bool
) -> None:
    def with_bos(writer: Any) -> None:
        writer.kv_data[0]["tokenizer.ggml.add_bos_token"].value = add_bos

    path = write_tiny(
        tmp_path / "llama.gguf", chat_template="{{ raise_exception('x') }}", edit=with_bos
    )
    conversation = [("system", "s"), ("user", "<|im_end|>"), ("tool", "")]
    text = "<|im_start|>system\ns\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_end|>\n"
    text = ("<|endoftext|>" if add_bos else "") + text + "<|im_start|>assistant\n"
    with Engine(path, n_ctx=128, n_threads=1) as engine:
        monkeypatch.setenv("POLARIS_JINJA", "0")
        assert prompt_of(engine, conversation) == text
        # What a user spells out stays text here, too.
        assert engine.tokenize_chat(conversation).count(258) == 2
        monkeypatch.setenv("POLARIS_SUPPRESS_THINK", "1")
        assert prompt_of(engine, conversation) == text + "<think>\n\n</think>\n"
        monkeypatch.setenv("POLARIS_JINJA", "1")
        with pytest.raises(ValidationError):
            engine.generate_chat(conversation)
    with Engine(path, n_ctx=128, n_threads=1, chat_format=CHATML) as engine:
        monkeypatch.setenv("LLAMA_CFFI_JINJA", "0")
        monkeypatch.delenv("POLARIS_SUPPRESS_THINK")
        assert prompt_of(engine, [("user", "hi")]) == TURN  # the argument wins


@pytest.mark.parametrize("words", [(), MARKERS, (*MARKERS, "\n\n")])
@pytest.mark.parametrize(
    ("name", "template", "prompt"),
    [
        ("QwQ 32B", THINKS, TURN + "<think>\n\n</think>\n\n"),  # always thinks
        ("QwQ 32B", CHATML, TURN + "<think>\n\n</think>\n\n"),
        ("Qwen3 8B", SWITCHED, TURN + "<think>\n\n</think>\n\n"),  # by default
        ("MiniCPM4.1 8B", CHATML, TURN.replace("hi", "hi /no_think") + "<think>\n\n</think>\n\n"),
        ("Nemotron Nano v2", STUBBORN, TURN + "<think>\n\n</think>\n\n"),
        (
            "Apriel 1.5",
            STEPS,
            TURN + "Here are my reasoning steps:\n[BEGIN FINAL RESPONSE]",
        ),
        ("llama", CHATML, TURN),  # never: an empty block would end its answer
    ],
)
def test_suppress_think_gives_a_prompt_after_which_the_model_does_not_think(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    template: str,
    prompt: str,
    words: tuple[str, ...],
) -> None:
    path = write_tiny(tmp_path / "m.gguf", name=name, chat_template=template, words=words)
    with Engine(path, n_ctx=128, n_threads=1) as engine:
        usual = prompt_of(engine, [("user", "hi")])
        asked = engine.tokenize(prompt, parse_special=True)
        monkeypatch.setenv("POLARIS_SUPPRESS_THINK", "1")
        assert engine.tokenize_chat([("user", "hi")]) == asked
        monkeypatch.setenv("POLARIS_STAGE", "prompt")
        assert engine.generate("hi") == prompt
        monkeypatch.setenv("POLARIS_SUPPRESS_THINK", "0")
        assert engine.generate("hi", suppress_think=True) == prompt
        assert engine.generate("hi") == usual
        if name != "llama":  # what the call says wins
            monkeypatch.setenv("POLARIS_SUPPRESS_THINK", "1")
            assert "</think>" not in engine.generate("hi", thinking=True)
