"""The page in headless Chromium, beside a real server with the demo model.

`nox -s page` installs playwright and runs this, with the Chromium of the system; the name keeps it
out of the ordinary run.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect
from support.chromium import chromium

from llama_cffi import LlamaPool
from llama_cffi.demo import model_path
from llama_cffi.server.http_server import HttpServer

N_CTX = 4096
CHAT = "**/v1/chat/completions"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<svg onload=alert(1)>",
    '"><iframe src="javascript:alert(1)"></iframe>',
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](  javascript:alert(1))",
    "[a](java\tscript:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](vbscript:x)",
    "[a](//elsewhere.example)",
    "[a](/v1/models)",
    "![a](javascript:alert(1))",
    "![a](https://elsewhere.example/pixel.png)",
    '[a](https://e.example "title" onclick="alert(1)")',
    '[a](https://e.example"onmouseover="alert(1))',
    "[<img src=x onerror=alert(1)>](https://e.example)",
    "`<img src=x onerror=alert(1)>`",
    "```html\n<img src=x onerror=alert(1)>\n```",
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "# <img src=x onerror=alert(1)>",
    "- <b onclick=alert(1)>x</b>",
    "> <style>*{display:none}</style>",
    "| <img src=x onerror=alert(1)> |\n|---|\n| <a href=javascript:alert(1)>x</a> |",
    "**<object data=javascript:alert(1)>**",
    "https://e.example/<script>alert(1)</script>",
    "<a href=javascript:alert(1)>x</a>",
    "&lt;img src=x onerror=alert(1)&gt;",
    "\u202e[a](javascript:alert(1))\x00<img src=x>",
    "[a][b]\n\n[b]: javascript:alert(1)",
    "<https://e.example><javascript:alert(1)>",
]
MARKDOWN = [
    ("one\ntwo\n\nthree", "P P"),
    ("# One\n## Two ##\n#hash", "H3 H4 P"),
    ("*a* **b** ***c*** ~~d~~ `e` _f_ __g__", "P EM STRONG STRONG EM DEL CODE EM STRONG"),
    ("snake_case_name 2*3*4 a * b * c", "P EM"),
    (r"\*a\* \<b>", "P"),
    ("``a ` b``", "P CODE"),
    ("- a\n- b\n  - c\n- d", "UL LI LI UL LI LI"),
    ("1. a\n2. b\n\n3. c", "OL LI LI LI"),
    ("3) a\n4) b", "OL LI LI"),
    ("- a\n\n  b\n- c", "UL LI P P LI"),
    ("* a\n  ```\n  x\n  ```", "UL LI CODE"),
    ("text\n- a", "P UL LI"),
    ("> a\n> > b\n> - c", "BLOCKQUOTE P BLOCKQUOTE P UL LI"),
    ("```python\nx = 1\n```\nafter", "CODE P"),
    ("```\nnot closed", "CODE"),
    ("~~~\n```\n~~~", "CODE"),
    ("---\n***\n_ _ _", "HR HR HR"),
    ("a | b\n--|:-:\n1 | 2\n3 | 4", "TABLE TH TH TD TD TD TD"),
    ("|a|\n|-|\n|x\\|y|", "TABLE TH TD"),
    ("a | b", "P"),
    ("[x](https://e.example/a_(b)) https://e.example/x.", "P A A"),
    ("[m](mailto:a@b.example) ![pic](https://e.example/p.png)", "P A A"),
    ("", ""),
    ("   \n\n", ""),
    ("a  \nb", "P BR"),
]
STREAMS = [
    ("data: a\n\n", ["a"]),
    ("data:a\n\ndata: b\n\n", ["a", "b"]),
    (": ping\n\ndata: a\n\n: ping\n\n", ["a"]),
    ("data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
    ("event: x\nid: 1\ndata: a\ndata: b\n\n", ["a\nb"]),
    ('data: {"t":"ä€😀"}\n\n', ['{"t":"ä€😀"}']),
    ("data: not ended", []),
    ("\n\n\n", []),
]
# The names of what a Markdown text has become, in its order.
SHOWN = """async ([text]) => {
  const { showMarkdown } = await import("/page/markdown.js");
  const box = document.createElement("div");
  showMarkdown(box, text);
  return {
    text: box.textContent,
    names: [...box.querySelectorAll("*")].map((e) => e.tagName),
    attributes: [...box.querySelectorAll("*")].flatMap((e) => e.getAttributeNames()),
    links: [...box.querySelectorAll("a")].map((e) => e.href),
  };
}"""
TAGS = {
    "P", "H3", "H4", "H5", "H6", "UL", "OL", "LI", "BLOCKQUOTE", "HR", "BR", "A", "EM", "STRONG",
    "DEL", "CODE", "PRE", "DIV", "SPAN", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "BUTTON",
    "svg", "use",
}  # fmt: skip
ATTRIBUTES = {
    "href", "target", "rel", "class", "tabindex", "role", "aria-label", "aria-hidden", "title",
    "type", "start",
}  # fmt: skip
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = [{"name": "get_weather", "parameters": CITY}]


@pytest.fixture(scope="session")
def pool() -> Iterator[LlamaPool]:
    with LlamaPool(model_path(), n_parallel=2, n_ctx=N_CTX, n_threads=1) as pool:
        yield pool


@pytest.fixture(scope="session")
def server(pool: LlamaPool) -> Iterator[HttpServer]:
    with pool.serve(aliases=["demo"]) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages of browsers of their own; errors on them, or in their console, fail the test."""
    contexts, errors = [], []

    def opened(url: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"dialog {dialog.message}"))
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.on("request", lambda asked: asked.url.startswith(url) or errors.append(asked.url))
        page.goto(url)
        return page

    expect.set_options(timeout=60_000)
    yield opened
    for context in contexts:
        context.close()
    # A refused request is in the console, too.
    assert [error for error in errors if "Failed to load resource" not in error] == []


