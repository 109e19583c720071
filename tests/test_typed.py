from __future__ import annotations

import collections
import datetime
import enum
import json
import typing
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, Union

import jsonschema
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import NotRequired, Required, TypedDict

from llama_cffi import Engine
from llama_cffi.demo import model_path
from llama_cffi.errors import ValidationError
from llama_cffi.grammars import LlamaGrammar
from llama_cffi.typed import schema_of, value_of


class Color(enum.Enum):
    """What it looks like."""

    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Options(TypedDict, total=False):
    name: Required[str]
    level: Level


class Pair(TypedDict):
    left: int
    right: NotRequired[int]


@dataclass
class Tree:
    """A tree of words."""

    word: str
    inner: list[Tree] = field(default_factory=list)


@dataclass(frozen=True)
class Person:
    name: str
    age: int
    color: Color
    home: Point | None
    born: datetime.date
    tags: Sequence[str] = ()
    extra: Mapping[str, float] = field(default_factory=dict)
    kind: Literal["a", 1, None] = "a"
    n: int = field(init=False, default=0)


@dataclass
class Positive:
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0:
            raise ValueError(f"{self.n} is not positive")


class Address(pydantic.BaseModel):
    street: str
    number: int = pydantic.Field(ge=1)


class Customer(pydantic.BaseModel):
    name: str
    addresses: list[Address]
    first: Customer | None = None


class Open(pydantic.BaseModel, extra="allow"):
    a: int


@dataclass
class Order:
    customer: Customer
    opened: Open


UserId = NewType("UserId", int)

VALUES: list[tuple[Any, str, Any]] = [
    (str, '"é"', "é"),
    (int, "3", 3),
    (int, "3.0", 3),
    (float, "3", 3.0),
    (bool, "true", True),
    (None, "null", None),
    (Any, '{"a": [1]}', {"a": [1]}),
    (UserId, "7", 7),
    (Annotated[int, "anything"], "7", 7),
    (list, "[1, null]", [1, None]),
    (list[int], "[1, 2]", [1, 2]),
    (Sequence[str], '["a"]', ["a"]),
    (typing.List[bool], "[true]", [True]),  # noqa: UP006
    (tuple, "[1]", (1,)),
    (tuple[int, str], '[1, "a"]', (1, "a")),
    (tuple[int, ...], "[1, 2, 3]", (1, 2, 3)),
    (dict, '{"a": 1}', {"a": 1}),
    (dict[str, list[int]], '{"a": [1]}', {"a": [1]}),
    (Optional[int], "null", None),  # noqa: UP045
    (Union[int, str], '"1"', "1"),  # noqa: UP007
    (float | int, "1", 1),
    (str | None, '"x"', "x"),
    (bool | int, "1", 1),
    (int | bool, "true", True),
    (list[int] | dict[str, int], '{"a": 1}', {"a": 1}),
    (Literal["a", 1, None, True], "true", True),
    (Literal["a", 1, None, True], "1", 1),
    (Literal["a", Color.RED], '"red"', Color.RED),
    (Color, '"red"', Color.RED),
    (Color, "2", Color.BLUE),
    (list[Level], "[2, 1]", [Level.HIGH, Level.LOW]),
    (Point, '{"x": 1}', Point(1)),
    (Point, '{"x": 1, "y": 2}', Point(1, 2.0)),
    (Options, '{"name": "n", "level": 2}', {"name": "n", "level": Level.HIGH}),
    (Pair, '{"left": 1}', {"left": 1}),
    (Positive, '{"n": 1}', Positive(1)),
    (Tree, '{"word": "a", "inner": [{"word": "b"}]}', Tree("a", [Tree("b")])),
    (
        Person,
        '{"name": "A", "age": 3, "color": 2, "home": {"x": 1}, "born": "2020-02-29",'
        ' "tags": ["t"], "extra": {"e": 1}, "kind": null}',
        Person("A", 3, Color.BLUE, Point(1), datetime.date(2020, 2, 29), ["t"], {"e": 1.0}, None),
    ),
    (datetime.date, '"2024-02-29"', datetime.date(2024, 2, 29)),
    (
        datetime.datetime,
        '"2024-02-29T12:30:00Z"',
        datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone.utc),
    ),
    (datetime.time, '"12:30:00Z"', datetime.time(12, 30, tzinfo=datetime.timezone.utc)),
    (uuid.UUID, f'"{uuid.UUID(int=5)}"', uuid.UUID(int=5)),
    (Address, '{"street": "s", "number": 1}', Address(street="s", number=1)),
    (
        Customer,
        '{"name": "n", "addresses": [], "first": {"name": "m", "addresses": []}}',
        Customer(name="n", addresses=[], first=Customer(name="m", addresses=[])),
    ),
    (
        list[Order],
        '[{"customer": {"name": "n", "addresses": []}, "opened": {"a": 1, "b": 2}}]',
        [Order(Customer(name="n", addresses=[]), Open(a=1, b=2))],  # type: ignore[call-arg]
    ),
]


@pytest.mark.parametrize(("type_", "text", "value"), VALUES, ids=str)
def test_a_document_is_a_value_and_fits_the_schema(type_: Any, text: str, value: Any) -> None:
    read = value_of(type_, text)
    assert read == value
    assert type(read) is type(value)
    schema = schema_of(type_)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(text), schema)
    LlamaGrammar.from_json_schema(schema)


