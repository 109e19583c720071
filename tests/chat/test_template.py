"""Chat templates: the environment, the messages, the errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from support.children import Child

from llama_cffi import demo
from llama_cffi.chat.template import ChatTemplate, pick_template
from llama_cffi.errors import TemplateError, ValidationError
from llama_cffi.gguf.reader import read_gguf

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HI = [{"role": "user", "content": "Hi"}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "é"]}'}}
    ],
}


def render(source: str, **values: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(values.pop("messages", HI), **values)


def test_messages_and_generation_prompt() -> None:
    template = ChatTemplate(CHATML)
    user = "<|im_start|>user\nHi<|im_end|>\n"
    assert template.render(HI) == user + "<|im_start|>assistant\n"
    assert template.render(HI, None, False) == user


def test_jinja_is_imported_when_first_used(child: Child) -> None:
    done = child("""
        import sys
        import llama_cffi
        import llama_cffi.chat
        from llama_cffi.chat.template import ChatTemplate
        template = ChatTemplate("{% broken")
        assert "jinja2" not in sys.modules
        template = ChatTemplate("{{ messages[0].content }}")
        print(template.render([{"role": "user", "content": "Hi"}]), "jinja2" in sys.modules)
    """)
    assert done.stdout == "Hi True\n"


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ '<é>&\\'\"' | tojson }}", '"<é>&\'\\""'),
        (
            "{{ {'b': 1, 'a': [2]} | tojson(sort_keys=true, separators=(',', ':')) }}",
            '{"a":[2],"b":1}',
        ),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("a{% generation %}{% set x = 1 %}b{{ x }}{% endgeneration %}c{{ x }}", "ab1c"),
        ("{{ dict(a=1).a }}{{ dict.fromkeys(['b']) }}", "1{'b': None}"),
        ("{% set n = namespace(a=1) %}{% if 1 %}{% set n.a = 2 %}{% endif %}{{ n.a }}", "2"),
        ("{{ namespace(self=3).self }}", "3"),
        ("{{ 'a' ~ 1 ~ none ~ missing }}", "a1None"),
        ("{{ missing }}{{ missing is defined }}", "False"),
        ("{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{{ '%s-%d' % ('a', 3) }}{{ '{:>3}'.format(7) }}", "a-3  7"),
        ("{{ messages | map(attribute='content') | join(',') }}", "Hi"),
        ("{{ ('-' * 9000).join(['a', 'b']) | length }}", "9002"),
        ("{{ 'x' | indent(2, true) }}{{ ', '.join(['a', 'b']) }}", "  xa, b"),
    ],
)
def test_environment(source: str, out: str) -> None:
    assert render(source) == out


def test_strftime_now() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_kwargs_reach_the_template_and_are_listed() -> None:
    source = "{{ enable_thinking }}{{ messages|length }}{{ namespace(a=1).a }}{{ bos_token }}"
    assert render(source, enable_thinking=False) == "False11<s>"
    assert ChatTemplate(source).variables == {"enable_thinking"}


def test_a_syntax_error_names_the_line() -> None:
    template = ChatTemplate("{{ bos_token }}\n{% if %}")
    for use in (lambda: template.render(HI), lambda: template.variables, lambda: template.adds_bos):
        with pytest.raises(TemplateError, match=r"error in line 2: Expected an expression"):
            use()


def test_raise_exception() -> None:
    source = "a\n{% if messages[0].content == 'x' %}\n{{ raise_exception('No x!') }}{% endif %}"
    with pytest.raises(TemplateError, match=r"refuses these messages: No x!$"):
        render(source, messages=[{"role": "user", "content": "x"}])
    assert render(source) == "a\n"


def test_a_failure_names_the_line() -> None:
    with pytest.raises(TemplateError, match=r"fails in line 2: 'nothing' is undefined"):
        render("a\n{{ nothing.at.all }}")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("Hi", "messages must be a list of dicts, got str"),
        ({"role": "user"}, "got dict"),
        ([], "messages must not be empty"),
        (["Hi"], r"messages\[0\] must be a dict, got str"),
        ([{"content": "Hi"}], r"messages\[0\] has no role"),
        ([*HI, {"role": "", "content": ""}], r"messages\[1\] has the role ''"),
        ([{"role": 1}], "has the role 1"),
        (
            [{"role": "user", "content": 5}],
            r"messages\[0\]\['content'\] must be a str, None or a list of parts, got int",
        ),
        (
            [{"role": "user", "content": [5]}],
            r"\['content'\]\[0\] must be a str or a dict, got int",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "'text' must be a str"),
        ([{"role": "user", "content": "\ud800"}], "unpaired surrogate at position 0"),
        ([{"role": "user", "content": b"Hi"}], "got bytes"),
        ([{"role": "user", "x": {1: 2}}], r"\['x'\] has the key 1"),
        ([{"role": "user", "x": {"y": [object()]}}], r"\['x'\]\['y'\]\[0\] must be .* got object"),
        ([{"role": "assistant", "tool_calls": {}}], "must be a list of calls"),
        (
            [{"role": "assistant", "tool_calls": [{}]}],
            r"tool_calls'\]\[0\] does not name a function",
        ),
    ],
)
def test_messages_of_the_wrong_shape(messages: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ChatTemplate(CHATML).render(messages)


def test_a_list_that_contains_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValidationError, match="nested deeper than 100 levels, or contains itself"):
        render("{{ x }}", x=loop)


@pytest.mark.parametrize("source", ["", None, 5])
def test_a_source_must_be_a_string(source: Any) -> None:
    with pytest.raises(ValidationError, match="must be a non-empty str"):
        ChatTemplate(source)


def test_objects_become_plain_data() -> None:
    class Colour(str, Enum):
        RED = "red"

    @dataclass
    class Thing:
        colour: Colour

    class Model:
        def model_dump(self, exclude_none: bool) -> dict[str, Any]:
            return {"role": "user", "content": "Hi"} if exclude_none else {}

    assert (
        render("{{ x.colour }}{{ x.colour.name }}|{{ y }}", x=Thing(Colour.RED), y=(1,))
        == "red|[1]"
    )
    assert render("{{ messages[0].content }}", messages=[Model()]) == "Hi"


def test_the_callers_messages_are_unchanged() -> None:
    messages = [*HI, {**CALL, "reasoning": "Hm"}, {"role": "assistant", "content": "a"}]
    before = json.dumps(messages)
    render("{{ messages[2].content }}", messages=messages, continue_final_message=True)
    assert json.dumps(messages) == before


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_under_every_name(name: str) -> None:
    message = {"role": "assistant", "content": "", name: "Hm"}
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert render(source, messages=[message]) == "Hm Hm"


def arguments(source: str, given: object = '{"a": [1, "é"]}') -> str:
    function = {**CALL["tool_calls"][0]["function"], "arguments": given}  # type: ignore[index]
    message = {**CALL, "tool_calls": [{"type": "function", "function": function}]}
    return render(source, messages=[*HI, message])


CALLS = "{% for c in (messages|last).tool_calls or () %}{% set a = c.function.arguments %}"


def test_arguments_in_json_become_mappings() -> None:
    assert arguments(CALLS + "{{ a | tojson }}{% endfor %}") == '{"a": [1, "é"]}'
    assert arguments(CALLS + "{{ a | tojson }}{% endfor %}", "") == "{}"
    assert arguments(CALLS + "{{ a | tojson }}{% endfor %}", "[no json") == '"[no json"'
    items = CALLS + "{% for k, v in a | items %}{{ k }}={{ v }}{% endfor %}{% endfor %}"
    assert arguments(items) == "a=[1, 'é']"


@pytest.mark.parametrize("text", ["{{ a }}", "{{ 'x' + a }}"])
def test_arguments_stay_json_for_templates_that_print_them(text: str) -> None:
    assert arguments(CALLS + text + "{% endfor %}").endswith('{"a": [1, "é"]}')


def test_content_is_none_only_where_the_template_shows_calls_only_then() -> None:
    always = "{% for m in messages %}{{ m.content is none }},{{ m.tool_calls }}{% endfor %}"
    assert "True" not in render(always, messages=[CALL])
    adds = "{% for m in messages %}{{ m.content + '.' }}{% endfor %}"
    assert render(adds, messages=[CALL]) == "."
    only = (
        "{% for m in messages %}{% if m.content is none %}{{ m.tool_calls[0].function.name }}("
        "{{ m.tool_calls[0].function.arguments | tojson }}){% else %}{{ m.content }}.{% endif %}"
        "{% endfor %}"
    )
    assert render(only, messages=[CALL]) == render(only, messages=[{**CALL, "content": ""}])
    assert render(only, messages=[CALL]).startswith("f({")
    both = render(only, messages=[{**CALL, "content": "Wait"}])
    assert both == "Wait." + render(only, messages=[CALL])


PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
]
TAKES_PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}PART{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content }}", "a\nb"),
        ("{{ messages[0].content + '!' }}", "a\nb!"),
        (TAKES_PARTS.replace("PART", ""), "ab"),
        (TAKES_PARTS.replace("PART", "{{ '\n\n' if not loop.first }}"), "a\n\nb"),
        (TAKES_PARTS.replace("PART", "<|text|>"), "a\nb"),  # decorated
        ("{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}", "[a\nb]"),  # parts only
    ],
)
def test_parts_are_joined_as_the_template_joins_them(source: str, text: str) -> None:
    assert render(source, messages=PARTS) == text


def test_tools_as_functions() -> None:
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: Where.
        """
        return city

    text = render("{{ tools | tojson }}", tools=[weather, {"type": "function", "x": 1}])
    made, given = json.loads(text)
    assert made["function"]["name"] == "weather"
    assert made["function"]["parameters"]["properties"]["city"]["description"] == "Where."
    assert given == {"type": "function", "x": 1}
    for wrong in ("f", {"a": 1}, [5], ["f"]):
        with pytest.raises(ValidationError, match="tool"):
            render("?", tools=wrong)


