from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import subprocess
import sys
import typing
import uuid
from collections.abc import Callable, Mapping, MutableSet, Sequence, Set
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union

import annotated_types
import jsonschema
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.python_types import TYPES
from typing_extensions import NotRequired, ReadOnly, Required, TypeAliasType, TypedDict

from llama_cffi import Engine
from llama_cffi.chat.tools import function_schema
from llama_cffi.demo import model_path
from llama_cffi.errors import GrammarError, ValidationError
from llama_cffi.grammars import LlamaGrammar
from llama_cffi.schema import (
    Field,
    close_objects,
    json_schema,
    object_schema,
    parse_json,
)


class Color(enum.Enum):
    """What it looks like."""

    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Direction(str, enum.Enum):
    NORTH = "north"
    SOUTH = "south"


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Options(TypedDict, total=False):
    name: Required[str]
    level: Level


class Pair(TypedDict):
    left: int
    right: ReadOnly[Annotated[NotRequired[int], "which"]]


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


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


@dataclass
class Order:
    customer: Customer
    opened: Open


UserId = NewType("UserId", int)
Untyped = collections.namedtuple("Untyped", "a b")
Scores = TypeAliasType("Scores", dict[str, int])
T = TypeVar("T")


@dataclass
class Page(Generic[T]):
    items: list[T]
    number: int = 1


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
    (typing.Tuple, "[1]", (1,)),  # noqa: UP006
    (bytes, '"é"', "é".encode()),
    (set[int], "[1, 2]", {1, 2}),
    (frozenset, '["a"]', frozenset("a")),
    (Set[Color], '["red", 2]', frozenset([Color.RED, Color.BLUE])),
    (MutableSet, "[1]", {1}),
    (tuple[()], "[]", ()),
    (tuple, "[1]", (1,)),
    (tuple[int, str], '[1, "a"]', (1, "a")),
    (tuple[int, ...], "[1, 2, 3]", (1, 2, 3)),
    (dict, '{"a": 1}', {"a": 1}),
    (dict[str, list[int]], '{"a": [1]}', {"a": [1]}),
    (dict[Literal["a", "b"], int], '{"b": 1}', {"b": 1}),
    (dict[Direction, int], '{"north": 1}', {Direction.NORTH: 1}),
    (Optional[int], "null", None),  # noqa: UP045
    (Union[int, str], '"1"', "1"),  # noqa: UP007
    (float | int, "1", 1),
    (float | int, "1.0", 1.0),
    (decimal.Decimal | int, "1", 1),
    (datetime.date | str, '"2024-02-29"', datetime.date(2024, 2, 29)),
    (datetime.date | str, '"2024-02-30"', "2024-02-30"),
    (str | datetime.date, '"2024-02-29"', "2024-02-29"),
    (Color | str, '"red"', Color.RED),
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
    (Untyped, '{"a": 1, "b": [2]}', Untyped(1, [2])),
    (Page[Level], '{"items": [1, 2]}', Page([Level.LOW, Level.HIGH])),
    (Scores, '{"a": 1}', {"a": 1}),
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
    (decimal.Decimal, "1.10", decimal.Decimal("1.1")),
    (decimal.Decimal, "12345678901234567890", decimal.Decimal(12345678901234567890)),
    (pathlib.Path, '"a/b"', pathlib.Path("a/b")),
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


# Not the value's: sets have another order in each process.
@pytest.mark.parametrize(
    ("type_", "text", "value"), [pytest.param(*v, id=f"{v[0]}-{v[1]}") for v in VALUES]
)
def test_a_document_is_a_value_and_fits_the_schema(type_: Any, text: str, value: Any) -> None:
    read = parse_json(type_, text)
    assert read == value
    assert type(read) is type(value)
    schema = json_schema(type_)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(text), schema)
    LlamaGrammar.from_json_schema(schema)


