"""Thinking budgets and reasoning_effort, on the demo model, which was trained to think."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import write_tiny

from llama_cffi import Llama, UnifiedLLM, ValidationError
from llama_cffi.api.running import run
from llama_cffi.api.thinking import ThinkingBudget, ThinkMarkers, think_markers
from llama_cffi.binding import Model
from llama_cffi.chat.families import identify
from llama_cffi.chat.reasoning import resolve_reasoning_effort
from llama_cffi.chat.template import ChatTemplate
from llama_cffi.demo import model_path

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
REASONING = "17 + 25 = 30 + 12 = 42"
INTEGER = {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}
TAGS = ("<think>", "</think>")
GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Like Qwen3, GPT-OSS, and DeepSeek R1, which drops the reasoning of earlier turns.
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    + GENERATION
    + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
HARMONY = (
    "Reasoning: {{ reasoning_effort }}{% for m in messages %}{% if m.thinking and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}<|start|>"
    "{{ m.role }}{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
R1 = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
REFUSING = "{{ raise_exception('only one message') if messages | length > 1 }}"


def get_weather(city: str) -> str:
    """Get the weather.

    Args:
        city: The city.
    """
    return city


@pytest.fixture(scope="module")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=1024, n_threads=1) as llm:
        yield llm


def answer(llm: Llama, messages: Any = SUM, **options: Any) -> dict[str, Any]:
    options = {"temperature": 0, "thinking": True, "max_tokens": 100, **options}
    message: dict[str, Any] = llm.create_chat_completion(messages, **options)["choices"][0]
    return message


def pieces(llm: Llama, **options: Any) -> list[str]:
    scores = answer(llm, logprobs=True, **options)["logprobs"]["content"]
    return [score["token"] for score in scores]


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 7, 10, 19, 20, 21, 100, None])
def test_reasoning_has_at_most_the_budgets_tokens(llm: Llama, budget: int | None) -> None:
    plain = pieces(llm)
    whole = pieces(llm, thinking_budget=budget)
    end = whole.index("</think>")
    n_natural = plain.index("</think>") - 1  # between the markers
    n_left = n_natural if budget is None else min(budget, n_natural)
    assert whole[: 1 + n_left] == plain[: 1 + n_left]
    # The line break before the end marker may be the last token of the reasoning.
    assert end - 1 in (n_left, n_left + 1)
    assert whole[end - 1 : end + 2] == ["\n", "</think>", "\n\n"]
    message = answer(llm, thinking_budget=budget)["message"]
    reasoning = message.get("reasoning_content", "")
    assert reasoning == "".join(whole[1:end]).strip()
    assert REASONING.startswith(reasoning)
    assert message["content"] == "".join(whole[end + 2 :])
    if budget is None or budget >= n_natural - 1:
        assert (reasoning, message["content"]) == (REASONING, "42")
    n_forced = llm.engine.stats.n_forced
    assert n_forced == (
        0 if budget is None or budget > n_natural else len(whole[:end]) - n_left + 1
    )


@pytest.mark.parametrize("budget", [0, 4, 50])
def test_a_streamed_answer_equals_a_whole_one(llm: Llama, budget: int) -> None:
    message = answer(llm, thinking_budget=budget)["message"]
    chunks = llm.create_chat_completion(
        SUM, temperature=0, thinking=True, thinking_budget=budget, stream=True
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == message.get(name, "")


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("grammar", [None, "root ::= [0-9]+"])
def test_reasoning_that_is_ended_while_it_runs_goes_on_as_with_a_budget(
    llm: Llama, n: int, grammar: str | None
) -> None:
    end = threading.Event()
    options: Any = {"temperature": 0, "thinking": True, "max_tokens": 100, "grammar": grammar}
    prepared = llm.chat.prepare(SUM, options, reasoning_end=end)
    (assembler,) = prepared.assemblers()
    (steps,) = run(llm.engine, prepared.request)
    for i in itertools.count():
        if i == n:
            end.set()
        try:
            assembler.add(next(steps))
        except StopIteration as stop:
            message = assembler.choice(stop.value)["message"]
            break
    budgets = [answer(llm, thinking_budget=b, grammar=grammar)["message"] for b in range(n + 2)]
    assert message in budgets
    assert len(message.get("reasoning_content", "")) < len(REASONING)


@pytest.mark.parametrize("grammar", [None, "root ::= [0-9]+"])
def test_processors_are_called_unless_a_token_is_forced(llm: Llama, grammar: str | None) -> None:
    shapes = []
    options: dict[str, Any] = {"thinking_budget": 7, "grammar": grammar}
    plain = answer(llm, **options)
    scored = answer(
        llm, logits_processor=lambda ids, scores: shapes.append(scores.shape), **options
    )
    assert scored == plain
    stats = llm.engine.stats
    n_ends = int(stats.finish_reason == "eog")
    assert shapes == [(llm.model.vocab.n_tokens,)] * (stats.n_generated - stats.n_forced + n_ends)


def test_each_of_several_answers_has_its_budget(llm: Llama) -> None:
    found = llm.create_chat_completion(SUM, temperature=0, thinking=True, thinking_budget=6, n=2)
    one, two = (choice["message"] for choice in found["choices"])
    assert one == two == answer(llm, thinking_budget=6)["message"]


@pytest.mark.parametrize("budget", [0, 3, 10, 50, None])
@pytest.mark.parametrize("grammar", ["schema", "gbnf", "scored"])
def test_structured_output_after_reasoning(llm: Llama, budget: int | None, grammar: str) -> None:
    options: dict[str, Any] = {"response_format": INTEGER}
    if grammar == "gbnf":
        options = {"grammar": "root ::= [0-9]+"}
    elif grammar == "scored":
        options["logprobs"] = True
    found = answer(llm, thinking_budget=budget, **options)
    message = found["message"]
    assert REASONING.startswith(message.get("reasoning_content", ""))
    assert isinstance(json.loads(message["content"]), int)
    assert found["finish_reason"] == "stop"
    if budget in (50, None):
        # The line breaks are those of its training; without them, the model answers 22.
        assert (message["reasoning_content"], message["content"]) == (REASONING, "42")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("budget", [0, 5])
def test_a_required_call_after_reasoning(llm: Llama, budget: int, stream: bool) -> None:
    """The demo model does not reason about calls by itself; with a grammar, reasoning is forced."""
    options = {"tools": [get_weather], "tool_choice": "required", "thinking_budget": budget}
    if stream:
        chunks = llm.create_chat_completion(
            WEATHER, temperature=0, thinking=True, stream=True, **options
        )
        choices = [chunk["choices"][0] for chunk in chunks]
        parts = [p for c in choices for p in c["delta"].get("tool_calls", ())]
        arguments = "".join(part["function"].get("arguments", "") for part in parts)
        reason = choices[-1]["finish_reason"]
        reasoning = "".join(c["delta"].get("reasoning_content", "") for c in choices)
    else:
        found = answer(llm, WEATHER, **options)
        (call,) = found["message"]["tool_calls"]
        arguments, reason = call["function"]["arguments"], found["finish_reason"]
        reasoning = found["message"].get("reasoning_content", "")
    assert (json.loads(arguments), reason) == ({"city": "Paris"}, "tool_calls")
    assert bool(reasoning) == bool(budget)
    assert len(llm.tokenize(reasoning, False)) <= budget


def test_other_methods_take_thinking_options(llm: Llama) -> None:
    assert (
        llm.parse("What is 17 + 25?", int, temperature=0, thinking=True, thinking_budget=40) == 42
    )
    assert llm.engine.stats.n_forced > 0
    with UnifiedLLM(model_path(), n_ctx=512, n_threads=1) as unified:
        question = "What is 17 + 25?"
        assert unified.generate(question, thinking=True, thinking_budget=40) == "42"
        assert unified.generate(question, thinking=True, thinking_budget=2) != "42"
        assert unified.llm.engine.stats.n_forced == 3
        assert unified.generate(question, reasoning_effort="low") == "42"
        n_thinking = unified.llm.engine.stats.n_generated
        assert unified.generate(question, reasoning_effort="none") == "42"
        assert unified.llm.engine.stats.n_generated < n_thinking


def test_a_budget_has_no_effect_without_reasoning(llm: Llama) -> None:
    plain = answer(llm, thinking=None)["message"]
    assert answer(llm, thinking=None, thinking_budget=0)["message"] == plain
    assert llm.engine.stats.n_forced == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"thinking_budget": -1}, "thinking_budget=-1"),
        ({"thinking_budget": 1.5}, "thinking_budget=1.5"),
        ({"thinking_budget": "8"}, "thinking_budget='8'"),
        ({"thinking": None, "reasoning_effort": "huge"}, "none, minimal, low, medium, high"),
        ({"reasoning_effort": "low"}, "give one of them"),
    ],
)
def test_invalid_options_are_refused_before_anything_runs(
    llm: Llama, options: dict[str, Any], says: str
) -> None:
    for stream in (False, True):
        with pytest.raises(ValidationError, match=says):
            answer(llm, stream=stream, **options)


@pytest.mark.parametrize(
    ("effort", "thinks"),
    [("none", False), ("minimal", False), ("low", True), ("medium", True), ("high", True)],
)
def test_reasoning_effort_turns_thinking_on_and_off(llm: Llama, effort: str, thinks: bool) -> None:
    message = answer(llm, thinking=None, reasoning_effort=effort)["message"]
    assert message["content"] == "42"
    assert ("reasoning_content" in message) == thinks


def test_reasoning_effort_of_other_families() -> None:
    gpt_oss = identify({"general.name": "gpt-oss 20b"}, "", HARMONY)
    template = ChatTemplate(HARMONY)
    for effort, told in (("minimal", "low"), ("low", "low"), ("medium", "medium")):
        thinking, kwargs = resolve_reasoning_effort(gpt_oss, template, None, effort)
        assert thinking is None
        assert template.render(SUM, **kwargs).startswith(f"Reasoning: {told}")
    with pytest.raises(ValidationError, match="always thinks"):
        resolve_reasoning_effort(gpt_oss, template, None, "none")
    r1 = identify({"general.name": "DeepSeek R1"}, "", R1)
    assert resolve_reasoning_effort(r1, ChatTemplate(R1), None, "high") == (True, {})
    with pytest.raises(ValidationError, match="deepseek r1 always thinks"):
        resolve_reasoning_effort(r1, ChatTemplate(R1), None, "minimal")
    plain = identify({"general.name": "Llama 2 7B"}, "", None)
    assert resolve_reasoning_effort(plain, None, None, "none") == (False, {})
    with pytest.raises(ValidationError, match="never thinks"):
        resolve_reasoning_effort(plain, None, None, "low")
    assert resolve_reasoning_effort(plain, None, True, None) == (True, {})


def test_markers_are_written_as_in_the_template(tmp_path: Path) -> None:
    harmony = ("<|channel|>analysis<|message|>", "<|end|>")
    control = ["<think>", "</think>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
    path = write_tiny(tmp_path / "markers.gguf", n_layer=1, control=control)
    qwen = ThinkMarkers("<think>\n", "\n</think>", "\n\n")
    with Model(path, vocab_only=True) as model:
        vocab = model.vocab
        close = QWEN.replace("\n</think>\n\n", "</think>\n").replace("<think>\n{", "<think>{")
        for source, markers, expected in (
            (QWEN, TAGS, qwen),
            (close, TAGS, ThinkMarkers("<think>", "</think>", "\n")),
            (
                HARMONY,
                harmony,
                ThinkMarkers(*harmony, "<|start|>assistant<|channel|>final<|message|>"),
            ),
            (R1, TAGS, qwen),
            (REFUSING, TAGS, qwen),
            (R1, harmony, ThinkMarkers(*harmony, "")),
        ):
            assert think_markers(vocab, ChatTemplate(source), markers) == expected
        assert think_markers(vocab, None, TAGS) == qwen
        # Markers of several tokens: the last one may include the text that follows.
        tags = ("<thought>", "</thought>")
        assert think_markers(vocab, None, tags) == ThinkMarkers("<thought>\n", "\n</thought>", "")


@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize(
    ("reasoning", "one", "several"),
    [
        ("abc", "\n</think>", "\n</think>"),
        ("ab\n", "</think>", "</think>"),
        ("a\n</th", "\n</think>", "ink>"),
        ("x </t", "\n</think>", "hink>"),
        ("x \u00e9", "\n</think>", "\n</think>"),
        ("", "\n</think>", "\n</think>"),
    ],
)
def test_a_partly_written_marker_is_completed(
    tmp_path: Path, reasoning: str, one: str, several: str, is_one: bool
) -> None:
    """Byte by byte, with markers that are one token and with markers that are bytes."""
    path = write_tiny(tmp_path / "t.gguf", n_layer=1, control=TAGS if is_one else ())
    with Model(path, vocab_only=True) as model:
        vocab = model.vocab
        tokens = vocab.tokenize(reasoning, False)
        markers = think_markers(vocab, None, TAGS)
        for is_open in (True, False):
            budget = ThinkingBudget(vocab, TAGS, markers, is_open, len(tokens))
            begin = [] if is_open else vocab.tokenize("<think>", False, True)
            forced: Any = ()
            for token in (None, *begin, *tokens):
                assert not forced
                forced = budget.after(token)
            text = vocab.detokenize(forced, True)
            assert text == (f"{one}\n\n" if is_one else several)
            for token in forced[:2]:
                assert budget.after(token) is None


def test_only_reasoning_at_the_beginning_counts(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "t.gguf", n_layer=1, control=TAGS)
    with Model(path, vocab_only=True) as model:
        vocab = model.vocab
        begin, end = (vocab.tokenize(tag, False, True)[0] for tag in TAGS)
        markers = think_markers(vocab, None, TAGS)

        def after(*tokens: int, **options: Any) -> list[Any]:
            given = {"is_open": False, "n_tokens": 3, **options}
            budget = ThinkingBudget(vocab, TAGS, markers, **given)
            return [budget.after(token) for token in (None, *tokens)]

        space, a = vocab.tokenize(" a", False)
        assert after(space, a, begin)[2:] == [None, None]
        assert after(space, begin, a, a) == [()] * 5
        assert after(begin, a, end, begin)[3] is None
        # A grammar requires reasoning, and the text between it and the content.
        required = after(begin, a, end, a, is_required=True, n_tokens=None)
        assert [vocab.detokenize(t, True) for t in required[:4]] == ["<think>\n", "", "", "\n\n"]
        assert required[4] is None
        assert after(a, end, is_open=True, is_required=True)[0] == ()
        for bad in (-1, 2.0):
            with pytest.raises(ValidationError, match="thinking_budget"):
                after(n_tokens=bad)
