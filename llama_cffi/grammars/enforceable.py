"""JSON Schemas rewritten in the keywords, and as llguidance reads them, so that they are enforced.

A keyword that llguidance lacks becomes an equivalent part of `allOf` where that is possible; where
it is not, it stays, and llguidance refuses it by its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from fractions import Fraction
from itertools import combinations, permutations
from typing import Any

from ..errors import GrammarError
from ..schema.keywords import FORMATS, mapped
from .complement import complement
from .dates import DATE_PATTERNS
from .patterns import rewritten
from .schemas import ALL_TYPES, IN_PLACE, InexactError, Schemas, joined

__all__ = ["SPACE", "enforceable"]

Schema = dict[str, Any]

# Between two tokens of JSON: at most one line break with indentation, or one space. Without a limit
# a model may generate white space endlessly.
SPACE = r"\n[ \t]{0,32}| "
# Without \u: llguidance would let a model spell the name of a property with it, and so give it
# the value of another.
_ESCAPES = 'nrbtf\\"'
_MAX_OPTIONS = 100  # of a keyword that is written as a choice
_BOUNDS = ("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum")


def enforceable(schema: Any) -> Any:
    """Return a schema for llguidance whose documents are those of *schema*.

    `uniqueItems` is relaxed where items cannot be listed; see docs/structured-output.md.

    Raises:
        GrammarError: A pattern or number cannot be enforced, or the schema is nested too deeply.
    """
    if isinstance(schema, bool):
        schema = {"allOf": [schema]}
    if not isinstance(schema, Mapping):
        raise GrammarError(f"a schema must be an object or a boolean, got {schema!r:.80}")
    writer = _Writer(schema)
    try:
        written = writer.schema(dict(schema))
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None
    options = written.pop("x-guidance", {})
    if isinstance(options, dict):
        if options.get("whitespace_flexible", True):
            options = {"whitespace_pattern": SPACE, **options}
        if writer.has_open_objects:
            options = {"json_allowed_escapes": _ESCAPES, **options}
    return {"x-guidance": options, **written}


_LONGEST_NAME = 4096


class _Writer:
    """Attributes: has_open_objects: Whether an object may have names beside those declared."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.has_open_objects = False
        self._schemas = Schemas(root)
        # Before 2020-12, `prefixItems` is not a keyword.
        draft = str(root.get("$schema", ""))
        self._has_prefix_items = not any(d in draft for d in ("draft-0", "2019-09"))

    def schema(self, schema: Schema) -> Schema:
        """Return *schema* rewritten, with the schemas within it."""
        result = dict(schema)
        extra: list[Any] = []
        for rule in _RULES:
            # Where it is malformed or inexact, llguidance refuses the keyword.
            with suppress(InexactError, AttributeError, KeyError, TypeError, ValueError):
                extra += rule(self, result)
        result = mapped(self.schema, _with_all(result, extra))
        result = _with_all(result, [*_number_ranges(result), *_short_multiples(result)])
        self._note_open_object(result)
        _check_names(result)
        for keyword in result.keys() & {"const", "enum"}:
            result[keyword] = _with_integers(result[keyword])
        if isinstance(result.get("pattern"), str):
            result["pattern"] = rewritten(result["pattern"]).text
        if isinstance(result.get("patternProperties"), dict):
            result["patternProperties"] = _rewritten_names(result)
        return result

    def _note_open_object(self, schema: Schema) -> None:
        declares = schema.keys() & {"properties", "patternProperties", "required"}
        if declares and schema.get("additionalProperties", True) is not False:
            self.has_open_objects = True

    # Each rule removes keywords from *schema*, and yields what stands for them.

    def format(self, schema: Schema) -> Iterator[Any]:
        name = schema.get("format")
        if isinstance(name, str) and name not in FORMATS:
            del schema["format"]
        elif name in DATE_PATTERNS:
            yield {"pattern": DATE_PATTERNS[name]}

    def negation(self, schema: Schema) -> Iterator[Any]:
        if "not" in schema:
            base = {key: value for key, value in schema.items() if key != "not"}
            found = complement(self._schemas, schema["not"], base)
            del schema["not"]
            yield found

    def condition(self, schema: Schema) -> Iterator[Any]:
        if "if" in schema:
            test, then, otherwise = (schema.get(k, True) for k in ("if", "then", "else"))
            base = {key: value for key, value in schema.items() if key != "if"}
            opposite = complement(self._schemas, test, base)
            yield joined([_both(test, then), _both(opposite, otherwise)])
        for keyword in ("if", "then", "else"):
            schema.pop(keyword, None)

    def dependents(self, schema: Schema) -> Iterator[Any]:
        for name, names in schema.get("dependentRequired", {}).items():
            yield _if_present(name, {"required": [name, *names]})
        schema.pop("dependentRequired", None)
        for name, inner in schema.get("dependentSchemas", {}).items():
            yield _if_present(name, {"required": [name], "allOf": [inner]})
        schema.pop("dependentSchemas", None)

    def names(self, schema: Schema) -> Iterator[Any]:
        if "propertyNames" not in schema:
            return
        given: Any = self._schemas.plain(schema["propertyNames"])
        rule: Schema = dict(given) if isinstance(given, Mapping) else {}
        if given is False:
            rule = {"enum": []}
        if rule.get("type") == "string":
            del rule["type"]
        if isinstance(rule.get("format"), str) and rule["format"] not in FORMATS:
            del rule["format"]
        allowed: Schema = {"additionalProperties": False}
        if rule.keys() <= {"const", "enum"} and rule:
            allowed["properties"] = {
                name: True for name in self._schemas.values(rule) if isinstance(name, str)
            }
        elif rule.keys() == {"pattern"}:
            allowed["patternProperties"] = {rule["pattern"]: True}
        elif rule.keys() <= {"minLength", "maxLength"} and rule:
            length = f"{{{int(rule.get('minLength', 0))},{rule.get('maxLength', '')}}}"
            allowed["patternProperties"] = {f"^[\\s\\S]{length}$": True}
        elif rule:
            raise InexactError("propertyNames")
        del schema["propertyNames"]
        if rule:
            yield allowed

    def contained(self, schema: Schema) -> Iterator[Any]:
        least, most = schema.get("minContains", 1), schema.get("maxContains")
        if "contains" in schema and (least > 0 or most is not None):
            if not self._has_prefix_items:
                raise InexactError("contains")
            inner, other = schema["contains"], None
            if most is not None:
                other = complement(self._schemas, inner, schema.get("items", True))
            yield joined([_all_but("array"), *_containing(inner, other, least, most, schema)])
        for keyword in ("contains", "minContains", "maxContains"):
            schema.pop(keyword, None)

    def unique(self, schema: Schema) -> Iterator[Any]:
        if schema.pop("uniqueItems", False) is not True or "prefixItems" in schema:
            return
        values = self._schemas.values(schema.get("items", True))
        n_max = min(len(values), schema.get("maxItems", len(values)))
        lengths = range(schema.get("minItems", 0), n_max + 1)
        if sum(math.perm(len(values), n) for n in lengths) <= _MAX_OPTIONS:
            arrays = [list(items) for n in lengths for items in permutations(values, n)]
            yield joined([_all_but("array"), {"enum": arrays} if arrays else False])
        else:
            yield {"maxItems": n_max}  # relaxed, but more items could not be unique

    def exclusive(self, schema: Schema) -> Iterator[Any]:
        if "oneOf" not in schema:
            return
        options, schemas = schema["oneOf"], self._schemas
        base = {key: value for key, value in schema.items() if key != "oneOf"}
        alone = []
        for i, one in enumerate(options):
            others = [
                complement(schemas, other, {"allOf": [base, one]})
                for other in (*options[:i], *options[i + 1 :])
                if not schemas.are_disjoint(one, other)
            ]
            alone.append(_both(one, *others))
        del schema["oneOf"]
        yield joined(alone)

    def unevaluated(self, schema: Schema) -> Iterator[Any]:
        if schema.keys() & IN_PLACE:
            return
        if "unevaluatedProperties" in schema:
            rest = schema.pop("unevaluatedProperties")
            schema.setdefault("additionalProperties", rest)
        if "unevaluatedItems" in schema and "contains" not in schema and self._has_prefix_items:
            rest = schema.pop("unevaluatedItems")
            schema.setdefault("items", rest)
        yield from ()