@pytest.mark.parametrize(
    ("type_", "text", "where"),
    [
        (int, '"1"', r"\$: expected int, got '1'"),
        (int, "true", r"\$: expected int, got True"),
        (int, "1.5", r"\$: expected int, got 1.5"),
        (str, "1", r"\$: expected str, got 1"),
        (int, "{", "not valid JSON"),
        pytest.param(int, "[" * 100_000, "not valid JSON", id="deep"),
        (float, "NaN", "NaN is not a JSON number"),
        (decimal.Decimal, "1e999", "expected Decimal, got inf"),
        (list[int], '[1, "a"]', r"\$\[1\]: expected int, got 'a'"),
        (list[int], "{}", r"\$: expected list, got {}"),
        (tuple[int, str], "[1]", "expected 2 items, got 1"),
        (dict[str, int], '{"a": null}', r"\$.a: expected int, got None"),
        (int | str, "null", "expected int or str, got None"),
        (int | None, '"a"', "expected int, got 'a'"),
        (Literal["a", 1], "true", "expected one of 'a', 1, got True"),
        (Literal["a"], "[]", r"expected one of 'a', got \[\]"),
        (Color, '"green"', "expected one of 'red', 2, got 'green'"),
        (Point, "{}", r"\$: Point needs 'x'"),
        (Point, '{"x": 1, "z": 2}', "Point has no 'z'"),
        (Options, '{"level": 1}', "Options needs 'name'"),
        (Person, '{"name": "A"}', "Person needs 'age'"),
        (Tree, '{"word": "a", "inner": [{"word": 1}]}', r"\$.inner\[0\].word: expected str, got 1"),
        (Positive, '{"n": -1}', r"\$: {'n': -1} is not a valid Positive: -1 is not positive"),
        (datetime.date, '"2023-02-31"', "is not a valid date: day"),
        (set[list[int]], "[[1]]", "not a valid .*unhashable"),
        (uuid.UUID, '"x"', "is not a valid UUID"),
        (Address, '{"street": "s", "number": 0}', "number"),
        (list[Address], '[{"street": "s"}]', r"\$\[0\]: .*number"),
    ],
    ids=str,
)
def test_a_document_that_is_no_value(type_: Any, text: str, where: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){where}"):
        parse_json(type_, text)


