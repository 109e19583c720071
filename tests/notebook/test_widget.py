"""TokenWidget without a browser: what it shows, and what the messages of its front end do."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rounding import EXACT

from llama_cffi import Llama, LlamaError, Model, ValidationError
from llama_cffi.demo import model_path
from llama_cffi.generation.cancellation import on_cancel
from llama_cffi.notebook import widget as module
from llama_cffi.notebook.regeneration import Regeneration
from llama_cffi.notebook.widget import TokenWidget

STORY = "Tell me a story about a cat."
WARM: Any = {"temperature": 1.2, "seed": 5}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(model_path()) as model:
        yield model


@pytest.fixture(scope="module", params=[1, 2], ids=["Engine", "InferenceEngine"])
def llm(model: Model, request: pytest.FixtureRequest) -> Iterator[Llama]:
    with Llama(model, n_ctx=512, n_threads=1, n_parallel=request.param, **EXACT) as llm:
        yield llm


@pytest.fixture
def make(llm: Llama) -> Iterator[Callable[..., TokenWidget]]:
    made = []

    def make(prompt: Any = STORY, **options: Any) -> TokenWidget:
        widget = TokenWidget(llm, prompt, **{"max_tokens": 24, "n_alternatives": 4, **options})
        made.append(widget)
        return widget

    yield make
    for widget in made:
        widget.close()


def send(widget: TokenWidget, **content: Any) -> None:
    """Deliver a message as a front end sends it."""
    widget._handle_custom_msg(content, [])  # type: ignore[no-untyped-call]


def ids(widget: TokenWidget) -> list[int]:
    return [token.chosen.token for token in widget._answer.tokens]


def test_the_answer_is_that_of_a_chat_completion(make: Any, llm: Llama) -> None:
    widget = make(**WARM)
    assert widget.wait(60)
    answer: Any = llm.create_chat_completion(
        [{"role": "user", "content": STORY}],
        max_tokens=24, logprobs=True, top_logprobs=4, **WARM,
    )["choices"][0]  # fmt: skip
    content = answer["logprobs"]["content"]
    assert (widget.status, widget.message) == ("done", "")
    assert widget.text == answer["message"]["content"]
    assert [token["text"] for token in widget.tokens] == [entry["token"] for entry in content]
    for token, entry in zip(widget._answer.tokens, content, strict=True):
        top = [other["token"] for other in entry["top_logprobs"]]
        assert [each.text for each in token.alternatives[:4]] == top
        assert token.chosen.text == entry["token"]  # also where it is none of the four
        assert 0 < token.chosen.probability <= 1


def test_another_choice_continues_the_answer_from_there(make: Any, llm: Llama) -> None:
    widget = make(temperature=0)
    widget.wait()
    before, shown = ids(widget), widget._answer.tokens[3]
    other = next(i for i in range(len(shown.alternatives)) if i != shown.choice)
    send(widget, type="choose", index=3, choice=other)
    widget.wait()
    after = ids(widget)
    assert after[:3] == before[:3]
    assert after[3] == shown.alternatives[other].token
    assert widget._answer.tokens[3].alternatives == shown.alternatives
    # What follows is what the model says after these tokens.
    prompt = llm.chat.prepare([{"role": "user", "content": STORY}], {}).request.tokens
    step: Any = llm.engine.steps([*prompt, *after[:4]], len(after) - 4, temperature=0, logprobs=0)
    assert after[4:] == [each.token for each in step if each.token is not None]
    stats: Any = llm.engine.stats
    if hasattr(stats, "n_reused"):
        assert stats.n_reused >= len(prompt) + 3


def test_the_same_seed_gives_the_same_answer_again(make: Any) -> None:
    widget = make(**WARM)
    widget.wait()
    first = widget.text
    send(widget, type="regenerate")
    widget.wait()
    assert widget.text == first
    free = make(temperature=1.5, max_tokens=8)
    texts = set()
    for _ in range(6):
        free.wait()
        texts.add(free.text)
        free.regenerate()
    assert len(texts) > 1


def test_choosing_the_end_of_the_answer_ends_it(make: Any, llm: Llama) -> None:
    widget = make(temperature=0)
    widget.wait()
    end = llm.model.vocab.eot or llm.model.vocab.eos
    token = widget._answer.tokens[2]
    alternatives = (*token.alternatives, token.alternatives[0]._replace(token=end))
    widget._answer.tokens[2] = token._replace(alternatives=alternatives)
    widget.choose(2, len(alternatives) - 1)
    widget.wait()
    assert (len(widget.tokens), widget.status) == (3, "done")


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released when a generation has three tokens; it waits there until it is cancelled."""
    reached = threading.Semaphore(0)
    run = Regeneration.run

    def paused(answer: Regeneration) -> Iterator[Any]:
        cancelled = threading.Event()
        on_cancel(lambda reason: cancelled.set())
        for token in run(answer):
            yield token
            if len(answer.tokens) == 3:
                reached.release()
                cancelled.wait(60)

    monkeypatch.setattr(Regeneration, "run", paused)
    return reached


