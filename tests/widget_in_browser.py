"""TokenWidget's front end in headless Chromium, with the real widget and the demo model behind it.

`nox -s page` runs this; see page_in_browser.py. A small model stands in for anywidget's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from support.chromium import chromium

from llama_cffi import Llama
from llama_cffi.demo import model_path
from llama_cffi.notebook.widget import TokenWidget

HTML = "<!doctype html><meta charset=utf-8><title>cell</title><body style='{style}'>"
LIGHT = "font: 14px sans-serif; margin: 16px; color: #111; background: #fff"
DARK = "font: 14px sans-serif; margin: 16px; color: #ddd; background: #1e1e1e; color-scheme: dark"
# anywidget's interface of a model, and what sends its messages to Python.
START = """async ([source, state, inShadow]) => {
  const blob = new Blob([source], { type: "text/javascript" });
  const { default: widget } = await import(URL.createObjectURL(blob));
  const listeners = {};
  const model = {
    get: (name) => state[name],
    on: (event, call) => (listeners[event] ??= new Set()).add(call),
    off: (event, call) => listeners[event]?.delete(call),
    send: (content) => window.toPython(content),
  };
  window.update = (changes) => {
    for (const [name, value] of Object.entries(changes)) {
      if (JSON.stringify(state[name]) === JSON.stringify(value)) continue;
      state[name] = value;
      for (const call of listeners[`change:${name}`] ?? []) call();
    }
  };
  window.listeners = listeners;
  const el = inShadow ? document.body.attachShadow({ mode: "open" }) : document.body;
  window.remove = widget.render({ model, el });
  window.focused = () => el.activeElement ?? document.activeElement;
}"""


@pytest.fixture(scope="session")
def llm() -> Iterator[Llama]:
    with Llama(model_path(), n_ctx=512, n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


class Cell:
    """A page with a widget; `sync` does what a kernel's messages do."""

    def __init__(self, page: Page, widget: TokenWidget, in_shadow: bool = False) -> None:
        self.page, self.widget = page, widget
        self.sent: list[Any] = []
        page.expose_function("toPython", lambda content: self.sent.append(content))
        page.evaluate(START, [str(widget._esm), self.state, in_shadow])

    @property
    def state(self) -> dict[str, Any]:
        names = ("tokens", "status", "message")
        return {name: getattr(self.widget, name) for name in names}

    def sync(self) -> None:
        """Deliver what the page has sent, and the state to the page, until nothing runs."""
        while True:
            self.page.wait_for_timeout(10)
            while self.sent:
                self.widget._handle_custom_msg(self.sent.pop(0), [])  # type: ignore[no-untyped-call]
            ended = self.widget.wait(0.02)
            self.page.evaluate("(changes) => window.update(changes)", self.state)
            if ended:
                return

    def tokens(self) -> list[str]:
        return self.page.locator(".token").all_text_contents()

    def focused(self) -> str:
        found = self.page.evaluate("focused().getAttribute('aria-label')")
        return str(found)

    def shot(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture
def open_cell(browser: Browser, llm: Llama) -> Iterator[Callable[..., Cell]]:
    """Opens cells; errors in their consoles, and requests, fail the test."""
    contexts, widgets, errors = [], [], []

    def opened(style: str = LIGHT, in_shadow: bool = False, **options: Any) -> Cell:
        context = browser.new_context(viewport={"width": 760, "height": 420})
        contexts.append(context)
        page = context.new_page()
        page.set_content(HTML.format(style=style))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.on("request", lambda asked: asked.url.startswith("blob:") or errors.append(asked.url))
        options = {"max_tokens": 60, "n_alternatives": 6, "temperature": 1.2, "seed": 5, **options}
        widget = TokenWidget(llm, "Tell me a story about a cat.", **options)
        widgets.append(widget)
        return Cell(page, widget, in_shadow)

    yield opened
    for widget in widgets:
        widget.close()
    for context in contexts:
        context.close()
    assert errors == []


@pytest.mark.parametrize(
    ("name", "style", "in_shadow"),
    [("light", LIGHT, False), ("dark", DARK, False), ("shadow", LIGHT, True)],
)
def test_a_click_shows_the_alternatives_and_another_one_continues(
    open_cell: Callable[..., Cell], name: str, style: str, in_shadow: bool
) -> None:
    cell = open_cell(style, in_shadow)
    cell.sync()
    page, before = cell.page, cell.tokens()
    assert "".join(before).replace("⏎", "") == cell.widget.text
    expect(page.get_by_role("status")).to_have_text(f"{len(before)} tokens")
    cell.shot(f"widget-{name}")
    page.locator(".token").nth(4).click()
    menu = page.get_by_role("menu")
    expect(menu).to_be_visible()
    shown = cell.widget.tokens[4]
    items = menu.get_by_role("menuitemradio")
    assert items.count() == len(shown["alternatives"])
    checked = menu.get_by_role("menuitemradio", checked=True)
    assert checked.get_attribute("aria-label").startswith(shown["label"])  # type: ignore[union-attr]
    cell.shot(f"widget-menu-{name}")
    other = (shown["choice"] + 1) % len(shown["alternatives"])
    items.nth(other).click()
    expect(menu).to_have_count(0)
    cell.sync()
    after = cell.tokens()
    assert after[:4] == before[:4]
    assert cell.widget.tokens[4]["choice"] == other
    assert after[4:] != before[4:]
    page.locator(".token").nth(2).click()
    page.mouse.click(5, 400)
    expect(menu).to_have_count(0)


@pytest.mark.parametrize("in_shadow", [False, True])
def test_the_keyboard_is_enough(open_cell: Callable[..., Cell], in_shadow: bool) -> None:
    cell = open_cell(in_shadow=in_shadow)
    cell.sync()
    keys = cell.page.keyboard
    labels = [f"{token['label']}, " for token in cell.widget.tokens]
    keys.press("Tab")  # Stop is disabled
    assert cell.page.evaluate("focused().textContent") == "Generate again"
    keys.press("Tab")
    assert cell.focused().startswith(labels[0])
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    assert cell.focused().startswith(labels[2])
    keys.press("End")
    assert cell.focused().startswith(labels[-1])
    keys.press("Home")
    keys.press("ArrowLeft")
    assert cell.focused().startswith(labels[0])
    keys.press("ArrowRight")
    keys.press("Enter")
    token = cell.widget.tokens[1]
    options = [f"{label}, " for label, _ in token["alternatives"]]
    assert cell.focused().startswith(options[token["choice"]])
    keys.press("End")
    assert cell.focused().startswith(options[-1])
    keys.press("Escape")
    assert cell.focused().startswith(labels[1])
    keys.press(" ")
    keys.press("Home")
    if token["choice"] == 0:
        keys.press("ArrowDown")
    keys.press("Enter")
    cell.sync()
    assert cell.widget.tokens[1]["choice"] == int(token["choice"] == 0)
    assert cell.focused().startswith(f"{cell.widget.tokens[1]['label']}, ")


def test_stop_and_generate_again(open_cell: Callable[..., Cell]) -> None:
    def slow(_: object, scores: Any) -> Any:  # else it may end before the click
        time.sleep(0.005)
        return scores

    cell = open_cell(max_tokens=450, ignore_eos=True, logits_processor=[slow])
    stop = cell.page.get_by_role("button", name="Stop")
    expect(stop).to_be_enabled()
    expect(cell.page.get_by_role("status")).to_have_text("Generating …")
    while not cell.widget._answer.tokens:
        time.sleep(0.001)
    stop.click()
    cell.sync()
    n = len(cell.widget.tokens)
    assert 0 < n < 450
    expect(cell.page.get_by_role("status")).to_have_text(f"Stopped after {n} tokens")
    expect(stop).to_be_disabled()
    assert cell.page.evaluate("focused().textContent") == "Generate again"
    cell.widget._answer._max_tokens = 5
    cell.page.get_by_role("button", name="Generate again").click()
    cell.sync()
    assert len(cell.tokens()) == 5


def test_text_of_a_model_is_never_html(open_cell: Callable[..., Cell]) -> None:
    cell = open_cell()
    cell.sync()
    hostile = "<img src=x onerror=alert(1)>"
    token = {"text": hostile, "label": hostile, "p": 0.5, "choice": 0,
             "alternatives": [[hostile, 0.5]]}  # fmt: skip
    changes = {"tokens": [token], "status": "error", "message": hostile}
    cell.page.evaluate("(changes) => window.update(changes)", changes)
    cell.page.locator(".token").click()
    assert cell.tokens() == [hostile]
    assert cell.page.locator("img").count() == 0
    expect(cell.page.get_by_role("status")).to_have_text(f"Error: {hostile}")


def test_a_removed_widget_leaves_no_listener(open_cell: Callable[..., Cell]) -> None:
    cell = open_cell(max_tokens=3)
    cell.sync()
    cell.page.evaluate("window.remove()")
    assert cell.page.evaluate("Object.values(listeners).map((each) => each.size)") == [0, 0, 0]
