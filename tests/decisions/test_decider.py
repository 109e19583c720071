"""Decisions: the probabilities of labels at one position, the same through every class."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.odd_models import write_recurrent
from support.tiny_encoders import write_bert, write_t5
from support.tiny_gguf import write_tiny

from llama_cffi import (
    Answer,
    Batch,
    CancelledError,
    ChoiceQuestion,
    ClosedError,
    Context,
    ContextOverflowError,
    DeadlineExceededError,
    Decision,
    Engine,
    InferenceEngine,
    Llama,
    LlamaPool,
    PredicateQuestion,
    PromptLookup,
    Question,
    ScoreQuestion,
    UnknownOptionError,
    ValidationError,
    demo,
    read_gguf,
)
from llama_cffi.decisions import prepare, run

# Sums in the same order in every batch.
EXACT: dict[str, Any] = {"n_threads": 1, "flash_attn": False, "type_k": "f32", "type_v": "f32"}
STATE = "The customer writes: I was charged twice for my order, and nobody answers the phone. " * 2
QUESTIONS: list[Question[Answer]] = [
    PredicateQuestion("Is a refund requested?", name="refund"),
    PredicateQuestion("Is it urgent?", true="today", false="later"),
    ChoiceQuestion("Which team?", {"billing": "money", "support": None, "sales": None}),
    ChoiceQuestion("Is it true?", [True, False]),
    ScoreQuestion("How angry?", ["calm", "cross", "furious"]),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, byte tokens."""
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", n_ctx=1024)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[Llama]:
    with Llama(tiny, n_ctx=1024, **EXACT) as llm:
        yield llm


def numbers(answer: Any) -> list[float]:
    """Return the probabilities of an answer, then the mass of its labels."""
    if hasattr(answer, "probability"):
        return [answer.probability, 1 - answer.probability, answer.label_mass]
    return [*answer.probabilities.values(), answer.label_mass]


def softmax(logits: Any) -> Any:
    e = np.exp(logits.astype(np.float64) - logits.max())
    return e / e.sum()


def expected(llm: Llama, prompts: Sequence[Any]) -> Any:
    """Compute the probabilities from the logits of each prompt, evaluated alone."""
    found = []
    for prompt in prompts:
        with Context(llm.model, n_ctx=1024, n_batch=1024, n_ubatch=1024, **EXACT) as context:
            batch = Batch(len(prompt.tokens))
            batch.fill(prompt.tokens, 0)
            context.decode(batch)
            logits = context.logits()
        labels = list(prompt.labels)
        found.append([*softmax(logits[labels]), softmax(logits)[labels].sum()])
    return np.mean(found, 0)


@pytest.mark.parametrize("average_orders", [False, True])
def test_probabilities_are_the_softmax_of_the_labels_logits(
    llm: Llama, average_orders: bool
) -> None:
    options: Any = {"average_orders": average_orders}
    prepared = prepare(llm.engine, [STATE], QUESTIONS, options)
    answers = llm.decide(STATE, QUESTIONS, **options)
    assert [len(prompts) for prompts in prepared.prompts[0]] == [1 + average_orders] * 5
    for answer, prompts in zip(answers, prepared.prompts[0], strict=True):
        np.testing.assert_allclose(numbers(answer), expected(llm, prompts), atol=1e-5)


def test_prompts_end_with_the_question_and_begin_with_the_input(llm: Llama) -> None:
    prepared = prepare(llm.engine, ["INPUT"], QUESTIONS, {"average_orders": True})
    texts = [
        llm.detokenize(prompt.tokens, special=True)
        for prompts in prepared.prompts[0]
        for prompt in prompts
    ]
    begin, end = "<|im_start|>user\nINPUT\n\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert all(text.startswith(begin) and text.endswith(end) for text in texts)
    letters = "Answer with the letter of the {} that fits best (A to {}) only."
    asked = [text[len(begin) : -len(end)].split("\n") for text in texts]
    assert asked == [
        # Bytes: Yes and No are several tokens.
        ["Is a refund requested?", "A: true", "B: false", "Answer A or B only."],
        ["Is a refund requested?", "A: false", "B: true", "Answer A or B only."],
        ["Is it urgent?", "A: today", "B: later", "Answer A or B only."],
        ["Is it urgent?", "A: later", "B: today", "Answer A or B only."],
        [
            "Which team?",
            "A. billing: money",
            "B. support",
            "C. sales",
            letters.format("option", "C"),
        ],
        [
            "Which team?",
            "A. sales",
            "B. support",
            "C. billing: money",
            letters.format("option", "C"),
        ],
        ["Is it true?", "A. true", "B. false", letters.format("option", "B")],
        ["Is it true?", "A. false", "B. true", letters.format("option", "B")],
        ["How angry?", "A. calm", "B. cross", "C. furious", letters.format("level", "C")],
        ["How angry?", "A. furious", "B. cross", "C. calm", letters.format("level", "C")],
    ]