@pytest.mark.parametrize(
    ("type_", "text", "where"),
    [
        (int, '"1"', r"\$: '1' is no int"),
        (int, "true", r"\$: True is no int"),
        (int, "1.5", r"\$: 1.5 is no int"),
        (str, "1", r"\$: 1 is no str"),
        (int, "{", "no JSON"),
        (int, "[" * 100_000, "no JSON"),
        (list[int], '[1, "a"]', r"\$\[1\]: 'a' is no int"),
        (list[int], "{}", r"\$: {} is no list"),
        (tuple[int, str], "[1]", "1 items, not 2"),
        (dict[str, int], '{"a": null}', r"\$.a: None is no int"),
        (int | str, "null", "neither int nor str"),
        (int | None, '"a"', "'a' is no int"),
        (Literal["a", 1], "true", "True is none of 'a', 1"),
        (Literal["a"], "[]", "is none of 'a'"),
        (Color, '"green"', "'green' is none of 'red', 2"),
        (Point, "{}", r"\$: Point needs 'x'"),
        (Point, '{"x": 1, "z": 2}', "Point has no 'z'"),
        (Options, '{"level": 1}', "Options needs 'name'"),
        (Person, '{"name": "A"}', "Person needs 'age'"),
        (Tree, '{"word": "a", "inner": [{"word": 1}]}', r"\$.inner\[0\].word: 1 is no str"),
        (Positive, '{"n": -1}', r"\$: -1 is not positive"),
        (datetime.date, '"2023-02-31"', "is no date: day"),
        (uuid.UUID, '"x"', "is no UUID"),
        (Address, '{"street": "s", "number": 0}', "number"),
        (list[Address], '[{"street": "s"}]', r"\$\[0\]: .*number"),
    ],
    ids=str,
)
def test_a_document_that_is_no_value(type_: Any, text: str, where: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){where}"):
        value_of(type_, text)


@pytest.mark.parametrize(
    ("type_", "says"),
    [
        (set[int], "JSON has no values of set"),
        (complex, "complex"),
        (bytes, "bytes"),
        (collections.deque, "deque"),
        (dict[int, str], "keys of JSON objects are str"),
        (list["Nowhere"], "Nowhere"),  # type: ignore[name-defined]  # noqa: F821
        (typing.TypeVar("T"), "not a type yet"),
        (5, "no values of 5"),
        ([int], "no type"),
        (Literal[b"a"], "no JSON value"),
        (enum.Enum("Odd", {"A": (1, 2)}), "no JSON value"),
        (dataclass(type("Bad", (), {"__annotations__": {"x": "Nowhere"}})), "Nowhere"),
        (dataclass(type("Inner", (), {"__annotations__": {"x": list[bytes]}})), r"Inner.x\[\]"),
    ],
    ids=str,
)
def test_a_type_that_json_does_not_have(type_: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        schema_of(type_)


def test_a_schema_says_what_the_class_says() -> None:
    assert schema_of(Tree) == {
        "$ref": "#/$defs/Tree",
        "$defs": {
            "Tree": {
                "type": "object",
                "properties": {
                    "word": {"type": "string"},
                    "inner": {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
                },
                "required": ["word"],
                "additionalProperties": False,
                "description": "A tree of words.",
            }
        },
    }
    person = schema_of(Person)["$defs"]
    assert "n" not in person["Person"]["properties"]  # the class sets it itself
    assert "description" not in person["Person"]
    assert person["Color"] == {"enum": ["red", 2], "description": "What it looks like."}


def test_classes_of_one_name_stay_apart() -> None:
    one, two = (dataclass(type("Same", (), {"__annotations__": {n: int}})) for n in "ab")
    definitions = schema_of(tuple[one, two, one])["$defs"]  # type: ignore[valid-type]
    assert {name: list(d["properties"]) for name, d in definitions.items()} == {
        "Same": ["a"],
        "Same_": ["b"],
    }


def test_pydantic_objects_are_closed_unless_they_are_open() -> None:
    definitions = schema_of(Order)["$defs"]
    assert definitions["Address"]["additionalProperties"] is False
    assert definitions["Customer"]["additionalProperties"] is False
    assert definitions["Open"]["additionalProperties"] is True
    # A default that looks like a schema stays what it is.
    odd = {"type": "object", "properties": {}}
    model = pydantic.create_model("Odd", a=(dict[str, Any], odd))
    assert schema_of(model)["$defs"]["Odd"]["properties"]["a"]["default"] == odd


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_document_is_an_any(document: Any) -> None:
    assert value_of(Any, json.dumps(document)) == document  # type: ignore[arg-type]


def test_a_model_writes_values() -> None:
    with Engine(model_path(), n_ctx=512, n_threads=1) as engine:
        for type_ in (Color, Level | None, Literal["x", 2], tuple[bool, Level]):
            grammar = LlamaGrammar.from_json_schema(schema_of(type_))
            for seed in range(3):
                text = engine.generate(
                    "Hi", temperature=1.5, seed=seed, structured=grammar, json_stop=()
                )
                value_of(type_, text)  # type: ignore[arg-type]