@pytest.fixture
def page(server: HttpServer, open_page: Callable[..., Page]) -> Page:
    page = open_page(f"{server.url}/")
    expect(page.get_by_label("Model", exact=True)).to_have_value("demo")
    return page


@pytest.fixture(scope="module")
def functions(browser: Browser, server: HttpServer) -> Iterator[Page]:
    """A page whose modules are called alone."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{server.url}/")
        yield page


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Any:
    """The answers that have ended."""
    return page.locator("article.assistant:not(.running)")


def settle(page: Page, n: int = 1) -> Any:
    """Wait for *n* answers; return the last one."""
    expect(answers(page)).to_have_count(n)
    return answers(page).last


def conversation(page: Page, name: str) -> Any:
    """The button that shows it."""
    return page.get_by_role("navigation").get_by_role("button", name=name, exact=True)


def error(page: Page) -> Any:
    """The error that is shown."""
    return page.locator(".error:visible")


def requests_with(page: Page, **fields: Any) -> list[Any]:
    """Add fields to all requests that generate; return their bodies, as they are sent."""
    sent: list[Any] = []

    def send(route: Route) -> None:
        sent.append({**json.loads(route.request.post_data or ""), **fields})
        route.continue_(post_data=json.dumps(sent[-1]))

    page.route(CHAT, send)
    return sent


def settings(page: Page, **values: str) -> None:
    """Fill fields of the settings, by label."""
    if (
        page.get_by_role("button", name="Settings", exact=True).get_attribute("aria-expanded")
        == "false"
    ):
        page.get_by_role("button", name="Settings", exact=True).click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)


def is_idle(pool: LlamaPool, server: HttpServer) -> bool:
    deadline = time.monotonic() + 30
    (model,) = server._state.models
    while model.n_requests and time.monotonic() < deadline:
        time.sleep(0.01)
    return model.n_requests == 0


def test_an_answer_is_streamed_with_its_numbers(page: Page) -> None:
    sent = requests_with(page, temperature=0)
    ask(page, "What is 17 + 25?")
    answer = settle(page)
    expect(answer.locator(".content")).to_have_text("42")
    expect(answer.locator(".stats")).to_have_text(re.compile(r"2 tokens · .*first after [\d.]+ s"))
    expect(page.locator("#context")).to_have_text("20 of 4,096 tokens")
    expect(page.locator("#announcer")).to_have_text("42")
    assert sent[0]["messages"] == [{"role": "user", "content": "What is 17 + 25?"}]
    ask(page, "And what is 3 + 4?")
    settle(page, 2)
    assert [m["role"] for m in sent[1]["messages"]] == ["user", "assistant", "user"]


def test_text_appears_while_it_is_generated_and_stop_ends_it(
    page: Page, pool: LlamaPool, server: HttpServer
) -> None:
    requests_with(page, ignore_eos=True, temperature=1)
    ask(page, "Tell me a short story.")
    content = page.locator("article.assistant .content")
    expect(content).to_contain_text(re.compile(r"\w+ \w+ \w+"))
    expect(page.locator("article.running")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    answer = settle(page)
    expect(answer.locator(".stats")).to_contain_text("stopped")
    expect(answer.locator(".stats")).to_have_text(re.compile(r"\d+ tokens · \d+ tokens/s"))
    assert is_idle(pool, server)
    before = content.inner_text()
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("article.running")).to_have_count(1)
    expect(content).not_to_have_text(before)
    page.keyboard.press("Escape")
    settle(page)
    assert content.inner_text().startswith(before)
    assert is_idle(pool, server)


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Page) -> None:
    requests_with(page, ignore_eos=True, max_tokens=300)
    ask(page, "Tell me a short story.")
    expect(page.locator("article.running")).to_have_count(1)
    page.unroute(CHAT)
    page.get_by_role("button", name="New conversation").click()
    ask(page, "What is 1 + 2?")
    settle(page)
    conversation(page, "Tell me a short story.").click()
    expect(settle(page).locator(".stats")).to_contain_text("300 tokens")


def test_regenerate_replaces_the_answer(page: Page) -> None:
    sent = requests_with(page)
    ask(page, "What is 17 + 25?")
    settle(page)
    ask(page, "Tell me a short story.")
    settle(page, 2)
    page.get_by_role("button", name="Regenerate answer").first.click()
    expect(page.locator("article")).to_have_count(2)
    settle(page)
    assert sent[2]["messages"] == sent[0]["messages"]


def test_an_edited_message_is_answered_anew(page: Page) -> None:
    sent = requests_with(page, temperature=0)
    ask(page, "What is 17 + 25?")
    settle(page)
    ask(page, "Tell me a short story.")
    settle(page, 2)
    first = page.locator("article.user").first
    first.hover()
    first.get_by_role("button", name="Edit message").click()
    first.get_by_label("Text of the message").fill("What is 20 + 30?")
    first.get_by_role("button", name="Send").click()
    expect(page.locator("article")).to_have_count(2)
    expect(settle(page).locator(".content")).to_have_text("50")
    assert sent[2]["messages"] == [{"role": "user", "content": "What is 20 + 30?"}]
    # Cancelled, nothing changes; an answer is only rewritten.
    first.get_by_role("button", name="Edit message").click()
    first.get_by_label("Text of the message").fill("x")
    page.keyboard.press("Escape")
    expect(first.locator(".content")).to_have_text("What is 20 + 30?")
    answers(page).last.get_by_role("button", name="Edit message").click()
    page.get_by_label("Text of the message").fill("fifty")
    page.get_by_role("button", name="Save").click()
    ask(page, "What is 1 + 1?")
    settle(page, 2)
    assert sent[3]["messages"][1] == {"role": "assistant", "content": "fifty"}


def test_system_prompt_and_sampling_are_sent_and_kept_for_new_conversations(page: Page) -> None:
    sent = requests_with(page)
    ask(page, "What is 1 + 2?")
    settle(page)
    assert sent[0].keys() - {"stream", "stream_options", "messages", "model"} == {
        "logprobs", "top_logprobs"
    }  # fmt: skip
    given = {
        "Temperature": "0.3", "Top_p": "0.9", "Top_k": "20", "Min_p": "0.1",
        "Repeat_penalty": "1.1", "Presence_penalty": "0.2", "Frequency_penalty": "-0.1",
        "Seed": "7", "Max_tokens": "9",
    }  # fmt: skip
    page.get_by_role("button", name="New conversation").click()
    settings(page, **given, System_prompt="Be short.")
    page.get_by_label("Stop at, one text a line").fill("END\nStop")
    page.get_by_label("Reasoning", exact=True).select_option("Off")
    page.get_by_role("checkbox", name="Token probabilities").uncheck()
    ask(page, "What is 2 + 2?")
    settle(page)
    body = sent[1]
    assert body["messages"][0] == {"role": "system", "content": "Be short."}
    assert {name.lower(): float(value) for name, value in given.items()}.items() <= body.items()
    assert (body["stop"], body["thinking"]) == (["END", "Stop"], False)
    assert "logprobs" not in body
    # The first conversation keeps its own.
    conversation(page, "What is 1 + 2?").click()
    expect(page.get_by_label("System prompt")).to_have_value("")
    page.reload()
    conversation(page, "What is 2 + 2?").click()
    settings(page)
    expect(page.get_by_label("Temperature")).to_have_value("0.3")
    expect(page.get_by_role("checkbox", name="Token probabilities")).not_to_be_checked()
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_label("System prompt")).to_have_value("Be short.")


def test_conversations_are_kept_renamed_and_deleted(page: Page) -> None:
    ask(page, "What is 17 + 25?")
    settle(page)
    page.reload()
    expect(answers(page)).to_have_count(1)
    expect(page.locator("article.user .content")).to_have_text("What is 17 + 25?")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("article")).to_have_count(0)
    ask(page, "Count from 1 to 5.")
    settle(page)
    names = page.locator(".chat-name")
    expect(names).to_have_text(["Count from 1 to 5.", "What is 17 + 25?"])
    page.locator("#chats li").nth(1).hover()
    page.get_by_role("button", name="Rename What is 17 + 25?").click()
    page.get_by_role("textbox", name="Name").fill("Sums")
    page.keyboard.press("Enter")
    expect(names).to_have_text(["Sums", "Count from 1 to 5."])
    for confirmed in (False, True):
        page.locator("#chats li").nth(1).hover()
        page.get_by_role("button", name="Delete Count from 1 to 5.").click()
        page.get_by_role("button", name="Delete" if confirmed else "Cancel", exact=True).click()
        expect(names).to_have_count(1 if confirmed else 2)
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(names).to_have_text(["Sums"])


def test_another_tab_sees_new_conversations(page: Page) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    ask(page, "What is 17 + 25?")
    settle(page)
    conversation(other, "What is 17 + 25?").click()
    expect(other.locator("article.assistant .content")).not_to_have_text("")


def test_a_full_browser_keeps_texts_before_probabilities(page: Page) -> None:
    ask(page, "Tell me a short story.")
    settle(page)
    page.evaluate(
        """() => {
          let size = 4_000_000;
          for (let i = 0; size > 10; i++) {
            try { localStorage.setItem(`fill${i}`, "x".repeat(size)); }
            catch { size = Math.floor(size / 2); }
          }
        }"""
    )
    ask(page, "What is 17 + 25?")
    settle(page, 2)
    expect(page.locator("#notice")).to_be_hidden()
    page.reload()
    expect(answers(page)).to_have_count(2)
    probabilities = page.get_by_role("button", name="Token probabilities")
    expect(probabilities.and_(answers(page).first.locator("button"))).to_have_count(0)
    expect(answers(page).first.locator(".content")).not_to_have_text("")


def test_probabilities_of_tokens_are_shown_to_pointer_and_keyboard(page: Page) -> None:
    requests_with(page, temperature=0)
    ask(page, "What is 17 + 25?")
    answer = settle(page)
    toggle = answer.get_by_role("button", name="Token probabilities")
    toggle.click()
    expect(toggle).to_have_attribute("aria-pressed", "true")
    expect(toggle).to_be_focused()
    tokens = answer.locator(".token")
    expect(tokens).to_have_text(["4", "2"])
    tip = page.get_by_role("tooltip")
    expect(tip).to_be_hidden()
    tokens.nth(0).hover()
    expect(tip.locator("tr")).to_have_count(5)
    expect(tip.locator("tr").first).to_have_text(re.compile(r"4(9\d\.\d|100\.0) %"))
    expect(tip.locator(".chosen th")).to_have_text("4")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tip.locator(".chosen th")).to_have_text("2")
    page.keyboard.press("Home")
    expect(tokens.nth(0)).to_be_focused()
    toggle.click()
    expect(answer.locator(".content")).to_have_text("42")
    expect(tokens).to_have_count(0)


def test_reasoning_is_folded(page: Page) -> None:
    requests_with(page, temperature=0)
    settings(page)
    page.get_by_label("Reasoning", exact=True).select_option("On")
    ask(page, "What is 17 + 25?")
    answer = settle(page)
    expect(answer.locator(".content")).to_have_text("42")
    reasoning = answer.locator("details.reasoning")
    expect(reasoning.locator("summary")).to_have_text(re.compile(r"^Reasoning( · [\d.]+ s)?$"))
    expect(reasoning.locator(".markdown")).to_be_hidden()
    reasoning.locator("summary").click()
    expect(reasoning.locator(".markdown")).to_contain_text("17")


def test_a_tool_call_is_shown_and_its_result_is_sent(page: Page) -> None:
    sent = requests_with(page, temperature=0)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_text("Tools", exact=True).click()
    settings(page, **{"Functions,_as_JSON": "[{"})
    ask(page, "What is the weather in Paris?")
    expect(page.locator("#tools-error")).to_contain_text("This is not JSON")
    expect(page.get_by_label("Functions, as JSON")).to_be_focused()
    expect(page.locator("article")).to_have_count(0)
    settings(page, **{"Functions,_as_JSON": json.dumps(WEATHER)})
    page.get_by_label("Message", exact=True).press("Enter")
    call = page.get_by_role("region", name="Call of get_weather")
    expect(call.locator("pre")).to_have_text('{\n  "city": "Paris"\n}')
    expect(call.locator(".json-key")).to_have_text('"city"')
    call.get_by_label("Result").fill('{"temperature": 21}')
    page.get_by_role("button", name="Send result").click()
    expect(settle(page, 2).locator(".content")).not_to_have_text("")
    user, assistant, tool = sent[1]["messages"]
    (made,) = assistant["tool_calls"]
    assert (user["role"], made["function"]["name"]) == ("user", "get_weather")
    assert tool == {
        "role": "tool", "content": '{"temperature": 21}', "tool_call_id": made["id"]
    }  # fmt: skip
    expect(page.get_by_role("button", name="Send result")).to_have_count(0)


def test_json_is_asked_for_and_shown_readably(page: Page) -> None:
    sent = requests_with(page, max_tokens=200)
    settings(page)
    page.get_by_label("Format").select_option("JSON of a schema")
    schema = {"const": {"a": [1, "x <b>"], "b": None}}
    page.get_by_label("JSON Schema").fill(json.dumps(schema))
    ask(page, "Go.")
    answer = settle(page)
    expect(answer.locator("pre")).to_have_text(json.dumps(schema["const"], indent=2))
    expect(answer.locator(".json-literal")).to_have_text(["1", "null"])
    assert sent[0]["response_format"]["json_schema"]["schema"] == schema


def test_errors_of_the_server_are_shown(page: Page) -> None:
    settings(page, Max_tokens="0")
    ask(page, "Hello.")
    expect(error(page).and_(page.get_by_role("alert"))).to_contain_text("max_tokens=0")
    settings(page, Max_tokens="")
    page.get_by_role("button", name="Regenerate answer").click()
    expect(settle(page).locator(".content")).not_to_have_text("")
    expect(error(page)).to_have_count(0)
    ask(page, "word " * 5000)
    expect(error(page).last).to_contain_text(re.compile(r"the prompt has \d+ tokens"))


def test_a_server_that_is_gone_is_said(page: Page) -> None:
    page.route(CHAT, lambda route: route.abort())
    ask(page, "Hello.")
    expect(error(page)).to_have_text("The server cannot be reached. Is it still running?")


def test_a_stream_that_breaks_off_keeps_its_text(page: Page) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "Half an"}, "finish_reason": None}]}
    failed = {"error": {"message": "decoding failed", "type": "server_error"}}
    for tail, message in (
        ("", "The connection ended before the answer was complete."),
        (f"data: {json.dumps(failed)}\n\n", "decoding failed"),
    ):
        body = f"data: {json.dumps(chunk)}\n\n{tail}"
        page.route(
            CHAT,
            lambda route, _, body=body: route.fulfill(body=body, content_type="text/event-stream"),
        )
        ask(page, "Hello.")
        expect(page.locator("article").last.locator(".content")).to_have_text("Half an")
        expect(error(page).last).to_have_text(message)


def test_what_a_model_writes_stays_text(page: Page) -> None:
    hostile = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) <script>alert(2)</script>"
    requests_with(page, grammar=f"root ::= {json.dumps(hostile)}", max_tokens=200)
    ask(page, "<img src=x onerror=alert(3)>")
    content = settle(page).locator(".content")
    expect(content).to_have_text(hostile)
    expect(content.locator("img, script, a")).to_have_count(0)
    expect(page.locator("article.user img")).to_have_count(0)
    expect(page.locator("#chats img")).to_have_count(0)
    page.get_by_role("button", name="Token probabilities").click()
    expect(page.locator(".tokens")).to_have_text(hostile)
    page.reload()
    expect(content).to_have_text(hostile)


def check_safe(shown: Any) -> None:
    assert set(shown["names"]) <= TAGS
    assert set(shown["attributes"]) <= ATTRIBUTES
    for link in shown["links"]:
        assert link.startswith(("https://", "http://", "mailto:")), link


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_makes_known_elements_only(functions: Page, text: str) -> None:
    shown = functions.evaluate(SHOWN, [text])
    check_safe(shown)
    for harmful in ("onerror", "onload", "onclick", "alert(1)"):
        # Where it leads is not shown, nor what follows the language of a code block.
        hidden = len(shown["links"]) + text.startswith("```")
        assert shown["text"].count(harmful) >= text.count(harmful) - hidden


def test_markdown_of_random_texts_is_safe_and_whole(functions: Page) -> None:
    """500 texts of marks, words and hostile parts; a text that grows is shown as if new."""
    dice = random.Random(1)
    marks = [
        "*", "**", "_", "`", "```", "~~", "[", "](", ")", "!", "#", "- ", "1. ", "> ", "|", "---",
        "\n", "\n\n", "    ", " ", "\\", "a", "b c", "https://e.example", *HOSTILE,
    ]  # fmt: skip
    texts = ["".join(dice.choices(marks, k=dice.randint(1, 40))) for _ in range(500)]
    found = functions.evaluate(
        """async (texts) => {
          const { showMarkdown } = await import("/page/markdown.js");
          const grown = document.createElement("div");
          return texts.map((text) => {
            const box = document.createElement("div");
            showMarkdown(box, text);
            for (let n = 0; n <= text.length; n += 7) showMarkdown(grown, text.slice(0, n));
            showMarkdown(grown, text);
            const all = [...box.querySelectorAll("*")];
            return {
              names: [...new Set(all.map((e) => e.tagName))],
              attributes: [...new Set(all.flatMap((e) => e.getAttributeNames()))],
              links: [...box.querySelectorAll("a")].map((e) => e.href),
              isSame: box.innerHTML === grown.innerHTML,
              letters: box.textContent.replace(/[^a-c]/g, "").length,
            };
          });
        }""",
        texts,
    )
    for text, shown in zip(texts, found, strict=True):
        check_safe(shown)
        assert shown["isSame"], text
        if not any(part in text for part in HOSTILE) and "https" not in text and "](" not in text:
            # A fence's language is shown, but what follows it is not.
            assert shown["letters"] >= len(re.sub("[^a-c]", "", text)) or "```" in text, text


@pytest.mark.parametrize(("text", "names"), MARKDOWN)
def test_markdown(functions: Page, text: str, names: str) -> None:
    shown = functions.evaluate(SHOWN, [text])
    left_out = {"DIV", "PRE", "SPAN", "BUTTON", "svg", "use", "THEAD", "TBODY", "TR"}
    assert " ".join(name for name in shown["names"] if name not in left_out) == names


@pytest.mark.parametrize(
    "text",
    [
        "*" * 20_000,
        "[" * 20_000,
        "`" * 20_001,
        "# " + " " * 20_000 + "x",
        "- " * 10_000,
        "> " * 10_000,
        "|" * 20_000,
        "_a" * 10_000,
        "a **" * 5_000,
        "![](" * 5_000,
        "\n" * 20_000,
        "https://" + "a." * 10_000,
        "- a\n" * 5_000,
    ],
    ids=lambda text: text[:8],
)
def test_markdown_of_a_long_text_ends(functions: Page, text: str) -> None:
    check_safe(functions.evaluate(SHOWN, [text]))


@pytest.mark.parametrize(("stream", "wanted"), STREAMS)
def test_events_are_read_however_they_are_cut(
    functions: Page, stream: str, wanted: list[str]
) -> None:
    found = functions.evaluate(
        """async ([text]) => {
          const { events } = await import("/page/api.js");
          const bytes = new TextEncoder().encode(text);
          const all = [];
          for (let size = 1; size <= bytes.length; size++) {
            const stream = new ReadableStream({
              start(controller) {
                for (let i = 0; i < bytes.length; i += size)
                  controller.enqueue(bytes.slice(i, i + size));
                controller.close();
              },
            });
            const data = [];
            for await (const one of events(stream)) data.push(one);
            all.push(data);
          }
          return all;
        }""",
        [stream],
    )
    assert found == [wanted] * len(stream.encode())


def test_everything_works_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")  # from the message field, which has the focus first, to its button
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("What is 17 + 25?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Now.")
    page.keyboard.press("Enter")
    settle(page)
    assert page.locator("article.user .content").inner_text() == "What is 17 + 25?\nNow."
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if focused.count() == 0:  # the window of the browser itself
            continue
        reached.add(
            focused.get_attribute("aria-label")
            or focused.inner_text()
            or focused.get_attribute("id")
        )
        style = (
            "e => getComputedStyle(e).outlineStyle + getComputedStyle(e.parentElement).boxShadow"
        )
        assert focused.evaluate(style) != "nonenone", reached
    wanted = {"Skip to the message field", "New conversation", "Rename What is 17 + 25? Now.",
              "Delete What is 17 + 25? Now.", "API key", "Theme: auto", "Conversations", "demo",
              "Settings", "Copy message", "Edit message", "Regenerate answer",
              "Token probabilities", "prompt", "Send"}  # fmt: skip
    assert wanted <= reached, wanted - reached


def test_what_can_be_used_has_a_name(page: Page) -> None:
    ask(page, "What is 17 + 25?")
    settle(page)
    settings(page)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a, summary")]
          .filter((e) => e.checkVisibility())
          .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
          .map((e) => e.outerHTML)"""
    )
    assert unnamed == []


