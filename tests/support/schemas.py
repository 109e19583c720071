"""JSON Schemas that can be enforced, and others that cannot."""

from __future__ import annotations

from typing import Any

__all__ = ["GROUPS", "REFUSED", "SCHEMAS"]

Schema = dict[str, Any]

WORD: Schema = {"type": "string", "maxLength": 8}
SMALL: Schema = {"type": "integer", "minimum": 0, "maximum": 99}


def obj(properties: dict[str, Any] | None = None, *, optional: tuple[str, ...] = (), **more: Any):
    """Return the schema of an object with exactly these properties."""
    properties = properties or {}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
        **more,
    }


def arr(items: Any, most: int = 3, **more: Any) -> Schema:
    return {"type": "array", "items": items, "maxItems": most, **more}


def nested(depth: int, inner: Schema) -> Schema:
    for _ in range(depth):
        inner = obj({"in": inner})
    return inner


# Group -> name -> schema.
GROUPS: dict[str, dict[str, Any]] = {
    "types": {
        "null": {"type": "null"},
        "boolean": {"type": "boolean"},
        "integer": {"type": "integer", "minimum": -1000, "maximum": 1000},
        "number": {"type": "number", "minimum": -10, "maximum": 10},
        "string": {"type": "string", "maxLength": 20},
        "empty string": {"type": "string", "maxLength": 0},
        "empty object": obj(),
        "empty array": {"type": "array", "maxItems": 0},
        "types": {"type": ["null", "boolean"]},
        "types with string": {"type": ["string", "null"], "maxLength": 5},
        "types with number": {
            "type": ["integer", "string"],
            "maxLength": 3,
            "maximum": 5,
            "minimum": 1,
        },
        "types with object": {
            "type": ["object", "null"],
            "properties": {},
            "additionalProperties": False,
        },
        "types with array": {"type": ["array", "boolean"], "items": SMALL, "maxItems": 2},
    },
    "constants": {
        "const string": {"const": "yes"},
        "const number": {"const": 12.5},
        "const null": {"const": None},
        "const false": {"const": False},
        "const object": {"const": {"a": [1, {"b": None}]}},
        "const empty": {"const": {}},
        "const quotes": {"const": 'a"b\\c\nd\te\u0001'},
        "const unicode": {"const": "Grüße, 世界 🎉"},
        "enum strings": {"enum": ["red", "green", "blue"]},
        "enum prefixes": {"enum": ["a", "ab", "abc", "abcd"]},
        "enum mixed": {"enum": [1, "1", None, True, [1], {"a": 1}]},
        "enum numbers": {"enum": [1, 10, 100, 1.5, -3]},
        "enum one": {"enum": ["only"]},
        "enum unicode": {"enum": ["é", "日本", "🎲🎲"]},
        "enum many": {"enum": [f"item {i}" for i in range(200)]},
        "enum of a type": {"type": "string", "enum": ["a", 1, "b"]},
        "enum empty text": {"enum": ["", " ", "  "]},
    },
    "integers": {
        "minimum": {"type": "integer", "minimum": 5, "maximum": 7},
        "exclusive": {"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 8},
        "one integer": {"type": "integer", "minimum": 42, "maximum": 42},
        "negative": {"type": "integer", "minimum": -20, "maximum": -11},
        "around zero": {"type": "integer", "minimum": -1, "maximum": 1},
        "large": {"type": "integer", "minimum": 999_999_990, "maximum": 1_000_000_010},
        "64 bits": {"type": "integer", "minimum": 0, "maximum": 9_007_199_254_740_991},
        "float bounds": {"type": "integer", "minimum": 1.5, "maximum": 4.5},
        "even": {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 500},
        "sevens": {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 700},
        "hundreds": {"type": "integer", "multipleOf": 100, "minimum": -1000, "maximum": 1000},
        "whole": {"type": "integer", "multipleOf": 1.0, "minimum": 0, "maximum": 9},
    },
    "numbers": {
        "fraction": {"type": "number", "minimum": 0, "maximum": 1},
        "open fraction": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "narrow": {"type": "number", "minimum": 3.14, "maximum": 3.15},
        "negative number": {"type": "number", "minimum": -2.5, "maximum": -0.5},
        "across zero": {"type": "number", "minimum": -0.25, "maximum": 0.75},
        "halves": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 50},
        "quarters": {"type": "number", "multipleOf": 0.25, "minimum": -4, "maximum": 4},
        "integer in number": {"type": "number", "multipleOf": 1, "minimum": 0, "maximum": 1000},
        "one number": {"type": "number", "minimum": 2, "maximum": 2},
    },
    "strings": {
        "lengths": {"type": "string", "minLength": 3, "maxLength": 6},
        "exact length": {"type": "string", "minLength": 4, "maxLength": 4},
        "one character": {"type": "string", "minLength": 1, "maxLength": 1},
        "pattern": {"type": "string", "pattern": "^[a-z]{2,5}$"},
        "pattern digits": {"type": "string", "pattern": r"^\d{3}-\d{4}$"},
        "pattern alternatives": {"type": "string", "pattern": "^(cat|dog|bird)s?$"},
        "pattern classes": {"type": "string", "pattern": r"^[A-Z]\w{0,4}\s[^a-z]{1,2}$"},
        "pattern quotes": {"type": "string", "pattern": r'^["\\]{2}$'},
        "pattern unicode": {"type": "string", "pattern": "^[äöüß]{1,3}$"},
        "pattern escapes": {"type": "string", "pattern": r"^\.\*\+\?\[\]$"},
        "pattern of words": {"type": "string", "pattern": "^(ab?c){1,3}$"},
        "pattern with length": {"type": "string", "pattern": "^a+$", "maxLength": 6},
        "pattern in the middle": {"type": "string", "pattern": "ok", "maxLength": 10},
        "pattern at the start": {"type": "string", "pattern": "^x", "maxLength": 6},
        "pattern at the end": {"type": "string", "pattern": "z$", "maxLength": 6},
        "pattern hex": {"type": "string", "pattern": "^#[0-9a-fA-F]{6}$"},
        "pattern optional": {"type": "string", "pattern": r"^v\d{1,2}(\.\d{1,2})?(-rc\d)?$"},
    },
    "formats": {
        "date": {"type": "string", "format": "date"},
        "time": {"type": "string", "format": "time", "maxLength": 20},
        "date-time": {"type": "string", "format": "date-time", "maxLength": 30},
        "duration": {"type": "string", "format": "duration", "maxLength": 12},
        "email": {"type": "string", "format": "email", "maxLength": 30},
        "hostname": {"type": "string", "format": "hostname", "maxLength": 20},
        "ipv4": {"type": "string", "format": "ipv4"},
        "ipv6": {"type": "string", "format": "ipv6"},
        "uuid": {"type": "string", "format": "uuid"},
        "uri": {"type": "string", "format": "uri", "maxLength": 30},
        "dates": arr({"type": "string", "format": "date"}),
        "formats": obj(
            {"id": {"type": "string", "format": "uuid"}, "ip": {"type": "string", "format": "ipv4"}}
        ),
    },
    "objects": {
        "one property": obj({"a": SMALL}),
        "properties": obj({"name": WORD, "age": SMALL, "ok": {"type": "boolean"}}),
        "optional": obj({"a": SMALL, "b": SMALL}, optional=("a", "b")),
        "optional first": obj({"a": SMALL, "b": SMALL, "c": SMALL}, optional=("a",)),
        "optional last": obj({"a": SMALL, "b": SMALL, "c": SMALL}, optional=("c",)),
        "optional middle": obj({"a": SMALL, "b": SMALL, "c": SMALL}, optional=("b",)),
        "required without properties": {
            "type": "object",
            "required": ["x"],
            "additionalProperties": SMALL,
            "maxProperties": 1,
        },
        "required of others": {
            "type": "object",
            "properties": {"a": SMALL},
            "required": ["a", "b"],
            "additionalProperties": {"type": "null"},
            "maxProperties": 2,
        },
        "additional": {"type": "object", "additionalProperties": SMALL, "maxProperties": 2},
        "at least one": {
            "type": "object",
            "additionalProperties": {"type": "null"},
            "minProperties": 1,
            "maxProperties": 2,
        },
        "exactly two": {
            "type": "object",
            "additionalProperties": SMALL,
            "minProperties": 2,
            "maxProperties": 2,
        },
        "pattern properties": {
            "type": "object",
            "patternProperties": {"^[a-c]$": SMALL},
            "additionalProperties": False,
            "maxProperties": 2,
        },
        "two patterns": {
            "type": "object",
            "patternProperties": {"^n[0-9]$": SMALL, "^b[0-9]$": {"type": "boolean"}},
            "additionalProperties": False,
            "maxProperties": 2,
        },
        "property and pattern": {
            "type": "object",
            "properties": {"id": SMALL},
            "required": ["id"],
            "patternProperties": {"^x[a-z]$": WORD},
            "additionalProperties": False,
            "maxProperties": 2,
        },
        "many properties": obj({f"p{i}": {"type": "boolean"} for i in range(30)}),
        "many optional": obj(
            {f"p{i}": {"type": "null"} for i in range(12)},
            optional=tuple(f"p{i}" for i in range(12)),
        ),
        "unicode keys": obj({"größe": SMALL, "名前": WORD, "🔑": {"type": "null"}}),
        "odd keys": obj(
            {"": SMALL, " ": SMALL, "a b": SMALL, 'q"q': SMALL, "b\\s": SMALL, "n\nl": SMALL}
        ),
        "keys like keywords": obj({"type": WORD, "properties": SMALL, "$ref": WORD, "enum": SMALL}),
        "keys with prefixes": obj(
            {"a": SMALL, "aa": SMALL, "aaa": SMALL}, optional=("a", "aa", "aaa")
        ),
        "objects": obj({"a": obj({"b": obj({"c": SMALL})}), "d": obj({"e": WORD})}),
        "false property": {
            "type": "object",
            "properties": {"a": False, "b": SMALL},
            "required": ["b"],
            "additionalProperties": False,
        },
    },
    "arrays": {
        "array": arr(SMALL),
        "array of words": arr(WORD, 4),
        "array of null": arr({"type": "null"}, 5),
        "fewest": arr(SMALL, 4, minItems=2),
        "exactly three": arr({"type": "boolean"}, 3, minItems=3),
        "one item": arr(WORD, 1, minItems=1),
        "array of arrays": arr(arr(SMALL, 2), 2),
        "array of objects": arr(obj({"k": WORD, "v": SMALL}), 2),
        "prefix": {"type": "array", "prefixItems": [SMALL, WORD], "items": False, "minItems": 2},
        "optional prefix": {
            "type": "array",
            "prefixItems": [SMALL, WORD, {"type": "null"}],
            "items": False,
        },
        "prefix and items": {
            "type": "array",
            "prefixItems": [{"type": "boolean"}],
            "items": SMALL,
            "minItems": 2,
            "maxItems": 4,
        },
        "matrix": arr(arr(SMALL, 2, minItems=2), 2, minItems=2),
        "array of enum": arr({"enum": ["x", "y", "z"]}, 6, minItems=3),
        "array of any of": arr({"anyOf": [SMALL, {"type": "null"}]}, 4),
    },
    "combinations": {
        "any of types": {"anyOf": [SMALL, WORD]},
        "any of objects": {"anyOf": [obj({"a": SMALL}), obj({"b": WORD})]},
        "any of overlapping": {"anyOf": [obj({"a": SMALL}), obj({"a": SMALL, "b": SMALL})]},
        "any of nested": {"anyOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"const": "x"}]},
        "any of with type": {"type": "string", "anyOf": [{"const": "a"}, {"pattern": "^b{1,3}$"}]},
        "nullable": {"anyOf": [obj({"x": SMALL}), {"type": "null"}]},
        "one of types": {"oneOf": [{"type": "boolean"}, {"type": "null"}, SMALL]},
        "one of consts": {"oneOf": [{"const": "a"}, {"const": "b"}]},
        "one of tagged": {
            "oneOf": [
                obj({"kind": {"const": "cat"}, "lives": SMALL}),
                obj({"kind": {"const": "dog"}, "name": WORD}),
            ]
        },
        "one of arrays": {"oneOf": [arr(SMALL, 2, minItems=2), {"type": "string", "maxLength": 4}]},
        "all of ranges": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
        "all of objects": {
            "allOf": [
                {"type": "object", "properties": {"a": SMALL}, "required": ["a"]},
                {"properties": {"b": WORD}, "required": ["b"]},
            ],
            "properties": {"a": True, "b": True, "c": {"type": "null"}},
            "additionalProperties": False,
        },
        "all of patterns": {
            "allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "z$"}],
            "maxLength": 6,
        },
        "all of one": {"allOf": [obj({"a": SMALL})]},
        "all of enum": {"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]},
        "all of multiples": {
            "allOf": [{"type": "integer", "multipleOf": 4}, {"multipleOf": 6}],
            "minimum": 0,
            "maximum": 99,
        },
        "all in any": {
            "anyOf": [
                {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 3}]},
                {"type": "null"},
            ]
        },
        "any in all": {"allOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"type": "integer"}]},
        "any in array in object": obj(
            {"list": arr({"anyOf": [obj({"n": SMALL}), arr(WORD, 1)]}, 2)}
        ),
    },
    "rewritten": {  # keywords that llguidance lacks
        "not a constant": {"type": "string", "maxLength": 4, "not": {"enum": ["", 'a"', "é"]}},
        "not a number": {"type": "integer", "minimum": 0, "maximum": 30, "not": {"const": 7}},
        "not a type": {"type": ["null", "boolean", "string"], "not": {"type": "string"}},
        "not both": obj(
            {"a": SMALL, "b": SMALL}, optional=("a", "b"), **{"not": {"required": ["a", "b"]}}
        ),
        "if and then": obj(
            {"kind": {"enum": ["a", "b"]}, "size": SMALL},
            optional=("size",),
            **{
                "if": {"properties": {"kind": {"const": "a"}}},
                "then": {"required": ["size"]},
                "else": {"properties": {"size": {"maximum": 5}}},
            },
        ),
        "contains": arr(SMALL, 3, contains={"const": 7}),
        "contains few": arr({"type": "boolean"}, 4, contains={"const": True}, maxContains=1),
        "unique": arr({"enum": ["a", "b", "c"]}, 3, uniqueItems=True, minItems=2),
        "unique numbers": arr({"type": "integer", "minimum": 1, "maximum": 4}, 2, uniqueItems=True),
        "names": {
            "type": "object",
            "additionalProperties": SMALL,
            "propertyNames": {"pattern": '^[^"\\\\]{1,3}$'},
            "maxProperties": 2,
        },
        "dependent": obj(
            {"a": SMALL, "b": SMALL, "c": {"type": "null"}},
            optional=("a", "b", "c"),
            dependentRequired={"a": ["b"], "b": ["c"]},
        ),
        "exactly one of": obj(
            {"a": SMALL, "b": SMALL},
            optional=("a", "b"),
            oneOf=[{"required": ["a"]}, {"required": ["b"]}],
        ),
        "one of overlapping": {
            "oneOf": [SMALL, {"type": "integer", "minimum": 90, "maximum": 110}]
        },
        "pattern without quotes": {"type": "string", "pattern": r'^[^"\\/]{1,6}$'},
        "open range": {"type": "number", "exclusiveMinimum": 2, "maximum": 2.55},
        "format": {"type": "string", "format": "password", "maxLength": 5},
        "unevaluated": {
            "type": "object",
            "properties": {"a": SMALL},
            "required": ["a"],
            "unevaluatedProperties": False,
        },
    },
    "references": {
        "ref": {"$defs": {"small": SMALL}, "$ref": "#/$defs/small"},
        "ref in property": {
            **obj({"a": {"$ref": "#/$defs/w"}, "b": {"$ref": "#/$defs/w"}}),
            "$defs": {"w": WORD},
        },
        "definitions": {**obj({"a": {"$ref": "#/definitions/w"}}), "definitions": {"w": WORD}},
        "ref of ref": {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": SMALL},
            "$ref": "#/$defs/a",
        },
        "ref to property": obj({"a": SMALL, "b": {"$ref": "#/properties/a"}}),
        "ref with siblings": {
            "$defs": {"n": {"type": "integer", "minimum": 2}},
            "$ref": "#/$defs/n",
            "maximum": 5,
        },
        "ref with escapes": {
            "$defs": {"a/b": SMALL, "c~d": WORD},
            "anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}],
        },
        "ref in items": {
            "$defs": {"p": obj({"x": SMALL, "y": SMALL})},
            **arr({"$ref": "#/$defs/p"}, 2),
        },
        "anchor": {"$defs": {"s": {"$anchor": "small", **SMALL}}, **arr({"$ref": "#small"}, 2)},
        "id": {
            "$id": "https://example.com/s",
            "$defs": {"w": WORD},
            **arr({"$ref": "#/$defs/w"}, 2),
        },
        "refs in any of": {
            "$defs": {"a": obj({"a": SMALL}), "b": obj({"b": WORD})},
            "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        },
        "list": {
            "$defs": {
                "list": obj(
                    {"v": SMALL, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}}
                )
            },
            "$ref": "#/$defs/list",
        },
        "tree": {
            "$defs": {
                "tree": obj(
                    {
                        "v": {"type": ["null", "boolean"]},
                        "in": {"anyOf": [SMALL, arr({"$ref": "#/$defs/tree"}, 2)]},
                    }
                )
            },
            "$ref": "#/$defs/tree",
        },
        "self": {**obj({"n": SMALL, "me": {"$ref": "#"}}, optional=("me",))},
        "mutual": {
            "$defs": {
                "a": obj({"b": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}}),
                "b": obj({"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}),
            },
            "$ref": "#/$defs/a",
        },
        "expression": {
            "$defs": {
                "e": {
                    "anyOf": [
                        SMALL,
                        obj({"op": {"enum": ["+", "-"]}, "l": SMALL, "r": {"$ref": "#/$defs/e"}}),
                    ]
                }
            },
            "$ref": "#/$defs/e",
        },
    },
    "depth": {
        "deep 5": nested(5, SMALL),
        "deep 20": nested(20, {"type": "null"}),
        "deep arrays": arr(arr(arr(arr(arr(SMALL, 1), 1), 1), 1), 1),
        "deep any of": {"anyOf": [nested(3, WORD), nested(4, SMALL), nested(5, {"type": "null"})]},
    },
    "annotations": {  # that say nothing about the document
        "annotations": {
            **obj(
                {
                    "a": {
                        **SMALL,
                        "title": "A",
                        "description": 'with "quotes" and \\',
                        "default": 3,
                        "examples": [1],
                    }
                }
            ),
            "title": "T",
            "$comment": "c",
            "deprecated": True,
            "readOnly": True,
        },
        "draft 7": {"$schema": "http://json-schema.org/draft-07/schema#", **obj({"a": SMALL})},
        "draft 2020": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **obj({"a": SMALL}),
        },
        "x-guidance": {
            "x-guidance": {"whitespace_flexible": False},
            **obj({"a": SMALL, "b": SMALL}),
        },
    },
    "programs": {  # as programs write them
        "function call": obj(
            {
                "name": {"const": "get_weather"},
                "arguments": obj({"city": WORD, "unit": {"enum": ["C", "F"]}}),
            }
        ),
        "function calls": arr(
            {
                "anyOf": [
                    obj({"name": {"const": "add"}, "arguments": obj({"a": SMALL, "b": SMALL})}),
                    obj({"name": {"const": "stop"}, "arguments": obj()}),
                ]
            },
            2,
            minItems=1,
        ),
        "pydantic": {
            "$defs": {
                "Address": {
                    "properties": {
                        "street": {"title": "Street", **WORD},
                        "zip": {"type": "string", "pattern": r"^\d{5}$"},
                    },
                    "required": ["street", "zip"],
                    "title": "Address",
                    "type": "object",
                    "additionalProperties": False,
                },
                "Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"},
            },
            "properties": {
                "name": {"title": "Name", **WORD},
                "address": {"$ref": "#/$defs/Address"},
                "color": {"allOf": [{"$ref": "#/$defs/Color"}], "default": "red"},
                "nick": {"anyOf": [WORD, {"type": "null"}], "default": None},
            },
            "required": ["name", "address"],
            "title": "Person",
            "type": "object",
            "additionalProperties": False,
        },
        "invoice": obj(
            {
                "number": {"type": "string", "pattern": "^INV-[0-9]{4}$"},
                "date": {"type": "string", "format": "date"},
                "lines": arr(
                    obj(
                        {
                            "text": WORD,
                            "amount": {
                                "type": "number",
                                "minimum": 0,
                                "maximum": 1000,
                                "multipleOf": 0.25,
                            },
                        }
                    ),
                    2,
                    minItems=1,
                ),
                "paid": {"type": "boolean"},
            }
        ),
        "classification": obj(
            {
                "label": {"enum": ["spam", "ham"]},
                "score": {"type": "number", "minimum": 0, "maximum": 1},
            }
        ),
        "rating": obj(
            {
                "stars": {"type": "integer", "minimum": 1, "maximum": 5},
                "text": {"type": "string", "maxLength": 30},
            }
        ),
        "coordinates": obj(
            {
                "lat": {"type": "number", "minimum": -90, "maximum": 90},
                "lon": {"type": "number", "minimum": -180, "maximum": 180},
            }
        ),
        "steps": obj(
            {
                "steps": arr(obj({"say": WORD, "do": {"enum": ["up", "down"]}}), 3, minItems=1),
                "answer": SMALL,
            }
        ),
        "geometry": {
            "oneOf": [
                obj({"type": {"const": "Point"}, "at": arr(SMALL, 2, minItems=2)}),
                obj(
                    {"type": {"const": "Line"}, "at": arr(arr(SMALL, 2, minItems=2), 2, minItems=2)}
                ),
            ]
        },
    },
}
SCHEMAS = {name: schema for group in GROUPS.values() for name, schema in group.items()}