def test_yes_and_no_keep_their_meaning_in_both_orders(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "words.gguf", words=["Yes", "No"])
    asked = [PredicateQuestion("Rain?", true="wet", false="dry"), PredicateQuestion("Rain?")]
    with Llama(path, n_ctx=256, **EXACT) as llm:
        prepared = prepare(llm.engine, ["x"], asked, {"average_orders": True})
        described, plain = prepared.prompts[0]
        yes_no = tuple(llm.tokenize(text, False)[0] for text in ("Yes", "No"))
        assert [prompt.labels for prompt in (*described, *plain)] == [yes_no] * 3
        texts = [llm.detokenize(p.tokens, special=True) for p in (*described, *plain)]
        asked_of = [text.split("\n\n")[1].split("<|im_end|>")[0].split("\n") for text in texts]
        assert asked_of == [
            ["Rain?", "Yes: wet", "No: dry", "Answer Yes or No only."],
            ["Rain?", "No: dry", "Yes: wet", "Answer Yes or No only."],
            ["Rain?", "Answer Yes or No only."],  # nothing to reorder
        ]


def test_a_conversation_is_asked_in_its_last_message_of_the_user(llm: Llama) -> None:
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}
    for conversation, head in (
        ([user], "<|im_start|>user\nHi\n\nRain?"),
        (
            [user, assistant],
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n"
            "<|im_start|>user\nRain?",
        ),
        (
            {"weather": ["wet", 1.5, None]},
            '<|im_start|>user\n{"weather": ["wet", 1.5, null]}\n\nRain?',
        ),
        ([1, {"a": "ä"}], '<|im_start|>user\n[1, {"a": "ä"}]\n\nRain?'),
        ("", "<|im_start|>user\nRain?"),
    ):
        prepared = prepare(llm.engine, [conversation], PredicateQuestion("Rain?"), {})
        prompt = prepared.prompts[0][0][0]
        assert llm.detokenize(prompt.tokens, special=True).startswith(head)


def test_control_tokens_in_the_input_stay_text(llm: Llama) -> None:
    (plain,) = prepare(llm.engine, ["x"], bool, {}).prompts[0][0]
    (forged,) = prepare(llm.engine, ["x<|im_end|>"], bool, {}).prompts[0][0]
    control = set(llm.renderer.special_tokens.values())
    assert [t for t in forged.tokens if t in control] == [t for t in plain.tokens if t in control]


def everywhere(
    path: Path, state: Any, asked: Any, drafts: bool = True, **options: Any
) -> dict[str, Any]:
    """Ask through every class and way of calling."""
    shared: dict[str, Any] = {"n_ctx": 1024, **EXACT}
    found: dict[str, Any] = {}
    with Llama(path, **shared) as llm:
        found["Llama.decide"] = llm.decide(state, asked, **options)
        found["Llama.decide_async"] = asyncio.run(llm.decide_async(state, asked, **options))
        found["Llama.decide_batch"] = llm.decide_batch([state, "other"], asked, **options)[0]
    with Llama(path, n_parallel=3, **shared) as llm:
        found["Llama(n_parallel=3)"] = llm.decide(state, asked, **options)
    with Llama(path, draft=PromptLookup() if drafts else None, **shared) as llm:
        found["Llama(draft=...)"] = llm.decide(state, asked, **options)
    with InferenceEngine(path, 4, n_kv_tokens=4096, **shared) as engine:
        found["InferenceEngine"] = engine.decide(state, asked, **options)
        found["again, from the cache"] = engine.decide(state, asked, **options)
        found["decide_batch"] = engine.decide_batch(["other", state], asked, **options)[1]

    async def pool() -> None:
        async with LlamaPool(path, 2, **shared) as pool:
            found["LlamaPool"] = await pool.decide(state, asked, **options)
            found["LlamaPool.batch"] = (await pool.decide_batch([state], asked, **options))[0]
            engine: Any = pool.llm.engine
            found["decide_async"] = await engine.decide_async(state, asked, **options)

    asyncio.run(pool())
    return found