def test_stop_keeps_the_tokens_until_then_and_leaves_the_model_usable(
    make: Any, llm: Llama, third: threading.Semaphore
) -> None:
    widget = make(max_tokens=450, ignore_eos=True)  # an InferenceEngine runs ahead
    assert third.acquire(timeout=60)
    assert (widget.status, widget.wait(0)) == ("running", False)
    send(widget, type="stop")
    assert (widget.status, widget.message) == ("stopped", "")
    assert 3 <= len(widget.tokens) == len(widget._answer.tokens) < 450
    assert llm.parse("What is 17 + 25?", int, temperature=0) == 42
    send(widget, type="stop")
    assert widget.status == "stopped"
    # Choosing while tokens come stops these.
    widget.regenerate()
    assert third.acquire(timeout=60)
    before = widget._answer.tokens[0]
    widget.choose(0, (before.choice + 1) % 4)
    assert third.acquire(timeout=60)
    assert (widget.status, widget._answer.tokens[0].chosen != before.chosen) == ("running", True)


def test_it_is_shown_as_text_too(make: Any) -> None:
    widget = make("What is 17 + 25?", temperature=0)
    widget.wait()
    assert repr(widget) == "<TokenWidget done: '42'>"
    assert widget._repr_mimebundle_()[0]["text/plain"] == repr(widget)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "choose", "index": 999, "choice": 0},
        {"type": "choose", "index": 0, "choice": -1},
        {"type": "choose", "index": "0", "choice": None},
        {"type": "choose"},
        {"type": "unknown"},
        {},
        None,
        ["choose"],
    ],
)
def test_a_wrong_message_changes_nothing(make: Any, content: Any) -> None:
    widget = make(temperature=0, max_tokens=4)
    widget.wait()
    before = ids(widget)
    widget._handle_custom_msg(content, [])
    assert (ids(widget), widget.status) == (before, "done")


def test_an_error_is_shown(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widget = make(temperature=0, max_tokens=4)
    widget.wait()

    def fail(_: Regeneration) -> Iterator[Any]:
        raise LlamaError("no more memory")
        yield

    monkeypatch.setattr(Regeneration, "run", fail)
    widget.regenerate()
    widget.wait()
    assert (widget.status, widget.message, widget.tokens) == ("error", "no more memory", [])


def test_wrong_arguments_are_refused(llm: Llama) -> None:
    for options, message in (
        ({"n_alternatives": 0}, "n_alternatives"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"grammar": "root ::= [a-z]"}, "grammar cannot be continued from the middle"),
        ({"temprature": 1}, "temperature"),
    ):
        with pytest.raises(ValidationError, match=message):
            TokenWidget(llm, "Hi", **options)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="llm"):
        TokenWidget("model.gguf", "Hi")  # type: ignore[arg-type]


def test_invisible_characters_are_drawn() -> None:
    assert [module._drawn(char) for char in "a \n\t\x1b\u202e"] == [
        "a", " ", "⏎\n", "\t", "\\x1b", "\\u202e",
    ]  # fmt: skip


def test_the_front_end_is_one_module_without_anything_from_elsewhere() -> None:
    source = (ROOT / "llama_cffi" / "notebook" / "widget.js").read_text("utf-8")
    assert str(TokenWidget._esm) == source
    assert "export default { render }" in source
    for forbidden in (r"https?:", r"\bimport\b", "innerHTML", "outerHTML", r"\beval\b", "cdn"):
        assert not re.search(forbidden, source), forbidden
    for named in ("tokens", "status", "message"):
        assert f'"change:{named}"' in source
        assert TokenWidget.class_traits()[named].metadata["sync"]
    assert '"llama_cffi.notebook" = ["*.js"]' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_a_program_may_end_while_tokens_come() -> None:
    code = """
        from llama_cffi import Llama
        from llama_cffi.demo import model_path
        from llama_cffi.notebook.widget import TokenWidget
        llm = Llama(model_path(), n_ctx=512, n_threads=1)
        widget = TokenWidget(llm, "Hi", max_tokens=400, ignore_eos=True)
        while not widget._answer.tokens:
            pass
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_anywidget_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['anywidget'] = None; import llama_cffi.notebook.widget"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("the widget needs anywidget: pip install 'llama-cffi[notebook]'\n")
