"""Calls in Python: LFM2's and Gemma's blocks."""

from __future__ import annotations

import pytest
from support.answer_forms import TOOLS
from support.parsed_answers import Answer, Call, read


def lfm2(code: str) -> str:
    return f"<|tool_call_start|>{code}<|tool_call_end|>"


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        ("""run(command='grep -F "]" log.txt')""", [("run", {"command": 'grep -F "]" log.txt'})]),
        ("f(from=1, class='x', lambda=None)", [("f", {"from": 1, "class": "x", "lambda": None})]),
        ("set_date(month=07, zip=02134)", [("set_date", {"month": 7, "zip": 2134})]),
        ("get-it.x(is-on=True, a.b=2)", [("get-it.x", {"is-on": True, "a.b": 2})]),
        ("a.b.c(x=-74.0046539)", [("a.b.c", {"x": -74.0046539})]),
        ("f(a=true, b=null, c=Paris)", [("f", {"a": True, "b": None, "c": "Paris"})]),
        ("f(a=(1, 2), b={'x', 'y'}, c={'k': (3,)})",
         [("f", {"a": [1, 2], "b": ["x", "y"], "c": {"k": [3]}})]),
        ('f(a="""l1\n\'x\' "y" """)', [("f", {"a": "l1\n'x' \"y\" "})]),
        ("f(a='l1\nl2', b='\x00')", [("f", {"a": "l1\nl2", "b": "\x00"})]),
        (r"f(a=r'\d', b='\\')", [("f", {"a": r"\d", "b": "\\"})]),
        ("bash(c='sed -n '360,450p' /x')", [("bash", {"c": "sed -n '360,450p' /x"})]),
        ("bash(c='python3 -c \"print(l(3*x, s='\\\\,'))\"')",
         [("bash", {"c": "python3 -c \"print(l(3*x, s='\\,'))\""})]),
        ("run('a', 5)", [("run", {"cmd": "a", "n": 5})]),
        ("run('a', x='b')", [("run", {"cmd": "a", "x": "b"})]),
        ("f(a=1,)", [("f", {"a": 1})]),
        ("f( a = 1 , b = 'x' )", [("f", {"a": 1, "b": "x"})]),
        ("f(), run(cmd='a'), f()", [("f", {}), ("run", {"cmd": "a"}), ("f", {})]),
    ],
)  # fmt: skip
def test_calls(code: str, calls: list[Call]) -> None:
    for text in (lfm2(f"[{code}]"), lfm2(f" [ {code} ] "), lfm2(code), lfm2(f"[{code}"),
                 f"<|tool_call_start|>[{code}]"):  # fmt: skip
        assert read("lfm2", text, TOOLS) == Answer("", calls)
    block = f"```tool_code\n{code}\n```"
    assert read("gemma-tool-code", block, TOOLS) == Answer("", calls)


@pytest.mark.parametrize(
    "code",
    ["run(cmd=get(1))", "run(cmd=1 + 2)", "run(cmd=[x for x in y])", "run(**{'cmd': 'a'})",
     "x = run(cmd='a')", "run(cmd='a", "run", "", "now(1)", "run(cmd=lambda: 1)"],
)  # fmt: skip
def test_what_is_no_call_is_content_and_spares_its_neighbours(code: str) -> None:
    text = lfm2(f"[{code}]")
    assert read("lfm2", text, TOOLS) == Answer(text, [], is_malformed=True)
    answer = read("lfm2", f"{lfm2('[now()]')}{text}{lfm2('[now()]')}", TOOLS)
    if code != "run(cmd='a":
        assert answer == Answer(text, [("now", {})] * 2, is_malformed=True)


@pytest.mark.parametrize("code", ["run(cmd=get(')'))", "run(1 + 2)", "run(cmd=-'x')"])
def test_the_neighbours_in_the_list_of_what_is_no_call(code: str) -> None:
    answer = read("lfm2", lfm2(f"[now(), {code}, now()]"), TOOLS)
    assert answer == Answer(code, [("now", {})] * 2, is_malformed=True)


def test_calls_are_sent_when_they_end() -> None:
    answer = read("lfm2", "<|tool_call_start|>[now(), run(cmd='a'), run(cmd='b", TOOLS)
    assert answer.calls == [("now", {}), ("run", {"cmd": "a"})]


def test_lists_without_markers() -> None:
    calls: list[Call] = [("run", {"cmd": "a"}), ("now", {})]
    assert read("lfm2", "[run(cmd='a'), now()]", TOOLS) == Answer("", calls)
    text = "See:\n[run(cmd='a'), now()]\nDone."
    assert read("lfm2", text, TOOLS) == Answer("See:\nDone.", calls)
    for text in ("[1, 2] is a list", "items = [now()]", "[walk()]", "[run]", "```\n[now()]\n```"):
        assert read("lfm2", text, TOOLS) == Answer(text, [])
    assert read("lfm2", "[now()]") == Answer("[now()]", [])  # no functions are known


def test_an_end_marker_in_a_string_is_text() -> None:
    call = ("run", {"cmd": "a<|tool_call_end|>b]", "x": "```"})
    assert read("lfm2", lfm2("[run(cmd='a<|tool_call_end|>b]', x='```')]"), TOOLS) == Answer(
        "", [call]
    )
    text = "```tool_code\nrun(cmd='a<|tool_call_end|>b]', x='```')\n```"
    assert read("gemma-tool-code", text, TOOLS) == Answer("", [call])


def test_quotes_that_a_template_does_not_escape() -> None:
    # LFM2.5's template writes texts in single quotes as they are.
    inner = lfm2("[note(text='a', n=3, tags=['x', 'y'])]")
    for value in ("'a'", "it's", inner, f"See:\n{inner}\n"):
        text = lfm2(f"[run(cmd='{value}', n=7)]")
        assert read("lfm2", text, TOOLS) == Answer("", [("run", {"cmd": value, "n": 7})])
