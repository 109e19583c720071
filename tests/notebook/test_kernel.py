"""What only a real kernel shows: updates of an output, the stop button, memory."""

from __future__ import annotations

import re

import pytest
from support.notebooks import Kernel, Message
from support.tiny_gguf import write_tiny

N_CTX = 32768  # a prompt that fills it takes seconds


@pytest.fixture(scope="module")
def endless(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """The kernel with `path` of a model of random weights, whose answers do not end."""
    path = write_tiny(tmp_path_factory.mktemp("models") / "endless.gguf", n_ctx=N_CTX)
    assert kernel.run(f"path = {str(path)!r}") == "ok"
    assert kernel.run("%llama {path} -c 0 -t 1 -ub 128 -fa off --ignore-eos") == "ok"
    return kernel


def displayed(message: Message) -> str:
    """Return the text that a message shows; empty if it shows nothing."""
    return str(message["content"].get("data", {}).get("text/plain", ""))


def test_an_answer_appears_while_it_is_generated(endless: Kernel) -> None:
    messages: list[Message] = []
    assert endless.run("%%llama -n 1500\nHello", messages.append) == "ok"
    shown = [m for m in messages if m["msg_type"] in ("display_data", "update_display_data")]
    ids = {m["content"]["transient"]["display_id"] for m in shown}
    assert len(ids) == 1, "every update replaces the same output"
    assert [m["msg_type"] for m in shown].count("display_data") == 1
    assert len(shown) > 2
    assert "answer 1,500 tokens" in displayed(shown[-1])


def test_no_stream_shows_the_answer_once_it_is_complete(endless: Kernel) -> None:
    messages: list[Message] = []
    assert endless.run("%%llama -n 300 --no-stream\nHello", messages.append) == "ok"
    shown = [m for m in messages if m["msg_type"] == "update_display_data"]
    assert len(shown) == 1


def interrupted(kernel: Kernel, cell: str, kind: str) -> list[Message]:
    """Run a cell, and press the stop button after the first message of a kind; return all.

    An update counts when it shows text of the answer.
    """
    messages: list[Message] = []
    pressed: list[Message] = []

    def press(message: Message) -> None:
        messages.append(message)
        is_empty = kind == "update_display_data" and not displayed(message)
        if message["msg_type"] == kind and not is_empty and not pressed:
            pressed.append(message)
            kernel.manager.interrupt_kernel()

    assert kernel.run(cell, press) == "KeyboardInterrupt"
    assert pressed
    return messages


def test_the_stop_button_ends_a_prompt_and_the_model_works_afterwards(endless: Kernel) -> None:
    # The first output comes just before the prompt is evaluated.
    interrupted(endless, "%%llama --as kept\n" + "a" * (N_CTX - 100), "display_data")
    assert endless.text("kept['choices'][0]['message']['content']") == "''"
    assert endless.run("%%llama -n 5 --as after\nHello") == "ok"
    assert endless.text("after['usage']['completion_tokens']") == "5"


def test_the_stop_button_ends_an_answer_and_keeps_its_text(endless: Kernel) -> None:
    messages = interrupted(endless, "%%llama --as kept\nHello", "update_display_data")
    assert endless.text("len(kept['choices'][0]['message']['content']) > 0") == "True"
    assert endless.text("kept['choices'][0]['finish_reason'] is None") == "True"
    shown = [m for m in messages if m["msg_type"] == "update_display_data"][-1]
    assert "stopped before its end" in shown["content"]["data"]["text/html"]
    (error,) = (m["content"] for m in messages if m["msg_type"] == "error")
    assert error["traceback"] == ["KeyboardInterrupt: stopped"], "no frames of this package"
    assert endless.run("%%llama -n 5 --as after\nHello") == "ok"
    assert endless.text("after['usage']['completion_tokens']") == "5"


def test_the_stop_button_ends_a_call_of_the_python_api(endless: Kernel) -> None:
    call = "llm.create_completion('Hello', max_tokens={}, ignore_eos=True)"
    interrupted(endless, f"print('now', flush=True)\n{call.format(None)}", "stream")
    assert endless.text(f"{call.format(5)}['usage']['completion_tokens']") == "5"


def test_loading_again_ten_times_takes_no_more_memory(endless: Kernel) -> None:
    cell = "%llama {path} -c 0 -t 1 -ub 128 -fa off --ignore-eos"
    rss = "__import__('psutil').Process().memory_info().rss"
    for _ in range(2):
        assert endless.run(cell) == "ok"
    before = int(endless.text(rss))
    for _ in range(10):
        assert endless.run(cell) == "ok"
    # One model, never closed, would be 50 MB.
    assert int(endless.text(rss)) - before < 60e6


def test_a_load_shows_one_output_which_ends_as_the_facts_of_the_model(endless: Kernel) -> None:
    messages: list[Message] = []
    assert endless.run("%llama demo -c 512 --as small", messages.append) == "ok"
    shown = [m for m in messages if m["msg_type"] in ("display_data", "update_display_data")]
    assert [m["msg_type"] for m in messages if m["msg_type"] == "stream"] == []
    assert re.search(r"model: demo\.gguf\n.*\n  context: 512 tokens", displayed(shown[-1]))
