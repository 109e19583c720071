"""The Jinja environment of chat templates, equal to that of transformers. Imports jinja2.

Templates come from untrusted files: they run in Jinja's sandbox on copies of plain data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace

from ..errors import TemplateError
from .template_limits import JOINED, STEP, LimitedEnvironment, check_format, limited, limits, size

__all__ = ["compile_template", "inspected", "render", "roles", "variables"]

_FILE = "<chat template>"
_MAX_MESSAGE = 2000  # characters of a template's error message
# The same time for every rendering of the same messages.
_now: ContextVar[datetime] = ContextVar("now")
_PARAMETERS = frozenset(
    ["messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"]
)


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template.

    Raises:
        TemplateError: The template is invalid; the error names the line.
    """
    try:
        env = _environment()
        code = env.compile(source, filename=_FILE)
        return jinja2.Template.from_code(env, code, env.make_globals(None))
    except jinja2.TemplateSyntaxError as e:
        raise TemplateError(
            f"the chat template has an error in line {e.lineno}: {e.message}"
        ) from e
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as e:
        raise TemplateError(f"the chat template cannot be compiled: {_message(e)}") from e


def render(template: jinja2.Template, values: Mapping[str, Any], now: datetime) -> str:
    """Render a template.

    Args:
        template: The compiled template.
        values: Its variables, in plain types.
        now: The time for `strftime_now`.

    Raises:
        TemplateError: The template refuses the messages, or fails; the error names the line.
    """
    token = _now.set(now)
    try:
        with limits(values):
            # As `template.render`, which rewrites tracebacks: such a one refers to itself, and so
            # keeps the frames of all callers, and streams in them, until a garbage collection.
            context = template.new_context(dict(values))
            return str(template.environment.concat(template.root_render_func(context)))
    except _Refused as e:
        raise TemplateError(f"the chat template refuses these messages: {_message(e)}") from e
    except Exception as e:
        raise TemplateError(f"the chat template fails{_line(e, template)}: {_message(e)}") from e
    finally:
        _now.reset(token)


def variables(source: str) -> frozenset[str]:
    """Return the variables that a template reads, except those that every template gets."""
    env = _environment()
    return frozenset(
        meta.find_undeclared_variables(env.parse(source)) - _PARAMETERS - {*env.globals}
    )


def inspected(source: str) -> frozenset[str]:
    """Return the strings that a template may search for: compared, assigned, or passed to calls."""
    found: list[nodes.Node] = []
    for node in _environment().parse(source).find_all(nodes.Node):
        if isinstance(node, nodes.Compare):
            found += [node.expr, *(operand.expr for operand in node.ops)]
        elif isinstance(node, nodes.Assign):
            found.append(node.node)
        elif isinstance(node, nodes.Filter) and node.name in (STEP, JOINED):
            continue
        elif isinstance(node, (nodes.Call, nodes.Filter, nodes.Test)):
            found += node.args
    return _strings(found)


def roles(source: str) -> frozenset[str]:
    """Return the strings that a template compares a role with: `message.role == "ipython"`."""
    found: set[str] = set()
    for node in _environment().parse(source).find_all(nodes.Compare):
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        if any(map(_is_role, operands)):
            found.update(_strings(operands))
    return frozenset(found)


def _is_role(node: nodes.Node | None) -> bool:
    """Whether an expression is `role`, `x.role`, `x["role"]`, `x.get("role")`, or filters it."""
    if isinstance(node, nodes.Filter):
        return _is_role(node.node)
    if isinstance(node, nodes.Name):
        return node.name == "role"
    if isinstance(node, nodes.Getattr):
        return node.attr == "role"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "role"
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return node.node.attr == "get" and "role" in _strings(node.args[:1])
    return False


def _strings(found: Iterable[nodes.Node]) -> frozenset[str]:
    """Return the constant strings among expressions, and in lists of them."""
    constants = (
        const
        for node in found
        for const in (node.items if isinstance(node, (nodes.List, nodes.Tuple)) else [node])
    )
    return frozenset(
        const.value
        for const in constants
        if isinstance(const, nodes.Const) and isinstance(const.value, str)
    )


class _Refused(jinja2.TemplateError):
    """Raised by a template's `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}`: marks the assistant's text for training; here only a scope."""

    tags = {"generation"}  # noqa: RUF012 - as in Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """The global `dict`, without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """The global `namespace`; names must not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `namespace(self=1)` is legal
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"a name in a namespace must not begin with an underscore, got {name!r}"
        )


@cache
def _environment() -> LimitedEnvironment:
    env = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = limited("tojson", _tojson)
    env.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return env


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Dump JSON without escaping <, >, & and ', as Jinja's own filter does."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    size(message)
    raise _Refused(str(message))


def _strftime_now(format: str) -> str:
    check_format(format, ())
    return _now.get().strftime(format)


def _message(error: BaseException) -> str:
    return str(error)[:_MAX_MESSAGE] or type(error).__name__


def _line(error: BaseException, template: jinja2.Template) -> str:
    """Return the template's line in which *error* was raised."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return "" if line is None else f" in line {line}"
