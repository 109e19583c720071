"""Types that pydantic reads; pydantic is imported only where there is one."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import ValidationError
from .annotations import name_of
from .keywords import FORMATS, Schema, mapped

__all__ = ["pydantic_schema", "pydantic_value"]


def pydantic_schema(type_: Any) -> Schema:
    """Return pydantic's schema of a type, in the form of the other schemas.

    Raises:
        ValidationError: JSON has no such values, or the type is not complete.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        schema = TypeAdapter(type_).json_schema(schema_generator=_generator())
    except PydanticUserError as e:
        raise ValidationError(f"{name_of(type_)} has no JSON Schema: {e}") from e
    return _tidied(schema)


def pydantic_value(type_: Any, text: str, where: str) -> Any:
    """Return the value that a JSON text stands for.

    Raises:
        ValidationError: It does not fit; pydantic's own error is the cause.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(type_).validate_json(text)
    except ValueError as e:
        raise ValidationError(f"{where}: {e}") from e


@cache
def _generator() -> Any:
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        """Writes a Decimal as a number, and no titles that repeat the names of fields."""

        def decimal_schema(self, schema: Any) -> Schema:
            written: Schema = super().decimal_schema(schema)
            options = written.get("anyOf", [written])
            return next((o for o in options if o.get("type") == "number"), written)

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    return Generator


def _tidied(schema: Schema) -> Schema:
    """Close the objects that may not have other keys, and drop what only OpenAPI knows."""
    result = mapped(_tidied, schema)
    if result.get("type") == "object" and "properties" in result:
        result.setdefault("additionalProperties", False)
    if result.get("format") not in FORMATS:
        result.pop("format", None)
    result.pop("discriminator", None)
    return result
