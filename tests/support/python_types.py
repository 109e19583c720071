"""Python types for `parse` and tools, as in real programs."""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import uuid
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union

import pydantic
import pydantic.dataclasses
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

__all__ = ["TYPES"]


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"
    ONE = 1


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Direction(str, enum.Enum):
    NORTH = "north"
    SOUTH = "south"


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Settings(TypedDict, total=False):
    volume: int
    theme: Literal["dark", "light"]


class Song(TypedDict):
    """A song.

    Attributes:
        title: As on the cover.
    """

    title: Annotated[str, "not used: the docstring says more"]
    seconds: Annotated[NotRequired[int], "how long"]


@dataclass
class Person:
    """A person."""

    name: str
    age: int
    born: datetime.date
    nickname: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Team:
    leader: Person
    level: Level
    scores: Mapping[str, float]
    places: tuple[Point, ...] = ()


@dataclass
class Tree:
    value: int
    left: Tree | None = None
    right: Tree | None = None


T = TypeVar("T")


@dataclass
class Page(Generic[T]):
    first: T
    number: int = 1


class Address(pydantic.BaseModel):
    street: str = Field(min_length=1, max_length=12)
    zip: str = Field(pattern=r"^\d{5}$")


class Customer(pydantic.BaseModel):
    name: str = Field(max_length=16)
    address: Address
    color: Color = Color.RED
    kind: Literal["private", "business"]
    email: Optional[Annotated[str, Field(max_length=10)]] = None  # noqa: UP045


class Item(pydantic.BaseModel):
    sku: str = Field(pattern=r"^[A-Z]{2}-[0-9]{3}$")
    amount: int = Field(ge=1, le=99)
    price: float = Field(gt=0, lt=1000)
    even: int = Field(multiple_of=2, ge=0, le=50)


class Invoice(pydantic.BaseModel):
    id: uuid.UUID
    date: datetime.date
    sent: datetime.datetime | None
    items: list[Item] = Field(min_length=1, max_length=3)


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: Annotated[str, Field(max_length=8)]


class Owner(pydantic.BaseModel):
    pet: Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007


class Aliased(pydantic.BaseModel):
    from_: int = Field(alias="from", ge=0, le=9)
    to: int = Field(ge=0, le=9)


class Category(pydantic.BaseModel):
    name: str = Field(max_length=8)
    children: list[Category] = Field(default=[], max_length=2)


class Labels(pydantic.RootModel[list[Literal["a", "b"]]]):
    pass


class Bag(pydantic.BaseModel):
    """Types with a JSON form of their own in pydantic."""

    colors: set[Color] = Field(max_length=3)
    weight: decimal.Decimal = Field(ge=0, le=100)
    label: Annotated[str | None, Field(max_length=5, description="what is in it")] = None


@pydantic.dataclasses.dataclass
class Span:
    begin: int = Field(ge=0, le=9)
    end: int = Field(default=9, ge=0, le=9)


@dataclass
class Rating:
    stars: Annotated[int, Field(ge=1, le=5)]
    words: Annotated[list[Annotated[str, Field(max_length=6)]], Field(max_length=3)]


UserId = NewType("UserId", int)

TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "None": type(None),
    "NewType": UserId,
    "Annotated": Annotated[int, "anything"],
    "date": datetime.date,
    "datetime": datetime.datetime,
    "time": datetime.time,
    "UUID": uuid.UUID,
    "Decimal": decimal.Decimal,
    "Path": pathlib.Path,
    "Literal": Literal["yes", "no", 3, None],
    "Enum": Color,
    "IntEnum": Level,
    "str Enum": Direction,
    "Optional": Optional[int],  # noqa: UP045
    "union": int | bool | None,
    "union of containers": list[int] | dict[str, bool],
    "union of classes": Person | Point,
    "union of strings": datetime.date | Color | str,
    "union of unions": Optional[Annotated[Optional[int], "anything"]],  # noqa: UP045
    "list[int]": list[int],
    "list of lists": list[list[bool]],
    "Sequence": Sequence[Level],
    "set[Color]": set[Color],
    "Set": Set[bool],
    "frozenset": frozenset[int],
    "dict[str, float]": dict[str, float],
    "dict of lists": dict[str, list[int]],
    "tuple": tuple[int, bool, Color],
    "tuple of any length": tuple[bool, ...],
    "NamedTuple": Point,
    "TypedDict": Movie,
    "TypedDict, not total": Settings,
    "TypedDict, described": Song,
    "dataclass": Person,
    "dataclass, nested": Team,
    "dataclass, recursive": Tree,
    "dataclass, generic": Page[Level],
    "pydantic, constrained": Item,
    "pydantic, nested": Customer,
    "pydantic, formats": Invoice,
    "pydantic, discriminated union": Owner,
    "pydantic, alias": Aliased,
    "pydantic, recursive": Category,
    "pydantic, root": Labels,
    "pydantic, its own formats": Bag,
    "pydantic, dataclass": Span,
    "list of pydantic": list[Cat],
    "constrained int": Annotated[int, Field(ge=1, le=5)],
    "constrained list": Annotated[list[Item], Field(min_length=1, max_length=2)],
    "constrained fields": Rating,
}
