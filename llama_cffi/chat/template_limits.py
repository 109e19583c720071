"""A Jinja environment that limits a template's time and memory. Imports jinja2.

Jinja's sandbox hides Python's internals from a template and limits `range`, but it allows nested
loops that run for years, and strings that are doubled until memory is exhausted.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from jinja2 import nodes
from jinja2.environment import Environment
from jinja2.exceptions import TemplateRuntimeError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

__all__ = ["JOINED", "STEP", "LimitedEnvironment", "check_format", "limited", "limits", "size"]

MAX_STEPS = 2_000_000  # iterations of loops; a call of a macro counts as ten
MAX_CHARS = 2**24  # of any string or list that is created, and of the whole output
MAX_WIDTH = 10_000  # of padding and indentation, and digits to round to
MAX_BITS = 100_000  # of a product or a power

_SIZED = (str, bytes, list, tuple)
_SCALARS = (str, int, float)
_PASSED = (nodes.EvalContext, Environment, Context)  # Jinja passes these to filters
# fmt: off
_WIDTHS = {
    "batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "to_bytes",
    "tojson", "wordwrap", "zfill",
}
# These do not convert values to text, so the length of their items as text does not matter.
_STRUCTURAL = {
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last",
    "length", "list", "map", "random", "reject", "rejectattr", "reverse", "select", "selectattr",
    "slice", "sort", "sum", "unique",
}
# fmt: on
# Templates cannot name these. They are filters because Jinja calls filters directly, and
# everything else through the sandbox.
STEP, JOINED = "(step)", "(joined)"
_NUMBER = re.compile(r"\d+")
_LONG_NUMBER = re.compile(r"\d{6}")
_WIDTH_GIVEN = re.compile(r"\*|\{[^{}]*\{")


class LimitError(TemplateRuntimeError):
    """A template exceeds a limit."""


@dataclass
class _Budget:
    steps: int
    chars: int
    values: Mapping[str, Any]

    @functools.cached_property
    def given(self) -> frozenset[int]:
        """The ids of the lists among the template's variables."""
        found, todo = set(), [*self.values.values()]
        while todo:
            item = todo.pop()
            if isinstance(item, dict):
                todo += item.values()
            elif isinstance(item, list):
                found.add(id(item))
                todo += item
        return frozenset(found)


_budget: ContextVar[_Budget] = ContextVar("budget")


