"""The demo model: what the file promises, what it can do, and what was kept from training."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_cffi import Engine, Llama
from llama_cffi.demo import model_path, recorded_path

# tools/ is not part of the package. Last, so that the installed package stays before the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.train_demo import (
    conversations,
    evaluate,
    evaluate_decisions,
    items,
    kinds_decisions,
    split,
    template,
)

MOST_BYTES = 4_000_000
PER_KIND = 40


@pytest.fixture(scope="module")
def reader() -> gguf.GGUFReader:
    return gguf.GGUFReader(model_path())


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(model_path(), n_ctx=evaluate.N_CTX, n_threads=1, n_gpu_layers=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=768, n_threads=1, n_gpu_layers=0) as opened:
        yield opened


def contents(reader: gguf.GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_file_is_small() -> None:
    assert model_path().stat().st_size <= MOST_BYTES


def test_matrices_are_q8_0_or_better(reader: gguf.GGUFReader) -> None:
    good = {"Q8_0", "F16", "BF16", "F32"}
    assert {tensor.tensor_type.name for tensor in reader.tensors} <= good


def test_metadata(reader: gguf.GGUFReader) -> None:
    expected = {
        "general.architecture": "llama",
        "general.license": "mit",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template.CHAT_TEMPLATE,
        "llama.context_length": 1024,
    }
    assert {key: contents(reader, key) for key in expected} == expected
    for key in ("general.name", "general.author", "general.description"):
        assert contents(reader, key)
    tokens, eos = (contents(reader, f"tokenizer.ggml.{k}") for k in ("tokens", "eos_token_id"))
    assert isinstance(tokens, list)
    assert isinstance(eos, int)
    assert tokens[eos] == "<|im_end|>"


def test_every_byte_has_a_token(engine: Engine) -> None:
    text = "naïve 你好 😀\t\r\n" + "".join(map(chr, range(32, 127)))
    assert engine.detokenize(engine.tokenize(text, add_special=False)) == text


def test_split_is_one_in_ten_and_fixed() -> None:
    share = sum(split.is_heldout(f"key:{i}") for i in range(20_000)) / 20_000
    assert share == pytest.approx(split.HOLDOUT_FRACTION, abs=0.01)
    # The bare phrases and half of the tables are taught on purpose.
    assert not any(map(split.is_heldout, ("talk:taught", "mul:taught")))


@pytest.mark.parametrize("kind", [*conversations.KINDS, *conversations.TOOL_KINDS])
def test_no_evaluated_content_can_be_drawn_for_training(kind: str) -> None:
    make = {k: m for k, (m, _) in conversations.KINDS.items()} | conversations.TOOL_KINDS
    rng = random.Random(7)
    trained: set[str] = set()
    for _ in range(400):
        item = items.draw(make[kind], rng, heldout=False)
        trained |= {item.key, *item.other_keys}
    asked = {conversation.key for conversation in evaluate.questions(kind, 400, seed=7)}
    assert not trained & asked
    assert not any(map(split.is_heldout, trained))
    assert all(map(split.is_heldout, asked))


@pytest.mark.parametrize("kind", kinds_decisions.DECISIONS)
def test_no_evaluated_decision_can_be_drawn_for_training(kind: str) -> None:
    rng = random.Random(7)
    trained = [kinds_decisions.decision(rng, kind) for _ in range(300)]
    asked = [kinds_decisions.decision(rng, kind, heldout=True) for _ in range(300)]
    keys = {item.key for item in trained}
    assert not keys & {item.key for item in asked}
    assert not any(map(split.is_heldout, keys))


@pytest.mark.parametrize("kind", kinds_decisions.DECISIONS)
def test_decisions_have_known_probabilities_and_balanced_answers(kind: str) -> None:
    rng = random.Random(8)
    drawn = [kinds_decisions.decision(rng, kind) for _ in range(1000)]
    assert all(sum(item.chances) == pytest.approx(1) for item in drawn)
    assert all(len(item.chances) == len(item.question.options) for item in drawn)
    assert all(item.chances[item.answer] > 0 for item in drawn)
    assert 0.02 < sum(not item.is_clear for item in drawn) / len(drawn) < 0.2
    first = sum(item.answer == 0 for item in drawn) / len(drawn)
    assert first == pytest.approx(sum(1 / len(item.chances) for item in drawn) / 1000, abs=0.06)


def test_no_held_out_sum_is_in_a_training_text() -> None:
    # Read off the rendered text, not from the keys: an independent look at the same promise.
    sums = re.compile(r"What is (\d+) \+ (\d+)\?")
    rng = random.Random(3)
    seen = {
        f"add:{a}:{b}"
        for text in (conversations.training_text(rng) for _ in range(3000))
        if "# Tools" not in text
        for a, b in sums.findall(text)
    }
    assert len(seen) > 50
    assert not any(map(split.is_heldout, seen))


@pytest.mark.parametrize("kind", conversations.EVALUATED)
def test_held_out_accuracy(engine: Engine, kind: str) -> None:
    score = evaluate.evaluate(engine, kind, PER_KIND, seed=2)
    assert score.accuracy >= evaluate.REQUIRED, score.failures


@pytest.mark.parametrize("kind", kinds_decisions.DECISIONS)
def test_held_out_decisions(llm: Llama, kind: str) -> None:
    asked = evaluate_decisions.heldout(kind, PER_KIND, seed=2, clear=True)
    decided = evaluate_decisions.decide(llm, asked, average_orders=False)
    assert evaluate_decisions.accuracy(decided) >= evaluate_decisions.REQUIRED, [
        (one.item.input, one.item.question) for one in decided if not one.is_right
    ]


def test_decisions_are_unsure_where_the_input_is(llm: Llama) -> None:
    items = evaluate_decisions.heldout("choice", PER_KIND, seed=2, clear=False)
    decided = evaluate_decisions.decide(llm, items, average_orders=True)
    assert evaluate_decisions.distance(decided) < 0.25
    assert np.mean([one.confidence for one in decided]) < 0.9


def test_the_question_of_the_readme(engine: Engine) -> None:
    assert engine.generate("What is 17 + 25?", temperature=0).strip() == "42"


def test_recorded_prompt_is_reproduced(engine: Engine) -> None:
    recorded = json.loads(recorded_path().read_text(encoding="utf-8"))
    assert engine.tokenize(recorded["prompt"], False, True) == recorded["tokens"]
    said = engine.generate_tokens(
        recorded["tokens"], n_predict=512, temperature=0, repeat_penalty=1.0
    )
    assert said == recorded["continuation"][:-1]
    assert engine.detokenize(said) == recorded["text"]
    assert recorded["smallest_lead"] > 2