_RULES: tuple[Callable[[_Writer, Schema], Iterator[Any]], ...] = (
    _Writer.unevaluated,
    _Writer.format,
    _Writer.negation,
    _Writer.condition,
    _Writer.dependents,
    _Writer.names,
    _Writer.contained,
    _Writer.unique,
    _Writer.exclusive,
)


def _number_ranges(schema: Schema) -> list[Any]:
    """Replace bounds in *schema* by those for which llguidance's ranges of numbers are right.

    It allows 2 for 2 < x < 2.5, and forbids 0.5 for x <= 0.55.

    Returns:
        What the value has to match besides.
    """
    bounds = {key: schema[key] for key in _BOUNDS if key in schema}
    is_integer = schema.get("type") == "integer"
    if not all(_is_bound(bound, is_integer) for bound in bounds.values()):
        return []
    bounds = _integer_bounds(bounds) if is_integer else _exact_bounds(bounds)
    low, high = bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum")
    if low is not None and low >= 0 and low == int(low):
        del bounds["exclusiveMinimum"]
        bounds["minimum"] = max(_above(low), bounds.get("minimum", low))
    if high is not None and high <= 0 and high == int(high):
        del bounds["exclusiveMaximum"]
        bounds["maximum"] = min(-_above(-high), bounds.get("maximum", high))
    options = [bounds]
    if not is_integer:
        for sign, keys, inclusive in ((1, _BOUNDS[:2], "maximum"), (-1, _BOUNDS[2:], "minimum")):
            for key in bounds.keys() & set(keys):
                rest = {k: v for k, v in bounds.items() if k not in keys}
                options += [{**rest, inclusive: sign * n} for n in _shorter(sign * bounds[key])]
    options = [bounds, *filter(_is_range, options[1:])]
    for key in _BOUNDS:
        schema.pop(key, None)
    if len(options) == 1:
        schema.update(bounds)
        return []
    return [{"anyOf": [{"type": "number", **option} for option in options]}]


