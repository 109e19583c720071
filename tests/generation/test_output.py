from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import Engine, LlamaGrammar

WORDS = ["<|im_end|>", "</s>", "<think>", "</think>", "<end_of_turn>", "<|eot_id|>", "<|user|>"]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Any:
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        yield engine


def grammars(text: str) -> dict[str, LlamaGrammar]:
    gbnf = text.replace("\\", "\\\\").replace('"', '\\"')
    return {
        "choices": LlamaGrammar.from_choices([text, text + "!"]),
        "gbnf": LlamaGrammar.from_string(f'root ::= "{gbnf}"'),
        "json": LlamaGrammar.from_json_schema({"const": {"a": text}}),
    }


@pytest.mark.parametrize("word", WORDS)
def test_markup_has_no_effect_inside_a_grammar(engine: Engine, word: str) -> None:
    """One token per byte, so words are split everywhere."""
    text = f"a {word} b <|im_e {word}"
    markup = {"turn_stops": WORDS, "suppress_think": True, "json_stop": ("a",)}
    for name, grammar in grammars(text).items():
        for skip_forced in (True, False):
            options: Any = {**markup, "grammar": grammar, "skip_forced": skip_forced}
            for found in (engine.generate("x", **options), "".join(engine.stream("x", **options))):
                if name == "json":
                    assert json.loads(found) == {"a": text}
                else:
                    assert found in (text, text + "!")


def test_the_callers_stop_strings_apply_inside_a_grammar(engine: Engine) -> None:
    grammar = LlamaGrammar.from_choices(["one</s>two STOP three"])
    options: Any = {"turn_stops": ["</s>"], "grammar": grammar}
    assert engine.generate("x", stop=["STOP"], **options) == "one</s>two "
    assert (engine.stats.finish_reason, engine.stats.stop) == ("stop", "STOP")


def test_markup_counts_until_the_grammar_begins(engine: Engine) -> None:
    """`first` is what the model writes before the grammar; `second` is held to the grammar."""

    def run(first: str, after: str, second: str, **options: Any) -> str:
        wanted = [*engine.tokenize(first + after, add_special=False)]

        def write(tokens: Any, logits: Any) -> None:
            n = len(tokens) - n_prompt
            if n < len(wanted):
                logits[wanted[n]] += 1e4

        n_prompt = len(engine.format_prompt("x"))
        return engine.generate(
            "x", temperature=0, repeat_penalty=1.0, logits_processor=write, max_tokens=200,
            turn_stops=["</s>"], grammar=LlamaGrammar.from_choices([second]), **options,
        )  # fmt: skip

    tail = "x </s> <think> y"
    # A word that starts the grammar.
    assert run("Hm. ", "", tail, grammar_triggers=["x "]) != ""
    assert run("Hm. ", "x ", tail, grammar_triggers=["x "]).startswith("Hm. x ")
    assert run("Hm.</s> ", "x ", tail, grammar_triggers=["x "]) == "Hm."
    # Text after which it starts.
    assert run("<think>a", "</think>", tail, structured_after="</think>") == (
        f"<think>a</think>{tail}"
    )
    hidden = run("<think>a", "</think>", tail, structured_after="</think>", suppress_think=True)
    assert hidden == tail
