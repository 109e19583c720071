# ruff: noqa: RUF001 -- DeepSeek's own characters
"""Calls between tags: what belongs to a value, and what is kept of a call that is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.parsed_answers import Call, read, tool

from llama_cffi.chat.formats import FORMATS, Alternatives, Element, Json, Text, get_format
from llama_cffi.chat.formats.tagged_arguments import TaggedArgumentsFormat, raw_value

STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
NULLABLE = {"anyOf": [STRING, NULL]}
TAGGED = {name: form for name, form in FORMATS.items() if isinstance(form, TaggedArgumentsFormat)}

EDIT = [
    tool("edit", path=STRING, text=STRING, n=INTEGER),
    tool("run", command=STRING),
    tool("now"),
]
A, B = ("edit", {"path": "a.py"}), ("edit", {"path": "b.py"})


def parsed(form: str, text: str, tools: Any) -> tuple[str, list[Call]]:
    """Return the content and the calls of an answer."""
    answer = read(form, text, tools)
    return answer.content, answer.calls


class Writer:
    """Writes calls of one format."""

    def __init__(self, name: str) -> None:
        self.form = TAGGED[name]
        self.is_typed = len(self.form.key) > 2
        #: What comes before each call, outside of its tags.
        self.head = " to=put<|message|>" if name == "muse" else ""
        self.separator = f"<|eom|><|start|>assistant{self.head}" if name == "muse" else "\n"
        self._attributes = ' index="1"<|sep|>' if name == "kimi-k3" else "\n"
        self._types = {"string": self.form.key[1], "number": self.form.key[-1]}
        if name == "kimi-k3":
            self._types["number"] = '" type="number"<|sep|>'

    def parameter(self, key: str, value: Any, end: bool = True) -> str:
        """Write a parameter, perhaps without its end tag."""
        form, text = self.form, value if isinstance(value, str) else json.dumps(value)
        after = self._types["string" if isinstance(value, str) or not self.is_typed else "number"]
        closed = f"{form.frame}{form.value[1]}" if end else ""
        line = "" if form.is_inline and not end else "\n"
        return f"{form.key[0]}{key}{after}{form.value[0]}{form.frame}{text}{closed}{line}"

    def call(self, *parameters: str, is_closed: bool = True, name: str = "put") -> str:
        """Write a call, perhaps without its end."""
        form = self.form
        opened = f"{form.open}\n" if form.open and form.before else form.open
        head = f"{opened}{form.before}{name}{form.after_name}{self._attributes}"
        close = f"\n{form.close}" if form.close else ""
        return head + "".join(parameters) + (f"{form.after}{close}" if is_closed else "")

    def calls(self, text: str, **schemas: Any) -> list[tuple[str, dict[str, Any]]]:
        """Return the calls that are read in a text."""
        tools = [tool("put", **(schemas or {"value": STRING, "count": INTEGER}))]
        return parsed(self.form.name, self.head + text, tools)[1]


@pytest.fixture(params=TAGGED)
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer(request.param)


# Types


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (
            STRING,
            ["90210", "true", "null", "1e5", "[1]", '{"a": 1}', '"a"', "\n\na\n\n", " a ", ""],
        ),
        ({"type": ["string", "null"]}, ["90210", "true", "1e5", "[1]", '{"a": 1}', None]),
        (NULLABLE, ["90210", "nullable", "Nonesuch", None]),
        ({"oneOf": [NULL, STRING]}, ["true", None]),
        ({"allOf": [STRING]}, ["1", "null"]),
        ({"const": "90210"}, ["90210"]),
        ({"enum": ["90210", "true", None]}, ["90210", "true", None]),
        ({"type": "string", "nullable": True}, ["90210", None]),
        (INTEGER, [7, -3]),
        ({"type": ["boolean", "null"]}, [False, None]),
        ({"type": "array", "items": STRING}, [["90210", "a</x>", 'say "hi"\n', ""], []]),
        ({"type": "object"}, [{"k": {"b": ["1", None, 1.5]}}, {}]),
    ],
    ids=lambda case: str(case)[:40],
)
def test_values_come_back_as_the_schema_allows(
    writer: Writer, schema: Any, values: list[Any]
) -> None:
    for value in values:
        for other in ({"value": schema, "count": INTEGER}, {"value": schema}):
            first = writer.parameter("value", value)
            rest = writer.parameter("count", 7) if "count" in other else ""
            expected = {"value": value, "count": 7} if rest else {"value": value}
            assert writer.calls(writer.call(first, rest), **other) == [("put", expected)]


def test_references_of_a_parameter_are_followed(writer: Writer) -> None:
    put = tool("put", value={"$ref": "#/$defs/Zip"})
    put["function"]["parameters"]["$defs"] = {"Zip": {"$ref": "#/$defs/T"}, "T": NULLABLE}
    for value in ("90210", "true", None):
        text = writer.head + writer.call(writer.parameter("value", value))
        assert parsed(writer.form.name, text, [put]) == ("", [("put", {"value": value})])


def test_integers_are_integers(writer: Writer) -> None:
    written = writer.parameter("value", 140.0) + writer.parameter("deep", {"n": [1.0, 2.5e1]})
    schemas = {
        "value": INTEGER,
        "deep": {"properties": {"n": {"type": "array", "items": INTEGER}}},
    }
    [(_, found)] = writer.calls(writer.call(written), **schemas)
    assert json.dumps(found) == '{"value": 140, "deep": {"n": [1, 25]}}'


# Where a value ends


def _tags(form: TaggedArgumentsFormat) -> list[str]:
    tags = (form.open, form.before, form.key[0], *form.value, form.after, form.close)
    return list(dict.fromkeys(filter(None, tags)))


def test_a_value_may_contain_the_tags_of_its_format(writer: Writer) -> None:
    tags = _tags(writer.form)
    texts = ["\n".join(tags), " ".join(reversed(tags))]
    texts += [text for tag in tags for text in (f"a {tag} b", tag, f"\n{tag}\n", f"a{tag}")]
    example = writer.call(writer.parameter("value", "x"), writer.parameter("count", 1))
    texts += [example, f"See:\n{example}\nand:\n{example}"]
    for text in texts:
        value, count = writer.parameter("value", text), writer.parameter("count", 7)
        both = ("put", {"value": text, "count": 7})
        assert writer.calls(writer.call(value, count)) == [both]
        assert writer.calls(writer.call(count, value)) == [both]


def test_the_last_end_of_the_call_counts(writer: Writer) -> None:
    end = writer.call(writer.parameter("value", "x")).partition("x")[2]
    text = f"a{end}\nb"
    assert writer.calls(writer.call(writer.parameter("value", text))) == [("put", {"value": text})]


def test_a_missing_end_tag_loses_nothing(writer: Writer) -> None:
    value, count = writer.parameter("value", "a b", end=False), writer.parameter("count", 7)
    other = ("put", {"value": "x", "count": 1})
    next_call = writer.call(writer.parameter("value", "x"), writer.parameter("count", 1))
    wanted = ("put", {"value": "a b", "count": 7})
    last = value.removesuffix("\n") + writer.form.frame
    assert writer.calls(writer.call(value, count)) == [wanted]
    assert writer.calls(writer.call(count, last)) == [wanted]
    assert writer.calls(writer.call(count, last) + writer.separator + next_call) == [wanted, other]
    assert writer.calls(writer.call(count, last, is_closed=False)) == [wanted]
    if writer.head == "":
        cut = writer.call(count, last, is_closed=False).removesuffix("\n")
        assert writer.calls(f"{cut}\n{next_call}") == [wanted, other]
    complete = writer.parameter("value", "a b")
    assert writer.calls(writer.call(count, complete, is_closed=False)) == [wanted]


def test_a_broken_parameter_takes_nothing_with_it(writer: Writer) -> None:
    value, count = writer.parameter("value", "a b"), writer.parameter("count", 7)
    wanted = ("put", {"value": "a b", "count": 7})
    whole = writer.call(value, count)
    for broken in (f"{writer.form.key[0]}\n<", f"{writer.form.key[0]}c: 7\n<", "oops\n"):
        first = (
            writer.call(count, broken, value)
            if "oops" in broken
            else writer.call(broken, value, count)
        )
        assert writer.calls(first + writer.separator + whole) == [wanted, wanted]


def test_unknown_parameters_are_given(writer: Writer) -> None:
    text = writer.call(writer.parameter("value", "a"), writer.parameter("why", "b"))
    assert writer.calls(text) == [("put", {"value": "a", "why": "b"})]


def test_arguments_may_be_a_json_object(writer: Writer) -> None:
    text = writer.call('{"value": "90210", "count": 7.0}\n')
    assert writer.calls(text) == [("put", {"value": "90210", "count": 7})]
    broken = writer.call('{"value": "90210", "count": 7\n')
    assert writer.calls(broken + writer.separator + text) == writer.calls(text) * 2


def test_a_wrapper_around_all_arguments_is_taken_off(writer: Writer) -> None:
    inner = {"value": "90210", "count": 7}
    for name in ("arguments", "parameters", "input"):
        for value in (inner, json.dumps(inner)):
            text = writer.call(writer.parameter(name, value))
            assert writer.calls(text) == [("put", inner)]
            own = {"value": STRING, name: {"type": ["object", "string"]}}
            assert writer.calls(text, **own)[0][1].keys() == {name}
    text = writer.call(writer.parameter("arguments", "ls -la"))
    assert writer.calls(text, value=STRING) == [("put", {"value": "ls -la"})]


def test_arguments_are_json_wherever_the_answer_ends(writer: Writer) -> None:
    inside = [writer.parameter("value", 'a "b"\n'), writer.parameter("more", {"k": ["x\ny", 1.5]})]
    text = writer.head + writer.call(*inside)
    tools = [tool("put", value=STRING, more={"type": "object"})]
    for end in range(len(text)):
        message = get_format(writer.form.name).parse(text[:end], tools)
        for call in message.tool_calls:
            assert json.loads(call.arguments).keys() <= {"value", "more"}
            assert call.is_complete or message.is_malformed


def test_a_mention_of_a_tag_is_no_call() -> None:
    text = "I will use <function=edit> now."
    assert parsed("qwen3-coder", text, EDIT) == (text, [])
    whole = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
    assert parsed("qwen3-coder", f"{text}\n{whole}", EDIT) == (text, [("now", {})])


def test_a_name_that_only_begins_a_value_is_null_only_where_it_is_all_of_it() -> None:
    writer = Writer("qwen3-coder")
    for text, expected in (("null", None), ("null and void", "null and void"), ("None", None)):
        call = writer.call(writer.parameter("value", text))
        assert writer.calls(call, value=NULLABLE) == [("put", {"value": expected})]
        assert writer.calls(call, value=STRING) == [("put", {"value": text})]


# Mistakes of families


def _coder(body: str, name: str = "<function=edit>") -> str:
    return f"<tool_call>\n{name}\n{body}</function>\n</tool_call>"


@pytest.mark.parametrize(
    "body",
    [
        "<parameter=path\na.py\n</parameter>\n",
        "<parameter=path>\na.py\n</path>\n",
        "<parameter=path>a.py</parameter>",
        "<parameter=path>\na.py\n",
        "I think:\n<parameter=path>\na.py\n</parameter>\n",
    ],
)
@pytest.mark.parametrize("name", ["<function=edit>", "<function=edit"])
def test_qwen3_coder(body: str, name: str) -> None:
    if name.endswith(">") or body.startswith("<"):
        good = _coder("<parameter=path>\nb.py\n</parameter>\n")
        assert parsed("qwen3-coder", f"{_coder(body, name)}\n{good}", EDIT) == ("", [A, B])


def test_values_that_quote_the_format() -> None:
    for text in (
        "A tool call block ends with </tool_call> on its own.",
        "p = r'<parameter=edits>\\n(.*?)\\n</parameter>'\nprint(p)",
        "<parameter>\n  <hello></hello>\n</parameter>",
        "<command>ls</command>\n",
    ):
        call = f"<function=run>\n<parameter=command>\n{text}\n</parameter>\n</function>"
        assert parsed("qwen3-coder", f"<tool_call>\n{call}\n</tool_call>", EDIT) == (
            "",
            [("run", {"command": text})],
        )


def test_hermes_calls_of_models_with_other_templates() -> None:
    now, run = (
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "run", "arguments": {"command": "x"}}\n</tool_call>',
    )
    for form in ("qwen3-coder", "glm"):
        assert parsed(form, f"{now}\n{run}", EDIT) == ("", [("now", {}), ("run", {"command": "x"})])


_VALUE = "<arg_value>a.py</arg_value>"


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>edit\n<arg_key>path</arg_key>\n{_VALUE}\n</tool_call>",
        f"<tool_call>edit<arg_key>path</arg_key></arg_key>{_VALUE}</tool_call>",
        f"<tool_call>edit<arg_key><arg_key>path</arg_key>{_VALUE}</tool_call>",
        "<tool_call>edit<arg_key>path</arg_key>a.py</arg_value></tool_call>",
        f"<tool_call>edit<arg_key>path{_VALUE}</tool_call>",
        f"<tool_call>editpath</arg_key>{_VALUE}</tool_call>",
        f"<tool_call>edit path</arg_key>{_VALUE}</tool_call>",
        f"<tool_call>edit<tool_call>path</arg_key>{_VALUE}</tool_call>",
        "<tool_call>edit<arg_key>path</arg_key><arg_value>a.py</tool_call>",
        f"<tool_call>edit<arg_key>path</arg_key>{_VALUE}",
    ],
)
def test_glm(text: str) -> None:
    good = "<tool_call>edit<arg_key>path</arg_key><arg_value>b.py</arg_value></tool_call>"
    assert parsed("glm", f"{text}\n{good}", EDIT) == ("", [A, B])


_D = "｜DSML｜"


def _dsml(body: str, calls: str = "function_calls") -> str:
    invoke = f'<{_D}invoke name="edit">\n{body}\n</{_D}invoke>'
    return f"<{_D}{calls}>\n{invoke}\n</{_D}{calls}>"


_PATH = f'<{_D}parameter name="path" string="true">a.py</{_D}parameter>'
_MISTAKES: list[Callable[[str], str]] = [
    lambda calls: _dsml(_PATH, calls),
    lambda calls: _dsml(_PATH.replace(' string="true"', ""), calls),
    lambda calls: _dsml(_PATH, calls).partition("\n")[2],
    lambda calls: _dsml(_PATH, calls).rpartition("\n")[0],
    lambda calls: _dsml(_PATH, calls).rsplit("\n", 2)[0],
    lambda calls: _dsml('{"path": "a.py"}', calls),
    lambda calls: _dsml('{"arguments": {"path": "a.py"}}', calls),
    lambda calls: _dsml('{"input": "{\\"path\\": \\"a.py\\"}"}', calls),
    lambda calls: _dsml(f'<{_D}parameter nam="x">1</{_D}parameter>\n{_PATH}', calls),
]


@pytest.mark.parametrize("mistake", _MISTAKES)
@pytest.mark.parametrize("calls", ["function_calls", "tool_calls", "toolcalls"])
@pytest.mark.parametrize("form", ["deepseek-v3.2", "deepseek-v4"])
def test_dsml(form: str, calls: str, mistake: Callable[[str], str]) -> None:
    assert parsed(form, mistake(calls), EDIT) == ("", [A])


def test_the_attribute_of_dsml_says_what_is_text_where_the_schema_allows_it() -> None:
    def of(value: str, attribute: str) -> Any:
        body = f'<{_D}parameter name="x" string="{attribute}">{value}</{_D}parameter>'
        tools = [tool("edit", x={"type": ["string", "integer"]})]
        return parsed("deepseek-v3.2", _dsml(body), tools)[1][0][1]["x"]

    assert of("90210", "true") == "90210"
    assert of("90210", "false") == 90210
    number = f'<{_D}parameter name="n" string="true">5</{_D}parameter>'
    assert parsed("deepseek-v3.2", _dsml(number), EDIT)[1] == [("edit", {"n": 5})]


def test_a_malformed_call_does_not_take_its_sibling() -> None:
    text = _dsml(f'</{_D}invoke>\n<{_D}invoke name="edit">\n{_PATH}').replace("edit", "???\n", 1)
    assert parsed("deepseek-v4", text, EDIT)[1] == [A]


def test_kimi_k3_with_a_json_block() -> None:
    block = '<|open|>json type="object"<|sep|>{"path": "a.py"}<|close|>json<|sep|>'
    text = (
        f'<|open|>tools<|sep|><|open|>call tool="edit" index="1"<|sep|>{block}'
        "<|close|>call<|sep|><|close|>tools<|sep|>"
    )
    assert parsed("kimi-k3", text, EDIT) == ("", [A])


# Grammars


def _alternatives(schema: Any) -> list[Element]:
    *element, end = raw_value(schema, "</p>")
    if isinstance(end, Alternatives):
        assert all(option[1:] == ("</p>",) for option in end.options)
        return [option[0] for option in end.options]
    assert end == "</p>"
    return element


def test_text_or_null_is_written_without_quotes() -> None:
    limited = {"type": "string", "maxLength": 3}
    zip_code = {"enum": ["90210", None]}
    assert _alternatives(STRING) == [Text("</p>")]
    assert _alternatives(zip_code) == ["90210", "null"]
    assert _alternatives({"const": "a"}) == ["a"]
    assert _alternatives(NULLABLE) == [Text("</p>"), "null"]
    assert _alternatives({"anyOf": [zip_code, {"const": "x"}]}) == ["90210", "null", "x"]
    assert _alternatives({"$ref": "#/$defs/Z", "$defs": {"Z": zip_code}}) == ["90210", "null"]
    [text, null] = _alternatives({**limited, "type": ["string", "null"]})
    assert isinstance(text, Text)
    assert (text.schema["maxLength"], null) == (3, "null")
    assert _alternatives({"type": ["string", "integer"]}) == [Json({"type": ["string", "integer"]})]
    assert _alternatives({"type": "null"}) == [Json({"type": "null"})]


def test_a_model_that_begins_calls_without_end_is_read_to_the_end() -> None:
    writer = Writer("qwen3-coder")
    begun = "<tool_call>\n<function=put>\n<parameter=value>\n"
    calls = writer.calls(begun * 60)
    assert [name for name, _ in calls] == ["put"] * 60
    assert (
        writer.calls(f"{begun}x\n</function>\n</tool_call>\n" * 40)
        == [("put", {"value": "x"})] * 40
    )
