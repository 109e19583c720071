"""Each view says what its object says, and an object whose view fails is shown as text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from IPython.core.formatters import DisplayFormatter

from llama_cffi import (
    ChoiceQuestion,
    Decision,
    DevicePlan,
    Llama,
    MemoryPlan,
    PredicateQuestion,
    ScoreQuestion,
    get_library,
)
from llama_cffi.doctor import Check
from llama_cffi.html_repr import shown_by
from llama_cffi.notebook import views

GIB = 2**30
PLAN = MemoryPlan(
    "model.gguf", "b1", True, 4096, 2, 8192, 3, 4,
    (
        DevicePlan("CPU", weights_bytes=GIB, kv_bytes=GIB // 2, free_bytes=8 * GIB),
        DevicePlan("CUDA0", type="gpu", weights_bytes=3 * GIB, free_bytes=2 * GIB, draft_bytes=9),
    ),
    notes=("a note",),
)  # fmt: skip


def shown(value: object) -> str:
    """Return what a notebook shows."""
    data, _ = DisplayFormatter().format(value)
    assert data["text/plain"] == repr(value) or "\n" in data["text/plain"]
    return str(data["text/html"])


def test_a_memory_plan_shows_each_device_and_whether_it_fits() -> None:
    found = shown(PLAN)
    for text in (
        "does not fit",
        "RAM",
        "CUDA0",
        "1.0 GiB",
        "512.0 MiB",
        "3.0 GiB",
        "a note",
        "draft",
    ):
        assert text in found
    fits = replace(PLAN, devices=PLAN.devices[:1])
    assert "does not fit" not in shown(fits)
    assert "draft" not in shown(fits)


def test_a_library_shows_its_build_the_evidence_and_the_devices() -> None:
    loaded = get_library()
    found = shown(loaded)
    for text in (loaded.build.spec, str(loaded.abi.name), loaded.abi.verdict, "probed structs"):
        assert text in found
    assert all(device.name in found for device in loaded.devices)
    assert loaded.abi.verdict in shown(loaded.abi)
    assert loaded.build.variant in shown(loaded.build)
    assert "why " in found  # the classes that do not fit, each with its reason


def test_a_finding_shows_its_advice_and_its_evidence() -> None:
    found = shown(Check("gpu", "warn", "no <driver>", "install one", {"n": 1}))
    for text in ("gpu", "warn", "no &lt;driver&gt;", "install one", "&quot;n&quot;: 1"):
        assert text in found


def test_an_answer_shows_the_probability_of_each_option(llm: Llama) -> None:
    questions: list[Any] = [
        PredicateQuestion("The order is late.", name="late"),
        ChoiceQuestion("What is it about?", ["delivery", "payment"]),
        ScoreQuestion("How urgent is it?", ["low", "high"]),
    ]
    predicate, choice, score = llm.decide("My order never came!", questions)
    assert f"{predicate.probability:.1%}" in shown(predicate)
    assert "late" in shown(predicate)
    assert "confidence" in shown(choice)
    assert f"score {score.score:.2f}" in shown(score)
    for answer in (choice, score):
        for option, p in answer.probabilities.items():
            assert f"{option}" in shown(answer)
            assert f"{p:.1%}" in shown(answer)


def test_a_decision_shows_its_value_and_every_answer(llm: Llama) -> None:
    @dataclass
    class Ticket:
        late: bool

    found = shown(llm.decide("My order never came!", Decision[Ticket]))
    assert "Ticket(late=" in found
    assert "label mass" in found


def test_an_object_whose_view_fails_is_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "memory_plan", lambda plan: 1 / 0)
    data, _ = DisplayFormatter().format(PLAN)
    assert [*data] == ["text/plain"]


def test_every_view_that_a_class_names_exists() -> None:
    for name in ("abi", "answer", "build", "check", "decision", "library", "memory_plan"):
        assert callable(getattr(views, name))
        assert shown_by(name)
