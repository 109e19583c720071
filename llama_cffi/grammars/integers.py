"""Integers beyond 2^53, which llguidance's JSON Schema rounds to floats, as rules in Lark."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import GrammarError
from ..schema.keywords import mapped
from .schemas import NOTES, InexactError, Schemas

__all__ = ["has_large_integers", "integer_range", "written"]

Schema = dict[str, Any]

_EXACT = 2**53
_LARGEST = 2**63 - 1024  # the largest float whose integer llguidance can hold
_WHERE = (
    "beyond 2^53, integers are exact only within anyOf, arrays and objects with "
    "additionalProperties: false"
)
_BOUNDS = {"maximum", "minimum"}
_OBJECT = {"additionalProperties", "properties", "required", "type"}
_ARRAY = {"items", "maxItems", "minItems", "type"}


def has_large_integers(schema: Any) -> bool:
    """Tell whether bounds or constants of integers in *schema* are beyond 2^53."""
    if isinstance(schema, list):
        return any(map(has_large_integers, schema))
    if isinstance(schema, Mapping):
        return any(has_large_integers(value) for value in schema.values())
    return type(schema) is int and abs(schema) > _EXACT


def written(schema: Schema, rules: list[str]) -> str:
    """Return an enforceable schema as an expression in Lark.

    Where a bound stands within other keywords than closed objects, arrays and `anyOf`, it is
    rounded inwards to a float.

    Args:
        schema: The schema.
        rules: The rules that the expression refers to are appended.

    Raises:
        GrammarError: A constant that is not a 64-bit float stands within such keywords.
    """
    if not has_large_integers({k: v for k, v in schema.items() if k not in _ANNOTATIONS}):
        return f"%json {json.dumps(schema, ensure_ascii=False)}"
    own: list[str] = []
    try:
        root = _Writer(schema, own, len(rules)).expression(schema)
    except InexactError:
        return f"%json {json.dumps(_rounded(schema), ensure_ascii=False)}"
    except (AttributeError, KeyError, TypeError, ValueError):  # malformed, which llguidance refuses
        return f"%json {json.dumps(schema, ensure_ascii=False)}"
    rules += own
    return root


def integer_range(low: int | None, high: int | None) -> str:
    """Return a regular expression of the integers from *low* to *high*; None: no bound."""
    options = []
    if low is None or low < 0:
        largest = None if low is None else -low
        options = [f"-(?:{rest})" for rest in _naturals(max(1, -(high or 0)), largest)]
    if high is None or high >= 0:
        options += _naturals(max(0, low or 0), high)
    return "|".join(options)


def _rounded(schema: Schema) -> Schema:
    """Return *schema* with the bounds that llguidance reads exactly."""
    result = mapped(_rounded, schema)
    for keyword, sign in (("minimum", -1), ("maximum", 1)):
        if type(result.get(keyword)) is int and has_large_integers(result[keyword]):
            result[keyword] = sign * _rounded_down(sign * result[keyword])
    for keyword in ("const", "enum"):
        _check_constants(result.get(keyword))
    return result


def _rounded_down(bound: int) -> int:
    if bound < -_LARGEST:
        raise GrammarError(f"integers beyond {bound} cannot be enforced here; {_WHERE}")
    rounded = float(min(bound, _LARGEST))
    return int(rounded if rounded <= bound else math.nextafter(rounded, -math.inf))


def _check_constants(value: Any) -> None:
    if isinstance(value, (list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_constants(item)
    elif has_large_integers(value) and (abs(value) > _LARGEST or float(value) != value):
        raise GrammarError(f"the constant {value} cannot be enforced here; {_WHERE}")


def _naturals(low: int, high: int | None) -> list[str]:
    options: list[str] = []
    while high is None or low <= high:
        n = len(str(low))
        last = 10**n - 1
        options += _of_one_length(str(low), str(last if high is None else min(high, last)))
        if high is None:
            return [*options, f"[1-9][0-9]{{{n},}}"]
        low = last + 1
    return options


def _of_one_length(low: str, high: str) -> list[str]:
    """Return expressions of the numbers from *low* to *high*, which have equally many digits."""
    n = len(low) - 1
    first, last = int(low[0]), int(high[0])
    if n == 0:
        return [f"[{first}-{last}]"]
    if first == last:
        return [f"{first}(?:{'|'.join(_of_one_length(low[1:], high[1:]))})"]
    options = []
    if low[1:] != "0" * n:
        options += [f"{first}(?:{'|'.join(_of_one_length(low[1:], '9' * n))})"]
        first += 1
    if high[1:] != "9" * n:
        options += [f"{last}(?:{'|'.join(_of_one_length('0' * n, high[1:]))})"]
        last -= 1
    return options + [f"[{first}-{last}][0-9]{{{n}}}"] * (first <= last)


_ANNOTATIONS = NOTES - {"$defs", "definitions"}


class _Writer:
    def __init__(self, root: Schema, rules: list[str], n_before: int) -> None:
        self._shared = {k: root[k] for k in ("x-guidance", "$defs", "definitions") if k in root}
        self._schemas = Schemas(root)
        self._rules, self._n_before = rules, n_before
        self._names: dict[str, str] = {}  # reference -> rule
        options = root.get("x-guidance", {})
        pattern = options.get("whitespace_pattern", "").replace("/", "\\/")
        self._space = self._rule(f"/{pattern}/?") if pattern else '""'

    def expression(self, schema: Any) -> str:
        """Write the schema of one value."""
        if not isinstance(schema, dict) or not self._is_large(schema, set()):
            one = schema if isinstance(schema, dict) else {"allOf": [schema]}
            return f"%json {json.dumps({**self._shared, **one})}"
        schema = {k: v for k, v in schema.items() if k not in NOTES and k != "x-guidance"}
        keys, kind = schema.keys(), schema.get("type")
        if keys == {"$ref"}:
            return self._reference(schema["$ref"])
        if keys == {"anyOf"} or (keys == {"allOf"} and len(schema["allOf"]) == 1):
            (options,) = schema.values()
            return self._any(options)
        if keys <= {"const", "enum", "type"} and len(keys & {"const", "enum"}) == 1:
            given = [schema["const"]] if "const" in schema else schema["enum"]
            typed = {"type": kind} if kind else {}
            values = [v for one in given for v in self._schemas.values({**typed, "const": one})]
            return f"({' | '.join(map(self._constant, values))})"
        if isinstance(kind, list):
            return self._any({**_without_bounds(schema, name), "type": name} for name in kind)
        if kind == "integer" and keys <= {"type", *_BOUNDS}:
            return f"/{integer_range(schema.get('minimum'), schema.get('maximum'))}/"
        if kind == "array" and keys <= _ARRAY:
            return self._array(schema)
        if kind == "object" and keys <= _OBJECT and schema.get("additionalProperties") is False:
            return self._object(schema)
        raise InexactError

    def _is_large(self, schema: Any, followed: set[str]) -> bool:
        """Tell whether large integers are in *schema*, or in what it refers to."""
        if isinstance(schema, list):
            return any(self._is_large(part, followed) for part in schema)
        if not isinstance(schema, Mapping):
            return has_large_integers(schema)
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)
            if self._is_large(self._schemas.resolved(reference), followed):
                return True
        return any(self._is_large(v, followed) for k, v in schema.items() if k not in NOTES)

    def _rule(self, text: str) -> str:
        name = f"json_{self._n_before + len(self._rules)}"
        self._rules.append(f"{name}: {text}")
        return name

    def _reference(self, reference: str) -> str:
        if reference not in self._names:
            place = len(self._rules)
            name = self._names[reference] = self._rule("")  # may be used within itself
            self._rules[place] = f"{name}: {self.expression(self._schemas.resolved(reference))}"
        return self._names[reference]

    def _any(self, options: Iterable[Any]) -> str:
        return f"({' | '.join(map(self.expression, options))})"

    def _constant(self, value: Any) -> str:
        if type(value) is int:
            return _literal(str(value))
        if has_large_integers(value):
            raise InexactError
        return self.expression({"const": value})

    def _array(self, schema: Schema) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        item, space = self.expression(schema.get("items", True)), self._space
        if most == 0:
            return f'"[" {space} "]"'
        items = f"{item} {space}"
        if most != 1:
            count = f"{max(least - 1, 0)},{'' if most is None else most - 1}"
            items += f' ("," {space} {item} {space}){{{count}}}'
        return f'"[" {space} {items if least else f"({items})?"} "]"'

    def _object(self, schema: Schema) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if any(properties.get(name, False) is False for name in required):
            raise InexactError
        space = self._space
        # What may stand behind a first property, and what may stand at the beginning.
        behind = first = ""
        for name, inner in reversed(properties.items()):
            if inner is False:
                continue
            key = _literal(json.dumps(name, ensure_ascii=False))
            member = f'{key} {space} ":" {space} {self.expression(inner)} {space}'
            beginning = self._rule(f"{member} {behind}")
            if name in required:
                first, behind = beginning, f'"," {space} {member} {behind}'
            else:
                first = f"({beginning} | {first})" if first else f"{beginning}?"
                behind = f'("," {space} {member})? {behind}'
        return f'"{{" {space} {first} "}}"'


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _without_bounds(schema: Schema, type_: str) -> Schema:
    is_number = type_ in ("integer", "number")
    return {key: value for key, value in schema.items() if is_number or key not in _BOUNDS}
