# ruff: noqa: E501, RUF001 -- answers of models are not wrapped and have unusual characters
"""Answers of each family are parsed, with the same result however they are split."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_cffi.chat.formats import FORMATS, ParsedMessage, ToolFormat, detect_format, get_format
from llama_cffi.chat.scanner import Parser, Scanner
from llama_cffi.errors import ValidationError


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING, INTEGER = {"type": "string"}, {"type": "integer"}
TOOLS = [
    tool("get_weather", city=STRING, unit={"type": "string", "enum": ["C", "F"]}),
    tool("add", a=INTEGER, b=INTEGER),
    tool("note", text=STRING, tags={"type": "array", "items": STRING}),
    tool("now"),
]
ROME = ("get_weather", {"city": "Rome", "unit": "C"})
ADD = ("add", {"a": 1, "b": -2})
NOW = ("now", {})
NASTY = ("note", {"text": 'a "b"\n\\ {}</x> é', "tags": ["x", "y"]})

_SEP, _CALL, _CALL_END = "<｜tool▁sep｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


def dumped(call: tuple[str, dict[str, Any]], arguments: str = "arguments") -> str:
    return json.dumps({"name": call[0], arguments: call[1]}, ensure_ascii=False)


def arguments_of(call: tuple[str, dict[str, Any]]) -> str:
    return json.dumps(call[1], ensure_ascii=False)


def hermes(call: Any) -> str:
    return f"<tool_call>\n{dumped(call)}\n</tool_call>"


def coder(call: Any) -> str:
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in call[1].items()}
    inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function={call[0]}>\n{inner}</function>\n</tool_call>"


def glm(call: Any) -> str:
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in call[1].items()}
    inner = "".join(
        f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in values.items()
    )
    return f"<tool_call>{call[0]}\n{inner}</tool_call>"


def gemma(value: Any, quote: str = '<|"|>') -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{gemma(v, quote)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(gemma(v, quote) for v in value) + "]"
    return f"{quote}{value}{quote}" if isinstance(value, str) else json.dumps(value)


# (format, text, content, calls): answers of the family's models.
CASES: list[tuple[str, str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("hermes", hermes(ROME), "", [ROME]),
    ("hermes", f"Sure.\n{hermes(ROME)}\n{hermes(ADD)}", "Sure.", [ROME, ADD]),
    ("hermes", hermes(NASTY), "", [NASTY]),
    ("hermes", f"{hermes(NOW)}\n\nDone.\n", "Done.\n", [NOW]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>!', "!",
     [("add", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [NOW]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "",
     [("add", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "note", "arguments": {"text": "a\nb"}}</tool_call>', "",
     [("note", {"text": "a\nb"})]),
    ("qwen3-coder", coder(ROME), "", [ROME]),
    ("qwen3-coder", f"Ok\n\n{coder(NASTY)}\n{coder(NOW)}", "Ok", [NASTY, NOW]),
    ("qwen3-coder", coder(ADD).removeprefix("<tool_call>\n"), "", [ADD]),
    ("qwen3-coder", hermes(ADD), "", [ADD]),
    ("seed-oss", coder(ROME).replace("tool_call>", "seed:tool_call>").replace("\n", ""), "",
     [ROME]),
    ("minimax-m2", '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1</parameter>\n'
     '<parameter name="b">-2</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n'
     "</minimax:tool_call>", "", [ADD, NOW]),
    ("minicpm5", '<function name="get_weather"><param name="city">Rome</param>'
     '<param name="unit">C</param></function>', "", [ROME]),
    ("glm", f"Ok\n{glm(ROME)}\n{glm(ADD)}", "Ok", [ROME, ADD]),
    ("glm", glm(NASTY), "", [NASTY]),
    ("glm", "<tool_call>now</tool_call>", "", [NOW]),
    ("llama3", dumped(ROME, "parameters"), "", [ROME]),
    ("llama3", '{"type": "function", "name": "add", "parameters": {"a": 1, "b": -2}}', "", [ADD]),
    ("llama3", dumped(ROME, "parameters") + "; " + dumped(ADD, "parameters"), "", [ROME, ADD]),
    ("llama3", "<|python_tag|>" + dumped(ADD, "parameters"), "", [ADD]),
    ("llama3", '<|python_tag|>brave_search.call(query="a, b)")', "",
     [("brave_search", {"query": "a, b)"})]),
    ("llama3", '<|python_tag|>print("x")\n1', "", [("python", {"code": 'print("x")\n1'})]),
    ("llama3", '{"name": "John", "age": 3}', '{"name": "John", "age": 3}', []),
    ("llama3", '{"age": 3}', '{"age": 3}', []),
    ("llama3", '{"name": "x", "parameters": {}}', '{"name": "x", "parameters": {}}', []),
    ("mistral", f"[TOOL_CALLS]add[ARGS]{arguments_of(ADD)}", "", [ADD]),
    ("mistral", f"Hi [TOOL_CALLS]add[CALL_ID]123456789[ARGS]{arguments_of(ADD)}[TOOL_CALLS]now"
     "[ARGS]{}", "Hi", [ADD, NOW]),
    ("mistral", f"[TOOL_CALLS][{dumped(ADD)}]", "", [ADD]),
    ("mistral-nemo", f"[TOOL_CALLS] [{dumped(NASTY)}, {dumped(ADD)}]", "", [NASTY, ADD]),
    ("functionary-v3.2", "all\nHello!", "Hello!", []),
    ("functionary-v3.2", f"get_weather\n{arguments_of(ROME)}>>>add\n{arguments_of(ADD)}", "",
     [ROME, ADD]),
    ("functionary-v3.2", f"all\nA >>> b>>>add\n{arguments_of(ADD)}", "A >>> b", [ADD]),
    ("functionary-v3.2", ">>>python\nx = 1\n>>>now\n{}", "", [("python", {"code": "x = 1\n"}),
                                                             NOW]),
    ("functionary-v3.1", f"<function=add>{arguments_of(ADD)}</function>", "", [ADD]),
    ("functionary-v3.1", "<|python_tag|>x = 1", "", [("python", {"code": "x = 1"})]),
    ("deepseek-v3", f"{_CALLS}{_CALL}function{_SEP}add\n```json\n{arguments_of(ADD)}\n```{_CALL_END}"
     f"\n{_CALL}function{_SEP}now\n```json\n{{}}\n```{_CALL_END}{_CALLS_END}", "", [ADD, NOW]),
    ("deepseek-v3", f"<｜tool▁calls｜>function{_SEP}add\n```json\n{arguments_of(ADD)}\n```{_CALL_END}",
     "", [ADD]),
    ("deepseek-v3.1", f"Ok{_CALLS}{_CALL}add{_SEP}{arguments_of(ADD)}{_CALL_END}{_CALL}now{_SEP}{{}}"
     f"{_CALL_END}{_CALLS_END}", "Ok", [ADD, NOW]),
    ("kimi-k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
     f"<|tool_call_argument_begin|>{arguments_of(ADD)}<|tool_call_end|><|tool_calls_section_end|>",
     "", [ADD]),
    ("harmony", "<|channel|>final<|message|>Hello", "Hello", []),
    ("harmony", "Hello", "Hello", []),
    ("harmony", "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>"
     f"commentary to=functions.add <|constrain|>json<|message|>{arguments_of(ADD)}<|call|>",
     "Let me see.", [ADD]),
    ("harmony", f" to=functions.add<|channel|>commentary json<|message|>{arguments_of(ADD)}", "",
     [ADD]),
    ("harmony", f"<|channel|>commentary to=functions.now json<|message|>{{}}<|call|><|start|>"
     f"assistant to=functions.add<|channel|>analysis<|message|>{arguments_of(ADD)}", "",
     [NOW, ADD]),
    ("gemma4", f"Ok<|tool_call>call:get_weather{gemma(ROME[1])}<tool_call|>"
     f"<|tool_call>call:note{gemma(NASTY[1])}<tool_call|>", "Ok", [ROME, NASTY]),
    ("gemma4", '<|tool_call>call:f{a:{b:[1,true,null],c:{}},"d e":[]}<tool_call|>', "",
     [("f", {"a": {"b": [1, True, None], "c": {}}, "d e": []})]),
    ("functiongemma", f"<start_function_call>call:get_weather{gemma(ROME[1], '<escape>')}"
     "<end_function_call>", "", [ROME]),
    ("phi4", f"<|tool_call|>[{dumped(ADD)}, {dumped(NOW)}]<|/tool_call|>", "", [ADD, NOW]),
    ("phi4", f"<|tool_call|>{dumped(ADD)}<|/tool_call|>", "", [ADD]),
    ("phi4", f"functools[{dumped(ADD)}]", "", [ADD]),
    ("granite", f"<|tool_call|>[{dumped(ADD)}]", "", [ADD]),
    ("nemotron", f"<TOOLCALL>[{dumped(ADD)}, {dumped(ROME)}]</TOOLCALL>", "", [ADD, ROME]),
    ("lfm2", '<|tool_call_start|>[get_weather(city="Rome", unit="C"), now()]<|tool_call_end|>',
     "", [ROME, NOW]),
    ("gemma-tool-code", "Ok\n```tool_code\nprint(add(1, b=-2))\n```", "Ok", [ADD]),
    ("generic", f'{{"tool_calls": [{dumped(ADD)}, {dumped(NOW)}]}}', "", [ADD, NOW]),
    ("generic", f'```json\n{{"tool_call": {dumped(ROME)}}}\n```', "", [ROME]),
    ("generic", '{"response": "a \\"b\\"\\n\\u00e9 \\ud83d\\ude00"}', 'a "b"\né 😀', []),
    ("generic", "Hello {x}", "Hello {x}", []),
]  # fmt: skip


def stream(form: ToolFormat, chunks: Iterable[str], **how: Any) -> ParsedMessage:
    """Push chunks and check that the deltas alone build the message, as for a client."""
    parser = form.stream(TOOLS, **how)
    deltas = [delta for chunk in chunks for delta in parser.push(chunk)] + parser.finish()
    content = "".join(delta.get("content", "") for delta in deltas)
    reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        assert len(delta) == 1
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                assert set(part) == {"index", "id", "type", "function"}
                calls.append({**part, "function": dict(part["function"])})
            else:
                assert part["index"] == len(calls) - 1
                assert set(part) == {"index", "function"}
                calls[-1]["function"]["arguments"] += part["function"]["arguments"]
    message = parser.message
    assert (content, reasoning) == (message.content, message.reasoning_content)
    assert [{k: v for k, v in call.items() if k != "index"} for call in calls] == [
        call.to_dict() for call in message.tool_calls
    ]
    return message


def seen(message: ParsedMessage) -> tuple[Any, ...]:
    calls = [(call.name, call.arguments, call.is_complete) for call in message.tool_calls]
    return message.content, message.reasoning_content, calls, message.is_malformed


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1][:30]!r}")
def test_answers_of_the_family(case: Any) -> None:
    name, text, content, calls = case
    form = get_format(name)
    message = form.parse(text, TOOLS)
    found = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
    assert (message.content, found) == (content, calls)
    assert not message.is_malformed
    assert len({call.id for call in message.tool_calls}) == len(calls)
    assert seen(stream(form, text)) == seen(message)
    rng = random.Random(text)
    for _ in range(20):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert seen(stream(form, pieces)) == seen(message)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1][:30]!r}")
def test_every_prefix_is_parsed_without_an_error(case: Any) -> None:
    name, text, _, calls = case
    form = get_format(name)
    names = [name for name, _ in calls]
    for end in range(len(text)):
        message = form.parse(text[:end], TOOLS)
        assert seen(stream(form, text[:end])) == seen(message)
        found = [call.name for call in message.tool_calls]
        # A call after Llama's tag that ends before its name looks like Python.
        assert found == names[: len(found)] or (found == ["python"] and "python_tag" in text)
        assert all(call.is_complete for call in message.tool_calls[:-1])


_SHARED = ["{", "}", "[", "]", '"', ":", ",", '"name"', '"add"', '"arguments"', '"parameters"',
           "add", "1", " ", "\n", "a", "\\", "<", "é"]  # fmt: skip
_BITS = {
    name: _SHARED + [part for case in CASES if case[0] == name for part in (case[1][:12], case[1])]
    + list(form.triggers)
    + list(form.reasoning)
    for name, form in FORMATS.items()
}  # fmt: skip
_BITS["harmony"] += ["<|message|>", "<|end|>", "<|start|>assistant", " to=functions.add"]
_BITS["qwen3-coder"] += ["<parameter=a>", "</parameter>", "</function>", "</tool_call>"]
_BITS["glm"] += ["<arg_key>a</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"]
_BITS["gemma4"] += ["call:f{", '<|"|>', "<tool_call|>"]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_text_is_parsed_however_it_is_split(name: str, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.sampled_from(_BITS[name]), max_size=9))
    starts_open = data.draw(st.booleans())
    text = "".join(pieces)
    form = FORMATS[name]
    whole = seen(form.parse(text, TOOLS, starts_open=starts_open))
    assert seen(stream(form, pieces, starts_open=starts_open)) == whole
    assert seen(stream(form, text, starts_open=starts_open)) == whole


@pytest.mark.parametrize("name", FORMATS)
def test_plain_text_is_content(name: str) -> None:
    for text in ("", " Hello <b>, [1] {2} `x` >> \n", "I call f(x).", "  "):
        message = FORMATS[name].parse(text, TOOLS)
        assert (message.content, message.tool_calls) == (text, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "Look: <tool_call>{oops}</tool_call> done"),
        ("hermes", '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "ad'),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("qwen3-coder", "<tool_call>\n<function>\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
        ("deepseek-v3.1", f"{_CALLS}{_CALL}add[]"),
        ("gemma4", "<|tool_call>add{}<tool_call|>"),
        ("gemma-tool-code", "```tool_code\nx = 1\n```"),
        ("kimi-k2", "<|tool_calls_section_begin|>hello"),
    ],
)
def test_calls_that_cannot_be_parsed_are_content(name: str, text: str) -> None:
    message = get_format(name).parse(text, TOOLS)
    assert message.content == text
    assert message.tool_calls == []
    assert message.is_malformed


def test_a_call_after_one_that_cannot_be_parsed() -> None:
    message = get_format("hermes").parse(f"<tool_call>what? {hermes(ADD)}")
    assert [call.name for call in message.tool_calls] == ["add"]
    assert message.content == "<tool_call>what?"
    assert message.is_malformed


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ('{"a": 1', '{"a": 1}'),
        ('{"a": "on', '{"a": "on"}'),
        ('{"a": 1]]', '{"a": 1}'),
    ],
)
def test_a_call_with_invalid_arguments_is_malformed(arguments: str, kept: str) -> None:
    text = f'<tool_call>{{"name": "add", "arguments": {arguments}'
    message = stream(get_format("hermes"), text)
    assert [(call.name, call.arguments) for call in message.tool_calls] == [("add", kept)]
    assert not message.tool_calls[0].is_complete
    assert message.is_malformed


def test_arguments_are_emitted_as_they_arrive() -> None:
    parser = get_format("hermes").stream(TOOLS)
    assert parser.push('Hm\n<tool_call>\n{"name": "note", "argu') == [{"content": "Hm"}]
    first = parser.push('ments": {"te')[0]["tool_calls"][0]
    assert (first["index"], first["function"]) == (0, {"name": "note", "arguments": "{"})
    part = {"index": 0, "function": {"arguments": '"text": "a lo'}}
    assert parser.push('xt": "a lo') == [{"tool_calls": [part]}]
    assert parser.push('ng one"}}\n</tool') == [
        {"tool_calls": [{"index": 0, "function": {"arguments": 'ng one"}'}}]}
    ]
    assert parser.push("_call>") == parser.finish() == []


def test_unquoted_strings_are_emitted_as_they_arrive() -> None:
    parser = get_format("qwen3-coder").stream(TOOLS)
    parser.push("<tool_call>\n<function=note>\n<parameter=text>\none ")
    assert parser.push('"two" ')[0]["tool_calls"][0]["function"]["arguments"] == '\\"two\\" '
    assert parser.push("\n</para") == []


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        (STRING, "42", "42"),
        (INTEGER, "42", 42),
        (None, "42", 42),
        (None, "forty two", "forty two"),
        (INTEGER, "forty", "forty"),
        ({"type": "boolean"}, "true", True),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
        (STRING, '{"a": 1}', '{"a": 1}'),
        (STRING, "", ""),
    ],
)
def test_unquoted_values_are_parsed_by_their_schema(schema: Any, value: str, expected: Any) -> None:
    tools = None if schema is None else [tool("f", x=schema)]
    message = get_format("qwen3-coder").parse(coder(("f", {"x": value})), tools)
    assert json.loads(message.tool_calls[0].arguments) == {"x": expected}


def test_reasoning_before_calls() -> None:
    text = f"<think>\nI need <tool_call> here.\n</think>\n\nOk.\n{hermes(ADD)}"
    message = stream(get_format("hermes"), text)
    assert message.reasoning_content == "I need <tool_call> here."
    assert message.to_dict() == {
        "role": "assistant",
        "content": "Ok.",
        "reasoning_content": "I need <tool_call> here.",
        "tool_calls": [message.tool_calls[0].to_dict()],
    }
    forced = stream(get_format("hermes"), f"I think.</think>{hermes(ADD)}", starts_open=True)
    assert forced.reasoning_content == "I think."
    assert forced.to_dict()["content"] is None


def test_reasoning_of_other_families() -> None:
    def of(name: str, text: str, **how: Any) -> tuple[str, str]:
        message = stream(get_format(name), text, **how)
        return message.reasoning_content, message.content

    assert of("mistral", "[THINK]a[/THINK]b") == ("a", "b")
    assert of("seed-oss", "<seed:think>a</seed:think>b") == ("a", "b")
    assert of("gemma4", "<|channel>thought\na\n<channel|>b") == ("a", "b")
    assert of("hermes", "[R]a[/R]b", reasoning=("[R]", "[/R]")) == ("a", "b")
    analysis = "<|channel|>analysis<|message|>a<|end|><|start|>assistant"
    assert of("harmony", f"{analysis}<|channel|>final<|message|>b<|return|>") == ("a", "b")
    assert of("harmony", f"{analysis}{analysis}<|channel|>final <|constrain|>json<|message|>b") == (
        "a\na",
        "b",
    )


def test_budget_of_a_stream() -> None:
    parser = get_format("hermes").stream(TOOLS)
    assert parser.splitter is not None
    parser.push("<think>")
    parser.push("a b", n_tokens=2)
    assert parser.splitter.spent == 2
    assert parser.splitter.is_open


def test_ids() -> None:
    assert len(get_format("hermes").parse(hermes(ADD)).tool_calls[0].id) == 9
    own = "[TOOL_CALLS]add[CALL_ID]123456789[ARGS]{}"
    assert get_format("mistral").parse(own).tool_calls[0].id == "123456789"
    kimi = next(case[1] for case in CASES if case[0] == "kimi-k2")
    assert get_format("kimi-k2").parse(kimi).tool_calls[0].id == "functions.add:0"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (None, "generic"),
        ("{{ messages }}", "generic"),
        ("<|im_start|> <tool_call>\n{json}\n</tool_call>", "hermes"),
        ("<tool_call> <function= <parameter=", "qwen3-coder"),
        ("<tool_call> <arg_key>", "glm"),
        ("[TOOL_CALLS][ARGS]", "mistral"),
        ("[TOOL_CALLS][", "mistral-nemo"),
        ("<|channel|>analysis<|message|>", "harmony"),
        ("<|start_header_id|> <|python_tag|>", "llama3"),
        (">>>all", "functionary-v3.2"),
    ],
)
def test_format_of_a_template(template: str | None, name: str) -> None:
    assert detect_format(template).name == name


def test_the_longest_marker_wins() -> None:
    for chunks, marker in ((["xa", "b"], "ab"), (["x", "a", "c"], "a"), (["xab"], "ab")):
        scanner, found = Scanner(), []

        def parse(scanner: Scanner = scanner, found: list[str | None] = found) -> Parser[None]:
            found.append((yield from scanner.until(["a", "ab"], found.append)))

        parser = parse()
        for chunk in chunks:
            scanner.feed(chunk)
            next(parser, None)
        assert found == ["x", marker]


def test_unknown_format() -> None:
    with pytest.raises(ValidationError, match="hermes"):
        get_format("nothing")