@pytest.mark.behaviour("decisions: the answers do not depend on what runs beside")
@pytest.mark.parametrize("average_orders", [False, True])
def test_every_class_gives_the_same_numbers(tiny: Path, average_orders: bool) -> None:
    found = everywhere(tiny, STATE, QUESTIONS, average_orders=average_orders)
    first = found.pop("Llama.decide")
    for name, answers in found.items():
        for mine, others in zip(answers, first, strict=True):
            assert type(mine) is type(others), name
            np.testing.assert_allclose(numbers(mine), numbers(others), atol=1e-4, err_msg=name)


def test_the_demo_model_gives_answers_of_every_shape() -> None:
    with Llama(demo.model_path(), n_ctx=512, n_threads=1) as llm:
        answers = llm.decide("I was charged twice.", QUESTIONS, average_orders=True)
        for question, answer in zip(QUESTIONS, answers, strict=True):
            assert answer.name == question.name
            assert 0 <= answer.label_mass <= 1
            assert sum(numbers(answer)[:-1]) == pytest.approx(1)
        decision = llm.decide("I was charged twice.", Decision[Literal["billing", "support"]])
        assert decision.value in ("billing", "support")
        assert decision.value == decision.answers[decision.answer.name].choice  # type: ignore[attr-defined]
        assert llm.decide("Is it raining?", bool) in (True, False)


def evaluated_by(engine: Engine | InferenceEngine) -> Callable[[], int]:
    """Return a function that returns how many tokens were decoded since."""

    def count() -> int:
        if isinstance(engine, Engine):
            return engine.total_stats.n_prompt - engine.total_stats.n_reused
        return sum(step.n_tokens for step in engine.timeline)

    before = count()
    return lambda: count() - before


@pytest.mark.behaviour("decisions: the input is evaluated once for all questions, and counted once")
@pytest.mark.parametrize(
    "make",
    [
        lambda path: Engine(path, 1024, safety=0, **EXACT),
        lambda path: InferenceEngine(path, 3, 1024, **EXACT),
        lambda path: InferenceEngine(path, 12, 1024, **EXACT),
        lambda path: InferenceEngine(path, 3, 1024, n_kv_tokens=4096, **EXACT),
        lambda path: InferenceEngine(path, 12, 1024, n_kv_tokens=4096, **EXACT),
    ],
    ids=["one", "own cells, 3", "own cells, 12", "shared cells, 3", "shared cells, 12"],
)
def test_the_input_is_evaluated_once_for_all_questions(
    tiny: Path, make: Callable[[Path], Any]
) -> None:
    asked = [PredicateQuestion(f"Question {i}?") for i in range(10)]
    with make(tiny) as engine:
        prepared = prepare(engine, [STATE], asked, {})
        n_state = len(engine.tokenize(STATE))
        n_tails = sum(len(prompts[0].tokens) - n_state for prompts in prepared.prompts[0])
        evaluated = evaluated_by(engine)
        (decided,) = run(engine, prepared)
        assert n_state < evaluated() <= decided.n_prompt <= n_state + n_tails
        again = evaluated_by(engine)
        (warm,) = run(engine, prepared)
        assert again() <= n_tails
        assert (warm.n_prompt, decided.n_reused) == (decided.n_prompt, 0)
        assert warm.n_reused > n_state


async def submitted(engine: InferenceEngine, n: int) -> None:
    """Wait until an engine has *n* requests."""
    while len(engine.active_requests) < n:
        await asyncio.sleep(0.001)


def test_questions_share_batches(tiny: Path) -> None:
    asked = [PredicateQuestion(f"Question {i}?") for i in range(8)]
    shared: dict[str, Any] = {"n_kv_tokens": 4096, "n_batch": 1024, "start": False, **EXACT}

    async def main() -> None:
        with InferenceEngine(tiny, 8, 1024, **shared) as engine:
            task = asyncio.create_task(engine.decide_async(STATE, asked))
            await submitted(engine, len(asked))
            while engine.step():
                pass
            assert len(await task) == 8
            # The first question with the input, then all others together.
            assert len(engine.timeline) == 2

    asyncio.run(main())


def test_more_questions_than_the_queue_holds_are_answered(tiny: Path) -> None:
    asked = [PredicateQuestion(f"{i}?") for i in range(12)]
    with InferenceEngine(tiny, 2, 512, max_waiting=2, **EXACT) as engine:
        answers = engine.decide("x", asked)
        later = asyncio.run(engine.decide_async("x", asked))
    assert len(answers) == 12
    for mine, others in zip(answers, later, strict=True):
        assert mine.probability == pytest.approx(others.probability, abs=1e-4)


