"""`show`: responses, conversations, lists, tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llama_cffi import Llama, PredicateQuestion, ValidationError
from llama_cffi.doctor import Check
from llama_cffi.notebook import show, show_tokens

ASKED: list[Any] = [{"role": "user", "content": "What is 12 + 30?"}]


def html(value: object) -> str:
    """Return the HTML of what `show` returns."""
    return show(value)._repr_html_()


def test_a_chat_shows_answer_counts_and_probabilities(llm: Llama) -> None:
    response = llm.create_chat_completion(
        ASKED, temperature=0, logprobs=True, top_logprobs=2, max_tokens=8
    )
    found = html(response)
    assert response["choices"][0]["message"]["content"] == "42"
    assert ">42<" in found
    assert "probability" in found
    assert "prompt 18 tokens" in found
    assert repr(show(response)).startswith("42\n\n[prompt 18 tokens")
    logprobs = response["choices"][0]["logprobs"]
    assert logprobs is not None
    for token in logprobs["content"] or ():
        assert f"“{token['token']}” {100 * 2.718281828 ** token['logprob']:.2f}%" in found


def test_a_completion_and_its_choice_are_shown_alike(llm: Llama) -> None:
    response = llm.create_completion(
        "Once", max_tokens=4, logprobs=2, temperature=0, echo=True, ignore_eos=True
    )
    for value in (response, response["choices"][0]):
        assert "Once" in html(value)
        assert "no probability" in html(value)  # of the first token of the prompt
    assert "cut off by max_tokens" in html(response)


def test_several_answers_are_numbered(llm: Llama) -> None:
    response = llm.create_completion("Once", max_tokens=2, n=3)
    assert "answer 3" in html(response)


def test_reasoning_and_tool_calls_are_shown() -> None:
    message = {
        "role": "assistant", "content": None, "reasoning_content": "Let me <see>.",
        "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}],
    }  # fmt: skip
    found = html([message])
    assert "Let me &lt;see&gt;." in found
    assert "add({&quot;a&quot;: 1})" in found


def test_a_conversation_shows_each_message() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:..."}}
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]},
    ]
    found = html(talk)
    assert "Be brief." in found
    assert re.search(r">What is this\?</div><span [^>]*>\[picture\]</span>", found)
    assert repr(show(talk)) == "system: Be brief.\n\nuser: What is this?[picture]"


def test_lists_of_findings_and_of_answers_are_shown(llm: Llama) -> None:
    assert html([Check("a", "ok", "fine"), Check("b", "fail", "bad")]).count("<table") == 1
    answers = llm.decide("Yes!", [PredicateQuestion("good", name=n) for n in ("one", "two")])
    assert "<b>two</b>" in html(answers)


@pytest.mark.parametrize("value", ["text", 1, None, [], {}, {"object": "list"}, [1, 2], b"x"])
def test_what_has_no_view_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="there is no view"):
        show(value)


def test_a_prompt_is_shown_as_the_model_sees_it(llm: Llama) -> None:
    rendered = llm.renderer.render([{"role": "user", "content": "Hi <|im_end|>"}])
    found = show_tokens(llm, rendered.tokens)
    control = [t for t in rendered.tokens if llm.model.vocab.is_control(t)]
    assert found._repr_html_().count("box-shadow") == len(control) == 3
    assert repr(found).startswith(f"{len(rendered.tokens)} tokens\n<|im_start|>|user|⏎")
    assert repr(show_tokens(llm.model.vocab, "a b")).endswith("·b")


def test_an_unknown_token_is_refused(llm: Llama) -> None:
    with pytest.raises(ValidationError, match="token"):
        show_tokens(llm, [10**6])
