"""What can be checked of docstrings by machine: parameters, shapes, errors, C functions, names."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import llama_cffi
from llama_cffi import cdefs, errors

FEW = 2  # parameters that a sentence can speak of
SHAPE = re.compile(r"\((?:[\w.()+* -]+,)+(?:[\w.()+* -]+)?\)|\(len,\)")
DTYPE = re.compile(r"\b(?:float32|float64|int32|uint8|bool)\b")
# "Do `embed` with token ids", "None = `get_library()`, with its errors", "see `Memory.seq_add`".
REFERENCE = re.compile(
    r"\b(?:[Dd]o|[Cc]all|[Ss]ee|[Aa]s for|as|of|by) `([\w.]+)`"
    r"|`([\w.]+)(?:\(\))?`(?:, with its errors|\s+raise)"
)
# They call functions that raise, but with valid arguments.
CANNOT_FAIL = {
    "ChatTemplate.adds_bos",
    "ChatTemplate.supports_system",
    "ChatTemplate.supports_tools",
    "LlamaGrammar.json_object",
    "Vocab.adds_space",
}
MADE_FOR_YOU = {"DecodeAbortedError", "Handle", "Library", "RequestHandle"}  # nobody calls them
DEPTH = 3  # calls from one function to the next in which an error is looked for


class Public(NamedTuple):
    """Something that `import llama_cffi` leads to."""

    name: str
    owner: Any
    function: Callable[..., Any] | None
    text: str

    @property
    def parameters(self) -> list[inspect.Parameter]:
        if self.function is None:
            return []
        found = list(inspect.signature(self.function).parameters.values())
        return [p for p in found if p.name not in ("self", "cls", "_")]

    def section(self, name: str) -> str:
        """Return the lines below `name:`, without what follows at the left margin."""
        _, _, rest = f"\n{self.text}\n".partition(f"\n{name}:\n")
        return re.split(r"^\S", rest, maxsplit=1, flags=re.M)[0]


def called(function: Callable[..., Any], owner: Any) -> Iterator[Callable[..., Any]]:
    """Give the package's functions that *function* calls by a name that is easily resolved."""
    for node in ast.walk(tree(function)):
        target = node.func if isinstance(node, ast.Call) else None
        found: Any = None
        if isinstance(target, ast.Name):
            found = function.__globals__.get(target.id)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
            name = target.value.id
            home = owner if name in ("self", "cls") else function.__globals__.get(name)
            if inspect.isclass(home) or inspect.ismodule(home):
                found = inspect.getattr_static(home, target.attr, None)
        found = getattr(found, "__func__", found)
        if inspect.isfunction(found) and found.__module__.startswith("llama_cffi"):
            yield found


@functools.cache
def tree(function: Callable[..., Any]) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


@functools.cache
def raised(function: Callable[..., Any], owner: Any, depth: int = DEPTH) -> set[str]:
    """Return the own errors that *function*, or what it calls, raises."""
    raises = [n.exc for n in ast.walk(tree(function)) if isinstance(n, ast.Raise) and n.exc]
    names = {ast.unparse(e.func if isinstance(e, ast.Call) else e) for e in raises}
    for inner in called(function, owner) if depth else ():
        names |= raised(inner, owner, depth - 1)
    return names & set(errors.__all__)


def name_of(cls: type) -> str:
    """Return how it is exported, or, for a base class that is not, with its module."""
    if getattr(llama_cffi, cls.__name__, None) is cls:
        return cls.__name__
    return f"{cls.__module__}:{cls.__name__}"


def own_classes(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.startswith("llama_cffi")]


def publics() -> Iterator[Public]:
    """Give every exported name, and what the classes among them have."""
    seen: set[tuple[type, str]] = set()
    for name in llama_cffi.__all__:
        value = getattr(llama_cffi, name)
        if not inspect.isclass(value):
            if callable(value):
                yield Public(name, None, value, inspect.getdoc(value) or "")
            continue
        # An inherited docstring describes another class.
        init = value.__dict__.get("__init__")
        made = init if inspect.isfunction(init) and not dataclasses.is_dataclass(value) else None
        yield Public(name, value, made, inspect.cleandoc(value.__doc__ or ""))
        for base in own_classes(value):
            for member, found in base.__dict__.items():
                if (base, member) in seen or member.startswith("_"):
                    continue
                seen.add((base, member))
                function = getattr(found, "fget", None) or getattr(found, "__func__", None)
                function = function or getattr(found, "func", found)
                if inspect.isfunction(function):
                    text = inspect.cleandoc(function.__doc__ or "")
                    yield Public(f"{name_of(base)}.{member}", base, function, text)


ALL = {public.name: public for public in publics()}