CONTRAST = """() => {
  // Any notation of a colour, as its values from 0 to 255.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const values = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => [...values(colour)].slice(0, 3)
    .map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (values(colour)[3] > 0) return colour;
    }
    return "white";
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!e.checkVisibility() || (!hasText && !e.matches("input, select, textarea, svg"))) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(back(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 100)]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(
    server: HttpServer, open_page: Callable[..., Page], theme: str
) -> None:
    page = open_page(f"{server.url}/", color_scheme=theme)
    requests_with(page, temperature=0)
    ask(page, "Tell me a short story.")
    settle(page).get_by_role("button", name="Token probabilities").click()
    settings(page, Max_tokens="0")
    ask(page, "Hello.")
    expect(error(page)).not_to_have_text("")
    page.locator(".token").first.hover()
    found = page.evaluate(CONTRAST)
    assert len(found) > 60
    assert [one for one in found if one[0] < 4.5] == []


def test_the_theme_follows_the_system_until_it_is_chosen(
    server: HttpServer, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{server.url}/", color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(colour)
    assert dark != light
    for label, wanted in (("auto", light), ("light", light), ("dark", dark)):
        button = page.get_by_role("button", name=f"Theme: {label}")
        expect(button).to_be_visible()
        assert page.evaluate(colour) == wanted
        if label != "dark":
            button.click()
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(colour) == dark


def test_the_page_asks_for_a_key(pool: LlamaPool, open_page: Callable[..., Page]) -> None:
    with pool.serve(api_keys=["secret"]) as server:
        page = open_page(f"{server.url}/")
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_contain_text("the API key is missing")
        dialog.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("the API key is wrong")
        page.keyboard.press("Escape")
        ask(page, "What is 17 + 25?")
        expect(error(page)).to_contain_text("the API key is wrong")
        dialog.get_by_label("Key", exact=True).fill("secret")
        dialog.get_by_role("button", name="Use key").click()
        expect(dialog).to_be_hidden()
        page.get_by_role("button", name="Regenerate answer").click()
        expect(settle(page).locator(".content")).not_to_have_text("")
        page.reload()  # kept in this tab, and only there
        ask(page, "What is 1 + 1?")
        settle(page, 2)
        other = page.context.new_page()
        other.goto(page.url)
        asked = other.get_by_role("dialog", name="API key")
        expect(asked).to_be_visible()
        asked.get_by_label("Key", exact=True).fill("secret")
        asked.get_by_label("Keep it in this browser").check()
        asked.get_by_role("button", name="Use key").click()
        third = page.context.new_page()
        third.goto(page.url)
        expect(third.get_by_label("Model", exact=True)).not_to_have_value("")
        ask(third, "What is 2 + 2?")
        settle(third, 3)


def test_the_model_is_chosen_among_those_of_the_server(
    pool: LlamaPool, open_page: Callable[..., Page]
) -> None:
    from llama_cffi.server.serving import serve

    with (
        LlamaPool(model_path(), n_parallel=1, n_ctx=256, n_threads=1) as other,
        serve([pool, other.llm], port=0, aliases=["first"]) as server,
    ):
        page = open_page(f"{server.url}/")
        sent = requests_with(page)
        choice = page.get_by_label("Model", exact=True)
        expect(choice.locator("option")).to_have_text(["first", "demo"])
        choice.select_option("demo")
        expect(page.locator("#context")).to_have_text("0 of 256 tokens")
        ask(page, "What is 17 + 25?")
        settle(page)
        page.reload()
        expect(choice).to_have_value("demo")
        assert sent[0]["model"] == "demo"


def test_a_narrow_window_has_everything(server: HttpServer, open_page: Callable[..., Page]) -> None:
    page = open_page(
        f"{server.url}/", viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
    )
    ask(page, "What is 17 + 25?")
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    side = page.get_by_role("navigation", name="Conversations")
    expect(side).to_be_hidden()
    page.get_by_role("button", name="Conversations", exact=True).tap()
    expect(side).to_be_visible()
    page.get_by_role("button", name="New conversation").tap()
    expect(side).to_be_hidden()
    expect(page.locator("article")).to_have_count(0)
    page.get_by_role("button", name="Settings", exact=True).tap()
    expect(page.get_by_label("System prompt")).to_be_visible()
    page.get_by_role("button", name="Close settings").tap()
    expect(page.get_by_label("System prompt")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
