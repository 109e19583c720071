"""Tool definitions, given as dicts in OpenAI's format or as plain Python functions.

A function is described by its type hints and its Google-style docstring, as transformers'
``get_json_schema`` does; types that JSON Schema cannot express are rejected.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import get_type_hints  # up to 3.10, typing's makes `x: int = None` optional

from ..errors import ValidationError
from ..schema import MISSING, Field, object_schema, read_docstring

__all__ = ["ToolChoice", "function_schema", "normalise_tool_choice", "normalise_tools"]

Tool = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class ToolChoice:
    """Which tools the model may call.

    Attributes:
        mode: `auto` (the model decides), `none` (no call) or `required` (at least one call).
        name: The only function that may be called, or None for any.
    """

    mode: Literal["auto", "none", "required"]
    name: str | None = None

    def allowed(self, tools: Sequence[Tool]) -> list[Tool]:
        """Return the *tools* that may be called."""
        if self.mode == "none":
            return []
        return [tool for tool in tools if self.name in (None, tool["function"]["name"])]


def function_schema(function: Callable[..., Any]) -> Tool:
    """Describe a Python function as a tool.

    The description is the part of the docstring before its sections. Parameters are described by
    the ``Args:`` section or ``Annotated[int, "description"]``. Descriptions are optional, types are
    required. Parameters without a default are required; additional ones are not allowed.

    Args:
        function: A function, a bound method or a class's constructor; sync or async.

    Returns:
        ``{"type": "function", "function": {"name", "description", "parameters"}}``.

    Raises:
        ValidationError: A parameter has no type hint, has one that JSON Schema cannot express, is
            positional-only or variadic (``*args``, ``**kwargs``); or *function* is not a function
            with a name.
    """
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str):
        hint = "wrap it in a def" if callable(function) else "give the function itself"
        raise ValidationError(
            f"a tool must be a dict or a function with a name, got {function!r}; {hint}"
        )
    about, described = read_docstring(inspect.getdoc(function) or "")
    fields: dict[str, Field] = {}
    hints = _hints(name, function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValidationError(
                f"{name}() takes *{parameter.name}, but a model gives arguments by name; "
                "name every parameter of a tool"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValidationError(
                f"{name}() takes {parameter.name!r} by position only, but a model gives arguments "
                "by name; remove the / from its parameters"
            )
        if parameter.name not in hints:
            raise ValidationError(
                f"{name}() has no type hint for {parameter.name!r}; write one, e.g. "
                f"{parameter.name}: str"
            )
        is_required = parameter.default is parameter.empty
        fields[parameter.name] = Field(
            hints[parameter.name],
            is_required,
            MISSING if is_required else parameter.default,
            described.get(parameter.name, ""),
        )
    parameters = object_schema(fields, f"{name}()")
    definition = {"name": name, "parameters": parameters}
    if about:
        definition["description"] = about
    return _checked({"type": "function", "function": definition})


def normalise_tools(tools: Sequence[Tool | Callable[..., Any]] | None) -> list[Tool]:
    """Validate tool definitions and convert functions to them.

    Args:
        tools: Dicts in OpenAI's format, Python functions, or both; None: no tools.

    Returns:
        New dicts, each with ``parameters``; the given ones are not modified.

    Raises:
        ValidationError: A definition is malformed, or two tools have the same name.
    """
    if tools is None:
        return []
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        name = getattr(tools, "__name__", None)
        hint = f"; write tools=[{name}]" if name else ""
        kind = type(tools).__name__
        raise ValidationError(f"tools must be a list of functions or dicts, got {kind}{hint}")
    found: dict[str, Tool] = {}
    for given in tools:
        if isinstance(given, Mapping):
            tool = _checked(copy.deepcopy(dict(given)))
        else:
            tool = function_schema(given)
        name = tool["function"]["name"]
        if name in found:
            raise ValidationError(f"two tools are named {name!r}; rename one of them")
        found[name] = tool
    return list(found.values())


def normalise_tool_choice(choice: object, tools: Sequence[Tool]) -> ToolChoice:
    """Parse OpenAI's ``tool_choice``.

    Args:
        choice: ``"auto"``, ``"none"``, ``"required"``, a dict that names a function, or None:
            `auto` if there are tools, otherwise `none`.
        tools: Normalised tools.

    Raises:
        ValidationError: *choice* is invalid, or requires a call to a tool that is not given.
    """
    names = [tool["function"]["name"] for tool in tools]
    if choice is None:
        choice = "auto"
    if choice == "none" or (choice == "auto" and not names):
        return ToolChoice("none")
    if choice == "auto":
        return ToolChoice("auto")
    if choice == "required":
        if not names:
            raise ValidationError('tool_choice="required" needs tools, and none were given')
        return ToolChoice("required")
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ValidationError(
            f'tool_choice must be "auto", "none", "required" or {{"type": "function", '
            f'"function": {{"name": ...}}}}, got {choice!r}'
        )
    if name not in names:
        raise ValidationError(f"tool_choice names {name!r}, but the tools are {names}")
    return ToolChoice("required", name)


def _checked(tool: Tool) -> Tool:
    """Return *tool* with ``parameters``, validated against OpenAI's format."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping):
        raise ValidationError(
            'a tool must be {"type": "function", "function": {"name": ..., "parameters": ...}}, '
            f"got a dict with {sorted(map(str, tool))}"
        )
    function = dict(function)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValidationError(
            f"a tool's name must be 1 to 64 letters, digits, '_', '-' or '.', got {name!r}"
        )
    if not isinstance(function.get("description", ""), str):
        raise ValidationError(
            f"the description of tool {name!r} must be a string, "
            f"got {type(function['description']).__name__}"
        )
    given = function.get("parameters")
    parameters = dict(given) if isinstance(given, Mapping) else {"type": given or "object"}
    if parameters.setdefault("type", "object") != "object":
        raise ValidationError(
            f"the parameters of tool {name!r} must be a JSON schema of type 'object', "
            f"got {parameters['type']!r}"
        )
    parameters.setdefault("properties", {})
    try:
        json.dumps(parameters)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError(f"the parameters of tool {name!r} must be JSON: {error}") from None
    return {**tool, "function": {**function, "parameters": parameters}}


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise ValidationError(f"the type hints of {name}() cannot be read: {error}") from None