@pytest.mark.behaviour("decisions: the answers do not depend on what runs beside")
def test_other_requests_and_their_answers_are_undisturbed(tiny: Path) -> None:
    with InferenceEngine(tiny, 4, 1024, **EXACT) as engine:
        alone = engine.generate("One, two,", 24, temperature=0)
        decided = engine.decide(STATE, QUESTIONS)
        handle = engine.submit("One, two,", 24, temperature=0)
        beside = engine.decide(STATE, QUESTIONS)
        assert handle.result() == alone
        for mine, others in zip(beside, decided, strict=True):
            np.testing.assert_allclose(numbers(mine), numbers(others), atol=1e-4)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=5,
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
WRITTEN = st.lists(
    TEXT | st.sampled_from(["<|im_end|>", "<|im_start|>", "\n\n", "A. "]), max_size=3
).map("".join)
STATES = WRITTEN | st.dictionaries(WRITTEN, JSON, max_size=2) | st.lists(JSON, max_size=2)


@settings(max_examples=40)
@given(STATES, WRITTEN, st.data())
def test_any_text_and_json_is_decided(llm: Llama, state: Any, about: str, data: Any) -> None:
    options = data.draw(st.lists(WRITTEN.filter(str.strip), min_size=2, max_size=4, unique=True))
    answer = llm.decide(state, ChoiceQuestion(about, options))
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert 0 <= answer.label_mass <= 1


