"""Templates that would loop, grow or leave the sandbox."""

from __future__ import annotations

import pytest

from llama_cffi.chat.template import ChatTemplate
from llama_cffi.errors import TemplateError

DOUBLED = (
    "{%% set n = namespace(x='ab') %%}{%% for i in range(99) %%}{%% set n.x = %s %%}{%% endfor %%}"
)
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
LOOPS = "it loops for more than 2,000,000 iterations"
LARGE = "it creates a value of more than"
WRITES = "it writes more than 16,777,216 characters"


def fails(source: str) -> str:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", LOOPS),
        (
            "{% for i in range(99999) %}{% for j in range(9999) if 0 %}{% endfor %}{% endfor %}",
            LOOPS,
        ),
        (CALLS + "{{ f(40) }}", LOOPS),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% block b %}{{ self.b() }}{% endblock %}", "recursion"),
        ("{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}", "recursion"),
        ("{% for i in range(99999) %}" + "x" * 999 + "{% endfor %}", WRITES),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", WRITES),
        ("{% set x %}{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}{% endset %}", WRITES),
        ("{{ range(10 ** 10) }}", "Range too big"),
        ("{{ 'x' * 10 ** 10 }}", LARGE),
        ("{{ 10 ** 10 * [1] }}", LARGE),
        ("{{ 2 ** (10 ** 10) }}", "more than 100,000 bits"),
        (DOUBLED.replace("'ab'", "9") % "n.x * n.x", "more than 100,000 bits"),
        (DOUBLED % "n.x ~ n.x", LARGE),
        (DOUBLED % "n.x + n.x", LARGE),
        (DOUBLED % "n.x | tojson", LARGE),
        (DOUBLED % "n.x.replace('a', n.x)", LARGE),
        (DOUBLED % "n.x | replace('a', n.x)", LARGE),
        (DOUBLED % "n.x.join(n.x)", LARGE),
        (DOUBLED % "n.x | map('upper') | join(n.x)", LARGE),
        (DOUBLED % "'%s%s' % (n.x, n.x)", LARGE),
        (DOUBLED % "'{0}{0}'.format(n.x)", LARGE),
        (DOUBLED % "n.x.translate({97: n.x})", LARGE),
        ("{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}", LARGE),
        ("{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}", LARGE),
        ("{{ ('a' * 10 ** 6).translate({97: 'b' * 10 ** 6}) }}", LARGE),
        ("{{ ('a' * 10 ** 6).join(range(99999) | map('string')) }}", LARGE),
        ("{{ range(99999) | map('string') | join('a' * 10 ** 6) }}", LARGE),
        ("{{ 'x'.ljust(10 ** 10) }}", "calls ljust with 10,000,000,000"),
        ("{{ 'x' | center(10 ** 10) }}", "calls center"),
        ("{{ [1] | batch(10 ** 10, 1) | list }}", "calls batch"),
        ("{{ [1] | tojson(indent=10 ** 10) }}", "calls tojson"),
        ("{{ '%9999999d' % 1 }}", "more than 5 digits"),
        ("{{ '{:9999999}'.format(1) }}", "more than 5 digits"),
        ("{{ '%*d' % (10 ** 10, 1) }}", LARGE),
        ("{{ strftime_now('%9999999Y') }}", "more than 5 digits"),
        ("{{ lipsum(n=10 ** 9) }}", "'lipsum' is undefined"),
    ],
)
def test_unlimited_time_and_memory(source: str, says: str) -> None:
    assert says in fails(source)


def test_a_short_list_that_is_long_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_cffi.chat.template_limits.MAX_CHARS", 10_000)  # to be fast
    for use in (
        "n.x",
        "n.x | tojson",
        "n.x | string",
        "'%s' % (n.x,)",
        "n.x ~ ''",
        "raise_exception(n.x)",
    ):
        assert LARGE in fails(DOUBLED % "[n.x, {'a': n.x}]" + "{{ " + use + " }}"), use


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ ('' | attr('format')).__self__.x }}",
        "{{ '{0.__class__.__mro__}'.format(1) + missing.x }}",
        "{{ namespace(_x=1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ dict.__class__.x }}",
        "{{ self._TemplateReference__context.x }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{{ 1 / 0 }}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ " + "1 + " * 5000 + "1 }}",
        "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
        "{% for i in x %}" * 30 + "{% endfor %}" * 30,
    ],
)
def test_what_the_sandbox_refuses(source: str) -> None:
    assert "template" in fails(source)


def test_templates_cannot_name_the_counters() -> None:
    assert "error in line 1" in fails("{{ 1 | (step) }}")


def test_a_long_message_is_truncated() -> None:
    assert len(fails("{{ raise_exception('x' * 10000000) }}")) < 3000


def test_each_rendering_has_its_own_limits() -> None:
    template = ChatTemplate("{% for i in range(99999) %}xxxxxxxxxx{% endfor %}")
    for _ in range(20):
        assert len(template.render([{"role": "user", "content": ""}])) == 999_990
