"""Compare two sets of declarations deeply: does code bound to one work on a build of the other?

Two functions are the same if their whole types are: arguments and result, and every struct, union
and enum reachable from them, by value or through pointers, with names, order and types of the
members. Spelling is ignored (`int` and `int32_t`, typedefs, `const`, parameter names).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from .parsing import SCALARS, Renderer, c_ast, fold, parse

__all__ = ["Difference", "differences"]

Kind = Literal["missing", "signature", "struct", "enum", "enum-added"]

# Spellings of the same machine type on every 64-bit platform. `char` is left out: it is text.
_SAME = {
    "bool": "_Bool",
    "signed char": "int8_t",
    "unsigned char": "uint8_t",
    "short": "int16_t",
    "unsigned short": "uint16_t",
    "int": "int32_t",
    "unsigned": "uint32_t",
    "unsigned int": "uint32_t",
    "long long": "int64_t",
    "unsigned long long": "uint64_t",
    "size_t": "uint64_t",
    "uintptr_t": "uint64_t",
    "ptrdiff_t": "int64_t",
    "intptr_t": "int64_t",
}


class Difference(NamedTuple):
    """A reason why a function of the first set differs in the second.

    Attributes:
        function: The function.
        kind: `missing`: the second set has no such function. `signature`: other arguments or
            result. `struct`: a reachable struct or union has other members. `enum`: a value changed
            or was removed. `enum-added`: only new names, and the counters `*_COUNT` and
            `*_MAX_VALUE` that grow with them.
        where: The struct, union or enum, such as `struct ggml_tensor`; empty for the function.
        detail: The difference, first -> second.
    """

    function: str
    kind: Kind
    where: str
    detail: str


def differences(a: str, b: str, *, mtmd: bool = True) -> list[Difference]:
    """Return every difference that matters to code bound to *a* on a build with *b*.

    Functions that only *b* has do not matter.

    Args:
        a: Declarations, as `llama_cffi.cdefs.declarations` returns them.
        b: Declarations of the other build.
        mtmd: Whether to compare mtmd_* as well.

    Raises:
        ValidationError: *a* or *b* is not what the generator writes.
    """
    ours, theirs = _shapes(a), _shapes(b)
    found = []
    verdicts: dict[str, tuple[Kind, str] | None] = {}
    for name in sorted(ours.functions):
        if not mtmd and name.startswith("mtmd_"):
            continue
        signature, _ = ours.functions[name]
        if name not in theirs.functions:
            found.append(Difference(name, "missing", "", "not declared"))
            continue
        other, _ = theirs.functions[name]
        if signature != other:
            found.append(Difference(name, "signature", "", f"{signature} -> {other}"))
            continue
        for tag in sorted(ours.reachable(name)):
            if tag not in verdicts:
                verdicts[tag] = _compare_tag(tag, ours, theirs)
            if (verdict := verdicts[tag]) is not None:
                found.append(Difference(name, verdict[0], tag, verdict[1]))
    return found


def _compare_tag(tag: str, ours: _Shapes, theirs: _Shapes) -> tuple[Kind, str] | None:
    if tag.startswith("enum "):
        return _compare_enum(ours.enums.get(tag, {}), theirs.enums.get(tag, {}))
    mine, other = ours.structs.get(tag), theirs.structs.get(tag)
    if mine is None or other is None or mine[0] == other[0]:
        if (mine is None) != (other is None):
            return "struct", "complete in one, opaque in the other"
        return None
    i = next((i for i, (x, y) in enumerate(zip(mine[0], other[0], strict=False)) if x != y), None)
    i = min(len(mine[0]), len(other[0])) if i is None else i
    x, y = ("; ".join(members[i : i + 1]) or "the end" for members in (mine[0], other[0]))
    return "struct", f"member {i}: {x} -> {y} ({len(mine[0])} -> {len(other[0])} members)"


def _compare_enum(mine: dict[str, int], other: dict[str, int]) -> tuple[Kind, str] | None:
    if mine == other:
        return None
    changed = {
        name: (value, other.get(name))
        for name, value in mine.items()
        if other.get(name) != value and not name.endswith(("_COUNT", "_MAX_VALUE"))
    }
    if changed:
        name, (x, y) = next(iter(changed.items()))
        return "enum", f"{name}: {x} -> {'removed' if y is None else y} ({len(changed)} changed)"
    return "enum-added", f"{len(mine)} -> {len(other)} names"


class _Shapes:
    """The types of one set of declarations in canonical spelling.

    Attributes:
        functions: Signature of each function, and the tags in it.
        structs: Members of each complete struct or union, and the tags in them.
        enums: Values of each enum.
    """

    def __init__(self, text: str) -> None:
        self.functions: dict[str, tuple[str, frozenset[str]]] = {}
        self.structs: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {}
        self.enums: dict[str, dict[str, int]] = {}
        self._typedefs: dict[str, Any] = {}
        self._renderer = Renderer()
        tree: Any = parse(text)
        for node in tree.ext:
            self._renderer.declaration(node)  # for its enumerators, which have to come in order
            if isinstance(node, c_ast.Typedef):
                self._typedefs[node.name] = node.type
        for node in tree.ext:
            tags: set[str] = set()
            shape = self._type(node.type, tags)
            if isinstance(node.type, c_ast.FuncDecl):
                self.functions[node.name] = (shape, frozenset(tags))

    def reachable(self, function: str) -> set[str]:
        """Return every tag reachable from the function's type."""
        found: set[str] = set()
        todo = list(self.functions[function][1])
        while todo:
            tag = todo.pop()
            if tag not in found:
                found.add(tag)
                todo += self.structs[tag][1] if tag in self.structs else ()
        return found

    def _type(self, node: Any, tags: set[str]) -> str:
        """Return the canonical spelling of a type and add the tags in it to *tags*."""
        if isinstance(node, c_ast.PtrDecl):
            return f"*{self._type(node.type, tags)}"
        if isinstance(node, c_ast.ArrayDecl):
            size = "" if node.dim is None else fold(node.dim, self._renderer.constants)
            return f"[{size}]{self._type(node.type, tags)}"
        if isinstance(node, c_ast.FuncDecl):
            arguments = ", ".join(self._arguments(node, tags))
            return f"({arguments}) {self._type(node.type, tags)}"
        if isinstance(node, (c_ast.TypeDecl, c_ast.Typename)):
            return self._type(node.type, tags)
        if isinstance(node, c_ast.IdentifierType):
            name = " ".join(node.names)
            if name in self._typedefs:
                return self._type(self._typedefs[name], tags)
            return _SAME.get(name, name) if name in SCALARS else name
        return self._tagged(node, tags)

    def _arguments(self, node: Any, tags: set[str]) -> Iterator[str]:
        for parameter in node.args.params if node.args is not None else ():
            if isinstance(parameter, c_ast.EllipsisParam):
                yield "..."
            elif (kind := self._type(parameter.type, tags)) != "void":
                # An array parameter is a pointer in C.
                yield "*" + kind.partition("]")[2] if kind.startswith("[") else kind

    def _tagged(self, node: Any, tags: set[str]) -> str:
        word = type(node).__name__.lower()
        tag = f"{word} {node.name}"
        if isinstance(node, c_ast.Enum):
            values = {
                e.name: self._renderer.constants[e.name]
                for e in (node.values.enumerators if node.values else ())
            }
            if node.name is None:
                return f"enum {values}"
            if values:
                self.enums[tag] = values
        else:
            inside: set[str] = set()
            members = None
            if node.decls is not None:
                members = tuple(f"{m.name} {self._type(m.type, inside)}" for m in node.decls)
            if node.name is None:
                tags |= inside
                return f"{word} {{{'; '.join(members or ())}}}"
            if members is not None:
                self.structs[tag] = (members, frozenset(inside))
        tags.add(tag)
        return tag


@lru_cache(maxsize=64)
def _shapes(text: str) -> _Shapes:
    return _Shapes(text)
