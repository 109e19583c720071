"""Tools from functions and dicts, and what may be called."""

from __future__ import annotations

import copy
import enum
from typing import Annotated, Any

import pytest

from llama_cffi.chat.tools import (
    ToolChoice,
    function_schema,
    normalise_tool_choice,
    normalise_tools,
)
from llama_cffi.errors import ValidationError


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


def weather(city: str, unit: Unit = Unit.C, days: int = 1, *, exact: bool) -> str:
    """Get the weather
    in a city.

    More about it.

    Args:
        city: The city, with its country: "Rome, Italy".
            Not a village.
        days (int): How many days.
        exact: Whether to
            round.

    Returns:
        The weather.
    """
    return f"{city}{unit}{days}{exact}"


def test_function_with_everything() -> None:
    assert function_schema(weather) == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Get the weather in a city.\n\nMore about it.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {
                        "type": "string",
                        "description": 'The city, with its country: "Rome, Italy". Not a village.',
                    },
                    "unit": {
                        "type": "string",
                        "enum": ["celsius", "fahrenheit"],
                        "default": "celsius",
                    },
                    "days": {"type": "integer", "description": "How many days.", "default": 1},
                    "exact": {"type": "boolean", "description": "Whether to round."},
                },
                "required": ["city", "exact"],
                "additionalProperties": False,
            },
        },
    }


def test_the_docstring_says_more_than_annotated() -> None:
    def f(a: Annotated[int, "one"], b: Annotated[int, "two"] = 3) -> None:
        """Add.

        Args:
            b: The second.
        """

    assert function_schema(f)["function"]["parameters"]["properties"] == {
        "a": {"type": "integer", "description": "one"},
        "b": {"type": "integer", "description": "The second.", "default": 3},
    }


def test_methods_and_functions_without_a_docstring() -> None:
    class Home:
        async def open_door(self, room: str) -> None:
            pass

    function = function_schema(Home().open_door)["function"]
    assert "description" not in function
    assert list(function["parameters"]["properties"]) == ["room"]


def bare(x):  # type: ignore[no-untyped-def]
    return x


def many(*names: str) -> None:
    pass


def positional(x: int, /) -> None:
    pass


def strange(x: bytearray) -> None:
    pass


def by_number(x: dict[int, str]) -> None:
    pass


def unreadable(x: Missing) -> None:  # noqa: F821  # type: ignore[name-defined]
    pass


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (bare, "no type hint for 'x'"),
        (many, r"\*names"),
        (positional, "position only"),
        (strange, "bytearray"),
        (by_number, "keys"),
        (unreadable, "Missing"),
        (3, "3"),
    ],
)
def test_functions_that_cannot_be_tools(function: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        function_schema(function)


def test_dicts_are_completed_and_left_alone() -> None:
    given = {"type": "function", "function": {"name": "now"}}
    before = copy.deepcopy(given)
    tools = normalise_tools([given, weather])
    assert given == before
    assert [tool["function"]["name"] for tool in tools] == ["now", "weather"]
    assert tools[0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert normalise_tools(None) == []


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ({"type": "function"}, "list"),
        (["x"], "got 'x'"),
        ([{"name": "f"}], "name"),
        ([{"type": "function", "function": {"name": "a b"}}], "a b"),
        (
            [{"type": "function", "function": {"name": "f", "description": 1}}],
            "description.*got int",
        ),
        ([{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}], "arr"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"x": {1}}}}], "JSON"),
        ([{"type": "function", "function": {"name": "f", "parameters": 3}}], "object"),
        ([weather, weather], "two tools"),
    ],
)
def test_bad_tools(tools: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        normalise_tools(tools)


def test_tool_choice() -> None:
    tools = normalise_tools([weather, {"type": "function", "function": {"name": "now"}}])
    named = {"type": "function", "function": {"name": "now"}}
    assert normalise_tool_choice(None, tools) == ToolChoice("auto")
    assert normalise_tool_choice(None, []) == ToolChoice("none")
    assert normalise_tool_choice("auto", []) == ToolChoice("none")
    assert normalise_tool_choice("none", tools).allowed(tools) == []
    assert normalise_tool_choice("required", tools).allowed(tools) == tools
    choice = normalise_tool_choice(named, tools)
    assert choice == ToolChoice("required", "now")
    assert choice.allowed(tools) == [tools[1]]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("sometimes", "sometimes"),
        ({"function": {}}, "tool_choice"),
        (3, "3"),
        ({"type": "function", "function": {"name": "then"}}, "then.*now"),
    ],
)
def test_bad_tool_choice(choice: Any, says: str) -> None:
    tools = normalise_tools([{"type": "function", "function": {"name": "now"}}])
    with pytest.raises(ValidationError, match=says):
        normalise_tool_choice(choice, tools)


def test_required_needs_tools() -> None:
    with pytest.raises(ValidationError, match="none were given"):
        normalise_tool_choice("required", [])
