"""Python types as JSON Schemas, and JSON read back as values of these types.

The types are str, int, float, bool, None, Any, bytes, list, set, tuple, dict, Union, Literal, Enum,
dates, UUID, Decimal, Path, dataclasses, TypedDict, NamedTuple and Annotated. Whatever pydantic
defines or constrains is left to pydantic.
"""

from __future__ import annotations

from .allowed_types import ANY_TYPE, allowed_types, json_type, resolved, types_within
from .docstring import read_docstring
from .fields import MISSING, Field
from .from_json import parse_json
from .keywords import close_objects
from .to_schema import Schema, json_schema, object_schema

__all__ = [
    "ANY_TYPE",
    "MISSING",
    "Field",
    "Schema",
    "allowed_types",
    "close_objects",
    "json_schema",
    "json_type",
    "object_schema",
    "parse_json",
    "read_docstring",
    "resolved",
    "types_within",
]