@contextmanager
def limits(values: Mapping[str, Any]) -> Iterator[None]:
    """Limit the rendering, with these variables, inside this block."""
    token = _budget.set(_Budget(MAX_STEPS, MAX_CHARS, values))
    try:
        yield
    finally:
        _budget.reset(token)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Counts the steps of templates, and refuses values that are too large before creating them."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_written, **options)
        del self.globals["lipsum"]  # random text of any length
        self.filters.update({name: limited(name, f) for name, f in self.filters.items()})
        self.filters.update({STEP: _step, JOINED: _joined})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counted().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether a template may use an attribute.

        Of what changes a list, only `append` and `pop`, which Kimi's templates call, and not of
        the lists that the template got: they are rendered again.
        """
        if attr in ("append", "pop") and type(obj) is list:
            budget = _budget.get(None)
            return budget is not None and id(obj) not in budget.given
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, within the limits."""
        if operator == "%":
            if isinstance(left, (str, bytes)):
                check_format(left, right if isinstance(right, tuple) else [right])
        elif operator == "+":
            if isinstance(left, _SIZED) and isinstance(right, _SIZED):
                _check(len(left) + len(right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits * abs(right) if operator == "**" else bits + right.bit_length()
            if bits > MAX_BITS and abs(left) > 1:
                raise LimitError(f"it computes a number of more than {MAX_BITS:,} bits")
        elif operator == "*":
            times, sized = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int) and isinstance(sized, _SIZED):
                _check(len(sized) * times)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method, within the limits."""
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            name = method.__name__
            args = _listed(name, args)
            _check_call(name, [owner, *args, *kwargs.values()])
        elif isinstance(owner, list) and method.__name__ == "append":
            _check_appended(args)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, _SIZED):
            _check(len(result))
        return result


def limited(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return *filter* with checks of the size of its result."""

    @functools.wraps(filter)  # keeps the attributes by which Jinja passes the context
    def checked(*args: Any, **kwargs: Any) -> Any:
        args = _listed(name, args)
        values = [*args, *kwargs.values()]
        _check_call(name, [value for value in values if not isinstance(value, _PASSED)])
        result = filter(*args, **kwargs)
        if isinstance(result, _SIZED):
            _check(len(result))
        return result

    return checked


class _Counted(NodeTransformer):
    """Adds counting to loops, macros and `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - as in Jinja
        if node.test is None:
            return self._stepping(node)
        # A filtered loop evaluates its condition for all items, its body only for some.
        self.generic_visit(node)
        node.test = nodes.And(_step_of(node), node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(JOINED, node.nodes, node.lineno)

    def _stepping(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_step_of(node), lineno=node.lineno))
        done: nodes.Node = node
        return done

    visit_Macro = visit_CallBlock = visit_Block = _stepping  # noqa: N815


def _step_of(node: Any) -> nodes.Filter:
    """Return the expression that counts one iteration of *node* and its literal text."""
    literal = sum(
        len(part.data)
        for inner in node.body
        if isinstance(inner, nodes.Output)
        for part in inner.nodes
        if isinstance(part, nodes.TemplateData)
    )
    steps = 1 if isinstance(node, nodes.For) else 10
    return _filter(STEP, [nodes.Const(steps), nodes.Const(literal)], node.lineno)


def _filter(name: str, args: list[nodes.Expr], line: int) -> nodes.Filter:
    return nodes.Filter(args[0], name, args[1:], [], None, None, lineno=line)


@pass_context  # prevents evaluation at compile time
def _step(context: Context, steps: int, chars: int) -> bool:
    """Count *steps* and *chars* of literal text; return True, for use in a condition."""
    budget = _budget.get()
    budget.steps -= steps
    if budget.steps < 0:
        raise LimitError(f"it loops for more than {MAX_STEPS:,} iterations")
    _spend(budget, chars)
    return True


@pass_context
def _joined(context: Context, *parts: object) -> str:
    """Apply the operator `~`, within the limits."""
    _check(sum(map(size, parts)))
    return "".join(map(str, parts))


def _written(value: Any) -> Any:
    """Count the output of an expression; constants are output at compile time, uncounted."""
    budget = _budget.get(None)
    if budget is not None:
        _spend(budget, size(value))
    return value


def _spend(budget: _Budget, chars: int) -> None:
    budget.chars -= chars
    if budget.chars < 0:
        raise LimitError(f"it writes more than {MAX_CHARS:,} characters")


def _check(length: int) -> None:
    if length > MAX_CHARS:
        raise LimitError(f"it creates a value of more than {MAX_CHARS:,} characters or items")


def size(value: object) -> int:
    """Return the approximate length of a value as text; refuse one that is too long.

    A short list may be long as text, because it may contain the same list many times.
    """
    if isinstance(value, (str, bytes)):
        return len(value)
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo += [*item, *item.values()]
        elif isinstance(item, (list, tuple)):
            todo += item
        total += len(item) if isinstance(item, str) else 4  # including separators
        _check(total)
    return total


def _listed(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return *args* with generators as lists, whose length is known before they are joined."""
    if name != "join":
        return args
    return tuple(list(arg) if isinstance(arg, GeneratorType) else arg for arg in args)


def _check_call(name: str, values: list[Any]) -> None:
    """Refuse a call of a filter, or of a method of a string, whose result would be too large.

    Args:
        name: Name of the filter or method.
        values: The operand, then the arguments.
    """
    if name not in _STRUCTURAL:
        _check(sum(map(size, values)))
    texts: list[Any] = [value for value in values if isinstance(value, (str, bytes))]
    if name in _WIDTHS:
        width = max((abs(value) for value in values[1:] if isinstance(value, int)), default=0)
        if width > MAX_WIDTH:
            raise LimitError(f"it calls {name} with {width:,}; the limit is {MAX_WIDTH:,}")
        _check((len(texts[0]) + 1 if texts else 1) * width)
    elif name in ("format", "format_map") and texts:
        check_format(texts[0], values[1:])
    elif name == "translate":
        _check(len(texts[0]) * max(map(size, values[1:]), default=0))
    elif name == "replace" and len(texts) > 2:
        text, old, new = texts[:3]
        _check(len(text) + text.count(old) * len(new))
    elif name == "join" and len(values) > 1:
        # The separator is the first value for the method and the second for the filter.
        items = next((v for v in values[:2] if isinstance(v, (list, tuple))), values[0])
        separator = next((text for text in texts if text is not items), "")
        _check(len(separator) * (len(items) if isinstance(items, _SIZED) else 1))


def _check_appended(values: Iterable[object]) -> None:
    """Refuse to append a list, which may then contain itself: as text it would be endless."""
    if not all(isinstance(value, _SCALARS) for value in values):
        raise LimitError("it appends something else than text or a number to a list")


def check_format(pattern: str | bytes, given: Iterable[Any]) -> None:
    """Refuse to format *given* with a pattern whose result would be too long."""
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    values = list(given)
    if _LONG_NUMBER.search(text):
        raise LimitError("it formats to a width of more than 5 digits")
    sizes = [int(number) for number in _NUMBER.findall(text)] + [*map(size, values)]
    if _WIDTH_GIVEN.search(text):
        sizes += [abs(value) for value in values if isinstance(value, int)]
    n_values = max(text.count("{"), text.count("%"))
    _check(len(text) + n_values * max(sizes, default=0))