def test_continued() -> None:
    messages = [*HI, {"role": "assistant", "content": "Sunny and  "}]
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSunny and  "
    assert render(CHATML, messages=messages, continue_final_message=True) == prompt
    asked = "{{ add_generation_prompt }}" + CHATML
    assert render(asked, messages=messages, continue_final_message=True) == "False" + prompt
    trims = CHATML.replace("m.content", "m.content|trim")
    assert render(trims, messages=messages, continue_final_message=True) == prompt.rstrip()
    parts = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "Sunny"}]}]
    assert render(CHATML, messages=parts, continue_final_message=True).endswith("\nSunny")
    thinks = "{% for m in messages %}{{ m.thinking }}</think>{{ m.content }}{% endfor %}"
    message = [{"role": "assistant", "content": "x", "reasoning": "Hm"}]
    assert render(thinks, messages=message, continue_final_message="reasoning_content") == "Hm"


@pytest.mark.parametrize(
    ("source", "field", "message", "says"),
    [
        (CHATML, "tool_plan", {"content": None}, "has no 'tool_plan' to continue"),
        (CHATML, "mood", {"content": "a", "mood": 5}, "never reads 'mood'"),
        (CHATML + "mood", "mood", {"content": "a", "mood": 5}, "must be text to be continued"),
        (CHATML, "thinking", {"thinking": "a"}, "never reads 'thinking'"),
        ("{{ messages[0].role }} content", True, {"content": "a"}, "changes or omits"),
    ],
)
def test_messages_that_cannot_be_continued(
    source: str, field: Any, message: Any, says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        render(source, messages=[{"role": "assistant", **message}], continue_final_message=field)


def test_what_a_template_supports() -> None:
    full = ChatTemplate("{{ bos_token }}{{ tools }}" + CHATML, "<s>")
    assert (full.supports_system, full.supports_tools, full.adds_bos) == (True, True, True)
    refuses = "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    bare = ChatTemplate(refuses, "<s>")
    assert (bare.supports_system, bare.supports_tools, bare.adds_bos) == (False, False, False)
    assert not ChatTemplate(CHATML).adds_bos


def test_named_templates() -> None:
    gguf = {"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t"}
    assert pick_template(gguf) == "d"
    assert pick_template(gguf, tools=True) == "t"
    assert pick_template(gguf, "default", tools=True) == "d"
    assert pick_template({"default": "d"}, tools=True) == "d"
    assert pick_template({"rag": "r"}) == "r"
    with pytest.raises(
        ValidationError, match="no chat template 'rag'; available: 'default', 'tool_use'"
    ):
        pick_template(gguf, "rag")
    with pytest.raises(ValidationError, match="available: none"):
        pick_template({})


def test_the_demo_models_own_template() -> None:
    source = read_gguf(demo.model_path()).metadata["tokenizer.chat_template"]
    template = ChatTemplate(source)
    text = template.render(HI)
    assert "Hi" in text
    assert text == "".join(s.text for s in template.render_segments(HI))
    assert template.supports_tools


def test_none_with_calls_that_fails_only_before_other_messages() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if not loop.last %}{{ m.content.split('x')[-1] }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}"
    )
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call00001", "content": "1"}
    assert template.render([{"role": "user", "content": "a"}, said, result]) == "af"