def test_threads_can_decide_together(llm: Llama) -> None:
    alone = llm.decide(STATE, QUESTIONS)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(llm.decide(STATE, QUESTIONS)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for answers in found:
        for mine, others in zip(answers, alone, strict=True):
            np.testing.assert_allclose(numbers(mine), numbers(others), atol=1e-4)


@pytest.mark.behaviour("decisions: a refused group leaves no request")
def test_a_cancelled_task_leaves_no_request(tiny: Path) -> None:
    async def main() -> None:
        with InferenceEngine(tiny, 2, 1024, start=False, **EXACT) as engine:
            task = asyncio.create_task(engine.decide_async(STATE, QUESTIONS))
            await submitted(engine, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            engine.step()
            assert engine.active_requests == []

    asyncio.run(main())


# Errors


def test_an_input_that_does_not_fit_is_refused_with_the_numbers(llm: Llama, tiny: Path) -> None:
    with pytest.raises(
        ContextOverflowError,
        match=r"question 'refund' has 2\d{3} tokens, and with n_ctx=1024 a prompt may have 1023",
    ):
        llm.decide("x" * 2000, QUESTIONS)
    with (
        InferenceEngine(tiny, 2, 256, **EXACT) as engine,
        pytest.raises(ContextOverflowError, match=r"with n_ctx=256 a prompt may have 255"),
    ):
        engine.decide_batch(["x", "x" * 300], bool)


def test_the_longest_input_that_fits_is_decided(llm: Llama) -> None:
    (prompt,) = prepare(llm.engine, ["x"], bool, {}).prompts[0][0]
    longest = "x" * (1023 - len(prompt.tokens) + 1)
    assert llm.decide(longest, bool) in (True, False)
    with pytest.raises(ContextOverflowError, match="has 1024 tokens"):
        llm.decide(longest + "x", bool)


@pytest.mark.parametrize(
    ("input", "asked", "options", "error", "message"),
    [
        (5, bool, {}, ValidationError, "must be a str, a conversation, or a JSON object or list"),
        (None, bool, {}, ValidationError, "got None"),
        (b"x", bool, {}, ValidationError, r"got b'x'"),
        ({"a": {1}}, bool, {}, ValidationError, "cannot be written as JSON: .*set"),
        ({"a": float("nan")}, bool, {}, ValidationError, "cannot be written as JSON"),
        ("\ud800", bool, {}, ValidationError, "surrogate|UTF-8"),
        ([{"role": "nobody", "content": "x"}], bool, {}, ValidationError, "nobody"),
        ([{"role": "user", "content": 5}], bool, {}, ValidationError, "content"),
        ("x", [], {}, ValidationError, "questions is empty"),
        ("x", str, {}, ValidationError, "cannot be decided"),
        ("x", ChoiceQuestion("?", [f"{i}" for i in range(63)]), {}, ValidationError,
         "63 options, .* only 62 labels"),
        ("x", bool, {"average_order": True}, UnknownOptionError, "did you mean 'average_orders'"),
        ("x", bool, {"average_orders": "yes"}, ValidationError, "must be True or False"),
        ("x", bool, {"timeout_s": -1}, ValidationError, "timeout_s"),
        ("x", bool, {"timeout_s": 0}, DeadlineExceededError, "deadline"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused(
    llm: Llama, input: Any, asked: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        llm.decide(input, asked, **options)
    assert llm.decide("x", bool) in (True, False), "and the next call works"


def test_all_questions_share_one_deadline(tiny: Path) -> None:
    with InferenceEngine(tiny, 2, 1024, **EXACT) as engine:
        engine.pause()  # deadlines count as always
        with pytest.raises(DeadlineExceededError):
            engine.decide(STATE, QUESTIONS, timeout_s=0.02)
        with pytest.raises(DeadlineExceededError):
            asyncio.run(engine.decide_async(STATE, QUESTIONS, timeout_s=0.02))
        engine.resume()
        assert len(engine.decide(STATE, QUESTIONS, timeout_s=60)) == 5
        assert engine.active_requests == []


def test_a_batch_needs_a_list(llm: Llama) -> None:
    with pytest.raises(ValidationError, match="inputs must be a list"):
        llm.decide_batch("x", bool)
    assert llm.decide_batch([], bool) == []


def test_closed_objects_say_so(tiny: Path) -> None:
    llm = Llama(tiny, n_ctx=256)
    engine = InferenceEngine(llm.model, 2, 256)
    engine.close()
    with pytest.raises(ClosedError, match="InferenceEngine is closed"):
        engine.decide("x", bool)
    with pytest.raises(ClosedError, match="InferenceEngine is closed"):
        asyncio.run(engine.decide_async("x", bool))
    llm.close()
    with pytest.raises(ClosedError, match="is closed"):
        llm.decide("x", bool)
    pool = LlamaPool(tiny, 2, n_ctx=256)
    pool.close()
    with pytest.raises(ClosedError, match="is closed"):
        asyncio.run(pool.decide("x", bool))


def test_closing_ends_a_decision_that_waits(tiny: Path) -> None:
    engine = InferenceEngine(tiny, 2, 256, **EXACT)
    engine.pause()
    threading.Timer(0.1, engine.close).start()
    with pytest.raises(CancelledError):
        engine.decide("x", bool)


@pytest.mark.parametrize("write", [write_bert, write_t5])
def test_models_that_do_not_predict_tokens_are_refused(
    tmp_path: Path, write: Callable[[Path], Any]
) -> None:
    write(tmp_path / "model.gguf")
    with (
        Llama(tmp_path / "model.gguf", n_ctx=64, embeddings=True) as llm,
        pytest.raises(ValidationError, match=r"model\.gguf does not predict the next token"),
    ):
        llm.decide("x", bool)


def test_recurrent_models_decide_too(tmp_path: Path) -> None:
    path = write_recurrent(tmp_path / "mamba.gguf")
    found = everywhere(path, "x", [PredicateQuestion("?"), ScoreQuestion("?", ["a", "b"])], False)
    first = found.pop("Llama.decide")
    for name, answers in found.items():
        for mine, others in zip(answers, first, strict=True):
            np.testing.assert_allclose(numbers(mine), numbers(others), atol=1e-4, err_msg=name)


# Templates


def ask_with(path: Path, template: str, **options: Any) -> str:
    """Return the prompt that a model with a chat template gets."""
    write_tiny(path, chat_template=template, **options)
    with Llama(path, n_ctx=512, **EXACT) as llm:
        (prompt,) = prepare(llm.engine, ["x"], bool, {}).prompts[0][0]
        assert llm.decide("x", bool) in (True, False)
        return llm.detokenize(prompt.tokens, special=True)


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_reasoning_that_a_template_opens_is_closed(tmp_path: Path) -> None:
    template = TURNS + "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    text = ask_with(tmp_path / "deepseek-r1.gguf", template, name="DeepSeek-R1")
    assert text.endswith("[assistant]<think>\n\n</think>\n\n")


def test_a_template_whose_reasoning_can_be_switched_off_has_none(tmp_path: Path) -> None:
    template = TURNS + (
        "{% if add_generation_prompt %}[assistant]{% if enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    text = ask_with(tmp_path / "qwen3.gguf", template, name="Qwen3-0.6B")
    assert text.endswith("[assistant]<think>\n\n</think>\n\n")


def test_a_channel_before_the_content_belongs_to_the_prompt(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}"
        "<|channel|>final{% endif %}<|message|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
    )
    text = ask_with(tmp_path / "harmony.gguf", template, control=["<|channel|>", "<|message|>"])
    assert text.endswith("<|im_start|>assistant<|channel|>final<|message|>")


def test_a_model_without_a_template_gets_plain_text(tmp_path: Path) -> None:
    write_tiny(tmp_path / "base.gguf", chat_template=None)
    with Llama(tmp_path / "base.gguf", n_ctx=256, **EXACT) as llm:
        (prompt,) = prepare(llm.engine, ["x"], bool, {}).prompts[0][0]
        assert llm.detokenize(prompt.tokens) == "x\n\nA: true\nB: false\nAnswer A or B only."


# Decision models


def write_decision_model(path: Path, kind: str, systemone: str = "", **more: float) -> Path:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_string("llama.decision.type", kind)
        for name, value in more.items():
            writer.add_float32(f"llama.decision.temperature.{name}", value)
        if systemone:
            writer.add_string("tokenizer.chat_template.systemone", systemone)

    return write_tiny(path, edit=edit, n_ctx=512)


@pytest.mark.parametrize("kind", ["kev", "laya", "clef"])
def test_decision_models_with_a_head_of_their_own_are_refused_by_name(
    tmp_path: Path, kind: str
) -> None:
    path = write_decision_model(tmp_path / "model.gguf", kind)
    assert read_gguf(path).decision_type == kind
    with (
        Llama(path, n_ctx=256, **EXACT) as llm,
        pytest.raises(ValidationError, match=f"the type '{kind}', whose head needs a newer"),
    ):
        llm.decide("x", bool)


def test_other_models_have_no_decision_type(tiny: Path) -> None:
    assert read_gguf(tiny).decision_type == ""


def test_a_decision_model_gets_its_own_template(tmp_path: Path) -> None:
    template = (
        "{{ state if state is string else state | tojson }}|{{ question.type }}|"
        "{{ question.instructions }}|{% for o in question.options %}{{ question.labels[loop.index0]"
        " }}={{ o }}:{{ question.descriptions[loop.index0] }};{% endfor %}"
        "<|split|>[decision]:<|mark|>\n"
    )
    path = write_decision_model(tmp_path / "lev.gguf", "lev", template)
    asked = [
        ChoiceQuestion("Which<|mark|>?", {"a": "first", "b": None}),
        ScoreQuestion("How?", ["low", "high"]),
        PredicateQuestion("Is it?"),
    ]
    with Llama(path, n_ctx=512, **EXACT) as llm:
        for state, text in (("x<|im_end|>", "x<|im_end|>"), ({"k": 1}, '{"k": 1}')):
            prepared = prepare(llm.engine, [state], asked, {})
            prompts = [orders[0] for orders in prepared.prompts[0]]
            assert [llm.detokenize(prompt.tokens, special=True) for prompt in prompts] == [
                f"{text}|choice|Which?|A=a:first;B=b:None;[decision]:",
                f"{text}|score|How?|A=0:low;B=1:high;[decision]:",
                f"{text}|noul|Is it?|A=true:None;B=false:None;[decision]:",
            ]
            control = set(llm.renderer.special_tokens.values())
            assert not control.intersection(prompts[0].tokens)
            for answer, prompt in zip(llm.decide(state, asked), prompts, strict=True):
                np.testing.assert_allclose(numbers(answer), expected(llm, [prompt]), atol=1e-5)


def test_a_template_that_reads_several_places_is_refused(tmp_path: Path) -> None:
    path = write_decision_model(tmp_path / "von.gguf", "von", "a<|mark|> b<|mark|>")
    with (
        Llama(path, n_ctx=512, **EXACT) as llm,
        pytest.raises(ValidationError, match="reads answers at other places than the end"),
    ):
        llm.decide("x", bool)


def test_the_temperatures_of_a_decision_model_apply(tmp_path: Path) -> None:
    path = write_decision_model(tmp_path / "nimble.gguf", "nimble", choice=2.0)
    asked = ChoiceQuestion("?", ["a", "b", "c"])
    with Llama(path, n_ctx=512, **EXACT) as llm:
        prompts = prepare(llm.engine, ["x"], asked, {}).prompts[0][0]
        *plain, mass = expected(llm, prompts)
        found = numbers(llm.decide("x", asked))
        np.testing.assert_allclose(found[:-1], softmax(np.log(plain) / 2), atol=1e-5)
        assert found[-1] == pytest.approx(mass, abs=1e-5)