@pytest.mark.parametrize(
    ("type_", "says"),
    [
        (type("Mine", (), {}), "JSON has no values of .*Mine"),
        (complex, "complex"),
        (bytearray, "bytearray"),
        (collections.deque, "deque"),
        (dict[int, str], "keys of JSON objects are str"),
        (dict[Color, str], "keys of JSON objects are str, not Color"),
        (list["Nowhere"], "Nowhere"),  # type: ignore[name-defined]  # noqa: F821
        (typing.TypeVar("T"), "type variable"),
        (5, "no values of 5"),
        ([int], "expected a type"),
        (Literal[b"a"], "b'a' cannot be a choice"),
        (enum.Enum("Odd", {"A": (1, 2)}), r"Odd: \(1, 2\) cannot be a choice"),
        (enum.Enum("Far", {"A": math.inf}), "Far: inf cannot be a choice"),
        (enum.Enum("Empty", {}), "no choices"),
        (pydantic.create_model("Calls", f=(Callable[[], None], ...)), "Calls has no JSON Schema"),
        (datetime.timedelta, "timedelta"),
        (dataclass(type("Bad", (), {"__annotations__": {"x": "Nowhere"}})), "Nowhere"),
        (dataclass(type("Inner", (), {"__annotations__": {"x": list[complex]}})), r"Inner.x\[\]"),
    ],
    ids=str,
)
def test_a_type_that_json_does_not_have(type_: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        json_schema(type_)


def test_a_class_that_contains_itself_is_a_reference() -> None:
    assert json_schema(Tree) == {
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


def test_other_classes_stand_where_they_are_used() -> None:
    color = {"type": ["string", "integer"], "enum": ["red", 2]}
    point = {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.5}},
        "required": ["x"],
        "additionalProperties": False,
    }
    assert json_schema(Person) == {
        "type": "object",
        "properties": {  # not n, which the class sets itself
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "color": {**color, "description": "What it looks like."},
            "home": {"anyOf": [point, {"type": "null"}]},
            "born": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"type": "string"}, "default": []},
            "extra": {"type": "object", "additionalProperties": {"type": "number"}},
            "kind": {
                "type": ["string", "integer", "null"],
                "enum": ["a", 1, None],
                "default": "a",
            },
        },
        "required": ["name", "age", "color", "home", "born"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("type_", "schema"),
    [
        (list, {"type": "array"}),
        (list[Any], {"type": "array"}),
        (dict, {"type": "object"}),
        (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        (
            tuple[int, str],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "items": False,
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (tuple[()], {"type": "array", "maxItems": 0}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (int | None, {"type": ["integer", "null"]}),
        (int | UserId, {"type": "integer"}),
        (Optional[Annotated[Optional[int], 5]], {"type": ["integer", "null"]}),  # noqa: UP045
        (int | Any, {}),
        (
            list[int] | int | None,
            {"anyOf": [json_schema(list[int]), {"type": "integer"}, {"type": "null"}]},
        ),
        (Literal["a", Color.RED, "red"], {"type": "string", "enum": ["a", "red"]}),
        (Literal[1, True], {"type": ["integer", "boolean"], "enum": [1, True]}),
        (decimal.Decimal, {"type": "number"}),
        (pathlib.Path, {"type": "string"}),
        (
            Annotated[Level, "how much"],
            {"type": "integer", "enum": [1, 2], "description": "how much"},
        ),
        (
            Annotated[int, "n", pydantic.Field(ge=1)],
            {"type": "integer", "minimum": 1, "description": "n"},
        ),
        (Annotated[Address, "where"], {**json_schema(Address), "description": "where"}),
    ],
    ids=str,
)
def test_schemas(type_: Any, schema: dict[str, Any]) -> None:
    assert json_schema(type_) == schema


def test_fields_are_described_by_the_docstring_or_annotated() -> None:
    @dataclass
    class Lamp:
        """A lamp.

        Attributes:
            room: Where it
                hangs.
        """

        room: str
        level: Annotated[int, "percent"] = 100

    schema = json_schema(Lamp)
    assert schema["description"] == "A lamp."
    assert schema["properties"] == {
        "room": {"type": "string", "description": "Where it hangs."},
        "level": {"type": "integer", "description": "percent", "default": 100},
    }


@pytest.mark.parametrize(
    ("default", "written"),
    [
        (3, 3),
        (Color.RED, "red"),
        (Level.LOW, 1),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        (decimal.Decimal("1.5"), 1.5),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        ("é".encode(), "é"),
        ({1}, [1]),
        ((1, (2, Color.BLUE)), [1, [2, 2]]),
        ({"a": Level.HIGH}, {"a": 2}),
        (Point(1), {"x": 1, "y": 0.5}),
        (Positive(1), {"n": 1}),
        (Address(street="s", number=1), {"street": "s", "number": 1}),
    ],
    ids=str,
)
def test_a_default_is_written_as_json(default: Any, written: Any) -> None:
    schema = object_schema({"x": Field(Any, False, default)}, "f()")
    assert schema["properties"] == {"x": {"default": written}}
    assert "required" not in schema
    found = json.loads(json.dumps(schema))["properties"]["x"]["default"]
    assert (found, type(found)) == (written, type(written))


@pytest.mark.parametrize("default", [None, math.inf, b"\xff", [object], Address], ids=str)
def test_a_default_that_json_lacks_only_makes_optional(default: Any) -> None:
    schema = object_schema({"x": Field(Any, False, default)}, "f()")
    assert schema == {"type": "object", "properties": {"x": {}}, "additionalProperties": False}


def test_classes_of_one_name_stay_apart() -> None:
    one, two = (dataclass(type("Same", (), {"__annotations__": {n: int}})) for n in "ab")
    items = json_schema(tuple[one, two, one])["prefixItems"]  # type: ignore[valid-type]
    assert [list(item["properties"]) for item in items] == [["a"], ["b"], ["a"]]


def test_a_type_statement_may_refer_to_itself() -> None:
    class TypeAliasType:
        """What `type Json = int | list[Json]` makes, which Python has from 3.12 on."""

        __name__ = "Json"

        @property
        def __value__(self) -> Any:
            return int | list[self]  # type: ignore[valid-type]

    alias: Any = TypeAliasType()
    options = [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/Json"}}]
    assert json_schema(alias) == {"$ref": "#/$defs/Json", "$defs": {"Json": {"anyOf": options}}}
    assert parse_json(alias, "[1, [2, []]]") == [1, [2, []]]


def test_definitions_of_one_name_stay_apart() -> None:
    def one() -> type:
        class Same(pydantic.BaseModel):
            a: int
            more: list[Same] = []

        return Same

    def two() -> type:
        class Same(pydantic.BaseModel):
            b: str
            more: list[Same] = []

        return Same

    schema = json_schema(tuple[one(), two()])  # type: ignore[misc]
    judge = jsonschema.Draft202012Validator(schema)
    assert judge.is_valid([{"a": 1, "more": [{"a": 2}]}, {"b": "s", "more": [{"b": "t"}]}])
    assert not judge.is_valid([{"a": 1}, {"b": "s", "more": [{"a": 1}]}])


def test_a_schema_does_not_grow_with_the_number_of_ways_to_a_class() -> None:
    inner: type = Point
    for i in range(30):
        inner = dataclasses.make_dataclass(f"Level{i}", [("left", inner), ("right", inner)])
    schema = json_schema(inner)
    assert len(json.dumps(schema)) < 50_000
    n_levels = min(int(name.removeprefix("Level")) for name in schema["$defs"]) + 1
    document: Any = {"x": 1}
    for _ in range(n_levels):
        document = {"left": document, "right": document}
    lowest = {"$defs": schema["$defs"], "$ref": f"#/$defs/Level{n_levels - 1}"}
    jsonschema.validate(document, lowest)


def test_pydantic_objects_are_closed_unless_they_are_open() -> None:
    customer = json_schema(Order)["properties"]["customer"]
    definitions = json_schema(Order)["$defs"]
    assert customer == {"$ref": "#/$defs/Customer"}
    assert definitions["Customer"]["additionalProperties"] is False
    address = definitions["Customer"]["properties"]["addresses"]["items"]
    assert address["additionalProperties"] is False
    assert json_schema(Order)["properties"]["opened"]["additionalProperties"] is True
    # A default that looks like a schema stays what it is; a property has the name of a keyword.
    odd = {"type": "object", "properties": {}}
    model = pydantic.create_model("Odd", a=(dict[str, Any], odd), default=(Address, ...))
    properties = json_schema(model)["properties"]
    assert properties["a"]["default"] == odd
    assert properties["default"]["additionalProperties"] is False


def test_pydantic_is_written_as_the_other_types_are() -> None:
    class Row(pydantic.BaseModel):
        """A row."""

        amount: decimal.Decimal = pydantic.Field(ge=0)
        path: pathlib.Path
        sent: datetime.date
        pet: Annotated[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")], "whose it is"]

    properties = json_schema(Row)["properties"]
    assert properties["amount"] == {"type": "number", "minimum": 0}
    assert properties["path"] == {"type": "string"}
    assert properties["sent"] == {"type": "string", "format": "date"}
    assert [option["title"] for option in properties["pet"]["oneOf"]] == ["Cat", "Dog"]
    assert "discriminator" not in properties["pet"]


def test_pydantic_is_not_imported_without_need() -> None:
    program = (
        "import sys; from llama_cffi.schema import json_schema, parse_json;"
        "json_schema(dict[str, int]); parse_json(list[int], '[1]');"
        "sys.exit('pydantic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_written_twice_is_in_a_set_once() -> None:
    assert parse_json(set[int], "[1, 2, 1]") == {1, 2}
    assert parse_json(dict[str, frozenset[str]], '{"a": ["x", "x"]}') == {"a": frozenset("x")}


@pytest.mark.parametrize("name", TYPES)
def test_a_parameter_has_the_schema_of_its_type(name: str) -> None:
    def tool(x):  # type: ignore[no-untyped-def]
        pass

    def with_default(x=None):  # type: ignore[no-untyped-def]
        pass

    schema = json_schema(TYPES[name])
    definitions = schema.pop("$defs", None)
    for function in (tool, with_default):
        function.__annotations__["x"] = TYPES[name]
        parameters = function_schema(function)["function"]["parameters"]
        assert parameters["properties"] == {"x": schema}
        assert parameters.get("$defs") == definitions


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_document_is_an_any(document: Any) -> None:
    assert parse_json(Any, json.dumps(document)) == document  # type: ignore[arg-type]


def test_a_model_writes_values() -> None:
    with Engine(model_path(), n_ctx=512, n_threads=1) as engine:
        for type_ in (Color, Level | None, Literal["x", 2], tuple[bool, Level]):
            grammar = LlamaGrammar.from_json_schema(json_schema(type_))
            for seed in range(3):
                text = engine.generate(
                    "Hi", temperature=1.5, seed=seed, structured=grammar, json_stop=()
                )
                parse_json(type_, text)  # type: ignore[arg-type]


BOUNDED: list[tuple[Any, list[Any], list[Any]]] = [
    (Annotated[int, pydantic.Field(ge=1, le=5)], [1, 5], [0, 6, "1"]),
    (Annotated[int, annotated_types.Gt(1), annotated_types.Lt(4)], [2, 3], [1, 4]),
    (Annotated[float, annotated_types.Interval(ge=0, lt=1)], [0, 0.5], [-1, 1]),
    (Annotated[int, annotated_types.MultipleOf(3)], [3], [4]),
    (Annotated[str, annotated_types.MinLen(2)], ["ab"], ["a"]),
    (Annotated[list[int], annotated_types.Len(1, 2)], [[1]], [[], [1, 2, 3]]),
    (Annotated[set[int], pydantic.Field(max_length=2)], [[1]], [[1, 2, 3]]),
    (Annotated[str, pydantic.StringConstraints(pattern="^a")], ["ab"], ["b"]),
    (Annotated[int | None, pydantic.Field(ge=1)], [1, None], [0]),
    (Annotated[Annotated[int, pydantic.Field(ge=1)], pydantic.Field(le=3)], [1, 3], [0, 4]),
    (Annotated[UserId, "whose", pydantic.Field(ge=1)], [1], [0]),
    (Optional[Annotated[int, pydantic.Field(ge=1)]], [1, None], [0]),  # noqa: UP045
    (list[Annotated[int, annotated_types.Ge(1)]], [[1]], [[0]]),
    (dict[str, Annotated[int, annotated_types.Ge(1)]], [{"a": 1}], [{"a": 0}]),
    (tuple[Annotated[int, annotated_types.Ge(1)], ...], [[1]], [[0]]),
    (Annotated[int, annotated_types.Ge(1)] | Literal["x"], [1, "x"], [0, "y"]),
    (
        dataclasses.make_dataclass("Rated", [("stars", Annotated[int, annotated_types.Le(5)])]),
        [{"stars": 5}],
        [{"stars": 6}],
    ),
]


@pytest.mark.parametrize(("type_", "fits", "others"), BOUNDED, ids=str)
def test_constraints_are_kept_wherever_they_stand(
    type_: Any, fits: list[Any], others: list[Any]
) -> None:
    def tool(x):  # type: ignore[no-untyped-def]
        pass

    tool.__annotations__["x"] = type_
    schema = function_schema(tool)["function"]["parameters"]
    assert schema["properties"]["x"] == json_schema(type_)
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    assert all(judge.is_valid({"x": value}) for value in fits)
    assert not any(judge.is_valid({"x": value}) for value in others)
    for value in fits:
        parse_json(type_, json.dumps(value))


@pytest.mark.parametrize("name", TYPES)
def test_schemas_are_valid_json_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(TYPES[name]))


def test_two_classes_of_one_name_within_two_parameters() -> None:
    def one() -> Any:
        class Item(pydantic.BaseModel):
            a: int

        return pydantic.create_model("Box", item=(Item, ...))

    def two() -> Any:
        @dataclass
        class Item:
            b: str
            more: list[Any] = field(default_factory=list)

        return dataclasses.make_dataclass("Box", [("item", Item)])

    def tool(x, y):  # type: ignore[no-untyped-def]
        pass

    tool.__annotations__.update(x=one(), y=two())
    judge = jsonschema.Draft202012Validator(function_schema(tool)["function"]["parameters"])
    assert judge.is_valid({"x": {"item": {"a": 1}}, "y": {"item": {"b": "s"}}})
    assert not judge.is_valid({"x": {"item": {"b": "s"}}, "y": {"item": {"b": "s"}}})
    assert not judge.is_valid({"x": {"item": {"a": 1}}, "y": {"item": {"a": 1}}})


# Objects that are closed

A, B = {"properties": {"a": {}}}, {"properties": {"b": {}}, "required": ["b"]}
SHUT = {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, None),
        ({"type": "object"}, None),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, None),
        ({**A, "additionalProperties": True}, None),
        ({**A, "unevaluatedProperties": False}, None),
        ({"const": {"properties": {}}, "default": A}, None),
        ({"properties": {}}, {"properties": {}, **SHUT}),
        (
            {"properties": {"a": A, "d": {"type": "object"}}, "required": ["c"]},
            {
                "properties": {"a": {**A, **SHUT}, "d": {"type": "object"}, "c": True},
                "required": ["c"],
                **SHUT,
            },
        ),
        ({"properties": {"properties": A}}, {"properties": {"properties": {**A, **SHUT}}, **SHUT}),
        ({"type": "array", "items": A}, {"type": "array", "items": {**A, **SHUT}}),
        (
            {"anyOf": [A, {"type": "null"}, {"$ref": "#/$defs/b"}], "$defs": {"b": B}},
            {
                "anyOf": [{**A, **SHUT}, {"type": "null"}, {"$ref": "#/$defs/b"}],
                "$defs": {"b": {**B, **SHUT}},
            },
        ),
        ({"allOf": [A, B]}, {"allOf": [A, B], "properties": {"a": True, "b": True}, **SHUT}),
        (
            {**A, "anyOf": [B, {"properties": {"c": A}}]},
            {
                "properties": {"a": {}, "b": True, "c": True},
                "anyOf": [B, {"properties": {"c": {**A, **SHUT}}}],
                **SHUT,
            },
        ),
        (
            {**A, "if": {"required": ["a"]}, "then": B},
            {
                "properties": {"a": {}, "b": True},
                "if": {"required": ["a"]},
                "then": B,
                **SHUT,
            },
        ),
        ({"allOf": [A, {**B, **SHUT}]}, None),
        (
            {"allOf": [{"$ref": "https://example.com/a"}, A]},
            {"allOf": [{"$ref": "https://example.com/a"}, {**A, **SHUT}]},
        ),
    ],
    ids=str,
)
def test_objects_that_declare_properties_are_closed(schema: Any, expected: Any) -> None:
    before = json.dumps(schema)
    found = close_objects(schema)
    assert found == (schema if expected is None else expected)
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"properties": "abc"}, {"properties": 5}, {"properties": {"a": {}}, "required": 5},
        {"properties": {"a": {}}, "required": [[]]}, {"$ref": ["x"]},
        {"$ref": {}, "properties": {}},
        {"$defs": "x", "properties": {"a": {"allOf": [{"$ref": "#/properties/a"}]}}},
        {"allOf": [{"properties": []}], "properties": {}}, {"enum": -(2**70)},
        {"properties": {"$ref": 5}, "required": 2**63}, {"$ref": [2**70]},
        {"type": "integer", "minimum": {"minimum": 2**63}, "maximum": 4},
        {"type": "array", "items": {"enum": 2**63}}, {"type": "é" * 300},
    ],
)  # fmt: skip
def test_what_is_not_a_schema_is_refused_not_misread(wrong: Any) -> None:
    close_objects(wrong)
    with pytest.raises(GrammarError):
        LlamaGrammar.from_json_schema({"type": "array", "items": wrong, "minItems": 1}, closed=True)
    with pytest.raises(GrammarError):
        LlamaGrammar.from_json_schema(wrong)