def every(condition: Callable[[Public], object] = lambda public: True) -> Any:
    """Run a test on every public name that it is about."""
    chosen = {name: public for name, public in ALL.items() if condition(public)}
    assert chosen
    return pytest.mark.parametrize("public", chosen.values(), ids=chosen)


def follow(public: Public) -> str:
    """Return the text with those that it refers to, such as "Do `embed` with ..."."""
    owner = name_of(public.owner) if public.owner else ""
    named = map("".join, REFERENCE.findall(public.text))
    texts = [ALL[n].text for name in named for n in (name, f"{owner}.{name}") if n in ALL]
    # What a class says for all its methods, such as "All raise ValidationError when ...", and not
    # what its constructor raises.
    general = re.split(r"^Raises:$", inspect.getdoc(public.owner) or "", flags=re.M)[0]
    return "\n".join([public.text, *texts, general])


def test_much_is_looked_at() -> None:
    assert len(ALL) > 250
    assert len([p for p in ALL.values() if len(p.parameters) > FEW]) > 50


@every()
def test_it_has_a_docstring_of_whole_sentences(public: Public) -> None:
    first = public.text.split("\n\n")[0]
    assert first, "no docstring"
    assert first[0].isupper() or first[0] in "`[0123456789"
    assert re.search(r"[.:)]$", first), f"no full stop: {first!r}"


@every(lambda public: len(public.parameters) > FEW and public.name not in MADE_FOR_YOU)
def test_each_parameter_is_described(public: Public) -> None:
    text = follow(public)
    missing = [
        p.name for p in public.parameters if not re.search(rf"\b{re.escape(p.name)}\b", text)
    ]
    assert not missing


@every(lambda public: "Args:" in public.text)
def test_no_parameter_is_described_that_does_not_exist(public: Public) -> None:
    named = re.findall(r"^    \*{0,2}(\w+): ", public.section("Args"), re.M)
    assert named
    existing = [p.name for p in public.parameters]
    assert set(named) <= set(existing)
    assert named == [name for name in existing if name in named], "in another order"


def is_about_arrays(public: Public) -> bool:
    annotations = getattr(public.function, "__annotations__", {})
    return any("NDArray" in str(found) for found in annotations.values())


@every(is_about_arrays)
def test_arrays_have_shape_and_dtype(public: Public) -> None:
    text = follow(public)
    assert SHAPE.search(text)
    assert DTYPE.search(text)


@every(lambda public: public.function and raised(public.function, public.owner))
def test_errors_that_it_raises_are_named(public: Public) -> None:
    assert public.function
    named = set(re.findall(r"\b(\w+Error)\b", follow(public)))
    for name in raised(public.function, public.owner):
        assert public.name in CANNOT_FAIL or named & {
            base.__name__ for base in getattr(errors, name).__mro__
        }, name


@every(lambda public: "Raises:" in public.text)
def test_errors_that_are_named_exist(public: Public) -> None:
    named = re.findall(r"^    (\w+): ", public.section("Raises"), re.M)
    assert named
    for name in named:
        assert issubclass(getattr(errors, name, getattr(builtins, name, int)), Exception), name


@every(lambda public: dataclasses.is_dataclass(public.owner) and "." not in public.name)
def test_every_field_is_described(public: Public) -> None:
    fields = [f.name for f in dataclasses.fields(public.owner) if not f.name.startswith("_")]
    described = re.findall(r"^    (\w+): ", public.section("Attributes"), re.M)
    assert [name for name in fields if name not in described] == []
    for name in described:
        assert name in fields or hasattr(public.owner, name), f"there is no {name}"


@functools.cache
def declared() -> set[str]:
    texts = (cdefs.declarations(each) for each in cdefs.class_names())
    return {name for text in texts for name in re.findall(r"\b(?:llama|ggml|mtmd)_\w+", text)}


@every(lambda public: "C: " in public.text)
def test_c_functions_exist(public: Public) -> None:
    named = re.findall(r"\b(?:llama|ggml|mtmd)_[a-z]\w+", public.text.partition("C: ")[2])
    assert named
    assert set(named) <= declared()


def test_names_in_backticks_exist() -> None:
    """What is called `Class.member` is a member, an attribute that is described, or an argument."""
    looked_at = 0
    for public in ALL.values():
        for owner, member in re.findall(r"`([A-Z]\w+)\.([a-z]\w+)", public.text):
            cls = getattr(llama_cffi, owner, None)
            if cls is not None:
                described = re.search(rf"^    {member}: ", inspect.getdoc(cls) or "", re.M)
                assert hasattr(cls, member) or described, (public.name, f"{owner}.{member}")
                looked_at += 1
    assert looked_at > 20
