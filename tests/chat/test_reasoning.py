"""Reasoning and content, however the text is split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cffi.chat.reasoning import ReasoningSplitter, opens_thinking
from llama_cffi.errors import ValidationError

THINK = ("<think>", "</think>")


def split(chunks: list[str], markers: tuple[str, str] = THINK, starts_open: bool = False) -> tuple:
    splitter = ReasoningSplitter(*markers, starts_open=starts_open)
    found = [part for text in chunks for part in splitter.push(text)] + splitter.finish()
    assert all(part.text for part in found)
    kinds = ("reasoning", "content")
    return tuple("".join(p.text for p in found if p.kind == kind) for kind in kinds)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", "")),
        ("Hello", ("", "Hello")),
        (" \n Hello \n", ("", " \n Hello \n")),
        ("<think>\nI am\n thinking \n\n</think>\n\nHello\n", ("I am\n thinking", "Hello\n")),
        ("<think>\n\n</think>\n\nHello", ("", "Hello")),
        ("\n<think>a</think>b", ("a", "b")),
        ("<think>cut off", ("cut off", "")),
        ("<think>a</thin", ("a</thin", "")),
        ("<thin", ("", "<thin")),
        ("  ", ("", "  ")),
        ("A <think> tag</think> is a tag", ("", "A <think> tag</think> is a tag")),
        ("<think>a</think>b<think>c</think>", ("a", "b<think>c</think>")),
    ],
)
def test_reasoning_at_the_beginning(text: str, expected: tuple[str, str]) -> None:
    assert split([text]) == expected
    assert split(list(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I think</think>Hello", ("I think", "Hello")),
        ("\nI think\n</think>\n\nHello", ("I think", "Hello")),
        ("<think>\nagain</think>Hello", ("again", "Hello")),
        ("never ends", ("never ends", "")),
    ],
)
def test_reasoning_that_the_template_opened(text: str, expected: tuple[str, str]) -> None:
    assert split([text], starts_open=True) == expected
    assert split(list(text), starts_open=True) == expected


@pytest.mark.parametrize(
    "markers",
    [
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|channel|>analysis<|message|>", "<|end|>"),
    ],
)
def test_other_markers(markers: tuple[str, str]) -> None:
    assert split(list(f"{markers[0]}a {markers[1]} b"), markers) == ("a", "b")


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", " ", "\n", "a", "<", "é"]),
        max_size=12,
    ),
    st.booleans(),
)
def test_any_split_gives_the_same(parts: list[str], starts_open: bool) -> None:
    text = "".join(parts)
    whole = split([text], starts_open=starts_open)
    assert split(parts, starts_open=starts_open) == whole
    assert split(list(text), starts_open=starts_open) == whole


def test_parts_come_as_soon_as_they_are_certain() -> None:
    splitter = ReasoningSplitter(*THINK)
    assert splitter.push("<think>one") == [("reasoning", "one")]
    assert splitter.is_open
    assert splitter.push(" ") == []
    assert splitter.push("two<") == [("reasoning", " two")]
    assert splitter.push("/think>") == []
    assert not splitter.is_open
    assert splitter.push(" x ") == [("content", "x ")]


def test_budget_counts_reasoning_tokens() -> None:
    splitter = ReasoningSplitter(*THINK, budget=3)
    splitter.push("<think>")
    for text in ("a", "b"):
        splitter.push(text)
        assert not splitter.budget_is_spent
    splitter.push("c", n_tokens=1)
    assert splitter.spent == 3
    assert splitter.budget_is_spent
    splitter.push("</think>")
    assert not splitter.budget_is_spent
    splitter.push("answer", n_tokens=5)
    assert splitter.spent == 4


def test_a_budget_of_zero_is_spent_immediately() -> None:
    assert ReasoningSplitter(*THINK, starts_open=True, budget=0).budget_is_spent
    assert not ReasoningSplitter(*THINK, budget=0).budget_is_spent


def test_a_prompt_that_opens_reasoning() -> None:
    assert opens_thinking("<|im_start|>assistant\n<think>\n", "<think>")
    assert opens_thinking("<|turn>model\n<|channel>thought\n", "<|channel>thought\n")
    assert not opens_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n", "<think>")
    assert not opens_thinking("<|im_start|>assistant\n", "<think>")


def test_bad_arguments() -> None:
    with pytest.raises(ValidationError, match="empty"):
        ReasoningSplitter("", "</think>")
    with pytest.raises(ValidationError, match="-1"):
        ReasoningSplitter(*THINK, budget=-1)