def test_a_definition_is_closed_by_itself_and_open_as_a_part() -> None:
    schema = {
        "$defs": {
            "base": {"type": "object", "properties": {"a": {"$ref": "#/$defs/base"}}},
            "more": {"allOf": [{"$ref": "#/$defs/base"}, B]},
        },
        "type": "array",
        "items": {"anyOf": [{"$ref": "#/$defs/more"}, {"$ref": "#/$defs/base"}]},
    }
    judge = jsonschema.Draft202012Validator(close_objects(schema))
    for fits in ([], [{}, {"a": {}}], [{"a": {"a": {}}, "b": 1}], [{"b": {"x": 1}}]):
        assert judge.is_valid(fits), fits
    for other in ([{"c": 1}], [{"a": {"b": 1}}], [{"a": {}, "b": 1, "c": 1}]):
        assert not judge.is_valid(other), other
    LlamaGrammar.from_json_schema(close_objects(schema))


def test_tests_of_values_are_not_closed() -> None:
    schema = {
        "$defs": {"one": {"properties": {"a": {"const": 1}}, "required": ["a"]}},
        "type": "object",
        "properties": {"a": {}, "b": {}, "c": {}},
        "not": {"$ref": "#/$defs/one"},
        "if": {"properties": {"b": {"properties": {"x": {"const": 1}}}}, "required": ["b"]},
        "then": {"required": ["c"]},
    }
    judge = jsonschema.Draft202012Validator(close_objects(schema))
    assert not judge.is_valid({"a": 1, "b": 2, "c": 3})  # `not` holds whatever else there is
    assert not judge.is_valid({"b": {"x": 1, "y": 2}})  # as does `if`
    assert judge.is_valid({"b": {"x": 2}})
    assert not judge.is_valid({"b": {"x": 2}, "d": 1})