def _with_integers(value: Any) -> Any:
    """Return a constant without floats that are integers: llguidance cuts large ones."""
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _with_integers(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short_multiples(schema: Schema) -> list[Any]:
    """Replace `multipleOf` where llguidance wants all decimals: 7.50 for a multiple of 0.25.

    Returns:
        What the value has to match besides.
    """
    given = schema.get("multipleOf")
    if type(given) is not float or "e" in str(given):
        return []
    n_decimals = len(str(given).partition(".")[2])
    step = Fraction(str(given))
    if n_decimals < 2 or step * 10**n_decimals < 10:
        return []
    # A number of fewer decimals is also a multiple of its own last decimal.
    lasts = [Fraction(1, 10**n) for n in range(1, n_decimals)]
    common = [
        Fraction(
            math.lcm(step.numerator, last.numerator), math.gcd(step.denominator, last.denominator)
        )
        for last in lasts
    ]
    del schema["multipleOf"]
    steps = dict.fromkeys([given, *map(float, common)])
    return [{"anyOf": [{"type": "number", "multipleOf": other} for other in steps]}]


def _is_bound(value: Any, is_integer: bool) -> bool:
    if type(value) is int:
        return is_integer or abs(value) < 10**300
    return type(value) is float and abs(value) < 1e300


def _integer_bounds(bounds: Schema) -> Schema:
    """Return inclusive bounds of integers."""
    lows = [math.ceil(bounds[k]) for k in ("minimum",) if k in bounds]
    lows += [math.floor(bounds[k]) + 1 for k in ("exclusiveMinimum",) if k in bounds]
    highs = [math.floor(bounds[k]) for k in ("maximum",) if k in bounds]
    highs += [math.ceil(bounds[k]) - 1 for k in ("exclusiveMaximum",) if k in bounds]
    return {
        **({"minimum": max(lows)} if lows else {}),
        **({"maximum": min(highs)} if highs else {}),
    }


def _exact_bounds(bounds: Schema) -> Schema:
    """Return bounds of at most 15 digits, rounded inwards: llguidance reads no more exactly."""
    result = dict(bounds)
    for keys, rounding, tightest in (
        (("minimum", "exclusiveMinimum"), ROUND_CEILING, max),
        (("maximum", "exclusiveMaximum"), ROUND_FLOOR, min),
    ):
        inclusive, exclusive = keys
        for key in keys:
            bound = result.get(key)
            if type(bound) is float:
                inner = float(Context(15, rounding).create_decimal(repr(bound)))
                if key == exclusive and inner != bound:
                    del result[exclusive]
                    inner = tightest(inner, result.get(inclusive, inner))
                    key = inclusive
                result[key] = inner
    return result


def _above(number: float) -> float:
    """Return the next number of 15 digits; llguidance reads no more exactly."""
    return float(f"{number + 10.0 ** (len(str(int(number))) - 15):.15g}")


def _shorter(number: float) -> list[float]:
    """Return the positive numbers that the first decimals of *number* stand for."""
    whole, _, decimals = str(number).partition(".")
    if number <= 0 or "e" in decimals or len(decimals) > 15:
        return []
    return [float(f"{whole}.{decimals[:n]}") for n in range(1, len(decimals))]


def _is_range(bounds: Schema) -> bool:
    low: float = max(bounds.get("minimum", -math.inf), bounds.get("exclusiveMinimum", -math.inf))
    high: float = min(bounds.get("maximum", math.inf), bounds.get("exclusiveMaximum", math.inf))
    return low < high or bounds == {"minimum": high, "maximum": low}


def _containing(
    inner: Any, other: Any, least: int, most: int | None, array: Schema
) -> list[Schema]:
    """Return schemas of the arrays with *least* to *most* items that fit *inner*.

    Args:
        inner: What the items fit.
        other: Its complement; not used where *most* is None.
        least: How many items must fit.
        most: How many may; None: any number.
        array: The schema of the array, which has `maxItems`.
    """
    n_max = array["maxItems"]
    if (math.comb(n_max, least) if most is None else 2**n_max) > _MAX_OPTIONS:
        raise InexactError("contains")
    if most is None:
        found = [
            [inner if i in places else True for i in range(max(places) + 1)]
            for places in combinations(range(n_max), least)
        ]
        return [{"type": "array", "prefixItems": i, "minItems": len(i)} for i in found]
    found = [
        [inner if i in places else other for i in range(n)]
        for n in range(n_max + 1)
        for k in range(least, min(most, n) + 1)
        for places in combinations(range(n), k)
    ]
    lengths = [{"minItems": len(items), "maxItems": len(items)} for items in found]
    return [
        {"type": "array", "prefixItems": items, **length}
        for items, length in zip(found, lengths, strict=True)
    ]


def _check_names(schema: Schema) -> None:
    # llguidance drops optional names of 10,000 characters, and fails at 200,000 while it generates.
    required, properties = schema.get("required"), schema.get("properties")
    names = [*required] if isinstance(required, list) else []
    names += properties if isinstance(properties, dict) else []
    longest = max((len(json.dumps(n)) for n in names if isinstance(n, str)), default=0)
    if longest > _LONGEST_NAME:
        raise GrammarError(
            f"a property name of {longest:,} characters cannot be enforced; at most "
            f"{_LONGEST_NAME:,}, written as JSON"
        )


def _with_all(schema: Schema, more: list[Any]) -> Schema:
    """Return *schema* with *more* that the value must match."""
    given = schema.get("allOf", [])
    return {**schema, "allOf": [*given, *more]} if more and isinstance(given, list) else schema


def _both(*schemas: Any) -> Any:
    """Return the schema of the values that fit all of *schemas*."""
    kept = [schema for schema in schemas if schema is not True and schema != {}]
    if False in kept:
        return False
    return {"allOf": kept} if len(kept) > 1 else kept[0] if kept else True


def _if_present(name: str, schema: Schema) -> Any:
    """Return the schema of values that lack the property *name*, or fit *schema*."""
    return {"anyOf": [{"properties": {name: False}}, {"type": "object", **schema}]}


def _all_but(type_: str) -> Schema:
    return {"type": [name for name in ALL_TYPES if name != type_]}


def _rewritten_names(schema: Schema) -> Schema:
    """Return `patternProperties` for llguidance.

    Raises:
        GrammarError: A pattern is not exact, and a name that it therefore does not match would be
            allowed with another value.
    """
    result = {}
    for pattern, inner in schema["patternProperties"].items():
        written = rewritten(pattern)
        is_only = len(schema["patternProperties"]) == 1
        if not written.is_exact and not (
            is_only and schema.get("additionalProperties") is False and "properties" not in schema
        ):
            raise GrammarError(
                f"the pattern {pattern!r:.200} excludes quotes or backslashes, which can be "
                "enforced for names only where it is the only pattern, beside "
                "additionalProperties: false"
            )
        result[written.text] = inner
    return result