# Schema -> what the error says: the place and the keyword.
REFUSED: list[tuple[Any, str]] = [
    ({"type": "array", "contains": SMALL}, "#: .*contains"),
    ({"type": "array", "contains": {}, "minContains": 2}, "#: .*minContains"),
    ({"contains": SMALL, "maxItems": 9, "maxContains": 1}, "#: .*maxContains"),
    ({"type": "string", "not": {"pattern": "a"}}, "#: .*not"),
    ({"type": "number", "not": {"type": "integer"}}, "#: .*not"),
    ({"not": {"items": SMALL}}, "#: .*not"),
    ({"not": {"const": {"a": 1}}}, "#: .*not"),
    ({"if": {"pattern": "a"}, "then": {"const": 1}}, "#: .*if.*then"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "#: .*dependencies"),
    ({"propertyNames": {"format": "email"}}, "#: .*propertyNames"),
    ({"propertyNames": {"anyOf": [{"maxLength": 2}]}}, "#: .*propertyNames"),
    ({"unevaluatedProperties": False, "anyOf": [obj()]}, "#: .*unevaluatedProperties"),
    ({"unevaluatedItems": False, "allOf": [arr({})]}, "#: .*unevaluatedItems"),
    ({"$dynamicRef": "#x"}, r"#: .*\$dynamicRef"),
    (obj({"a": arr({"not": {"pattern": "a"}})}), "#/properties/a/items: .*not"),
    (
        {"anyOf": [SMALL, obj({"x": {"contains": SMALL}})]},
        "#/anyOf/1/properties/x: .*contains",
    ),
    ({"$defs": {"d": {"not": {"pattern": "a"}}}, "$ref": "#/$defs/d"}, r"#/\$defs/d: .*not"),
    (
        {"patternProperties": {"^a": {"not": {"pattern": "a"}}}},
        r"#/patternProperties/\^a: .*not",
    ),
    ({"patternProperties": {'^[^"]$': SMALL}}, r"#: .*\[\^\"\].*additionalProperties: false"),
    (obj({"f": {"type": "string", "pattern": "(?=a)b"}}), "#/properties/f: .*look-around"),
    ({"type": "string", "pattern": r"(a)\1"}, "#: .*backreferences"),
    ({"type": "string", "pattern": r"\bx"}, r"#: .*\\\\bx.*word boundary"),
    ({"type": "strin"}, "#: .*strin"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "#: .*5.*3"),
    ({"$ref": "#/$defs/nowhere"}, "#: .*nowhere"),
    ({"$ref": "https://example.com/other"}, "#: .*example.com/other"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#: .*oneOf"),
    ({"items": {"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}}, "#/items: .*oneOf"),
    (False, "#: .*false"),
    ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "#: .*circular"),
]
