"""Parse C declarations with pycparser, and print them again with `Renderer`.

Declarations only: no function bodies, no initialisers. Constant expressions are folded to
integers, so two trees with the same layout print the same.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ValidationError

__all__ = ["SCALARS", "Renderer", "c_ast", "fold", "parse"]

# pycparser has no type hints; only this module imports it.
c_ast: Any = importlib.import_module("pycparser.c_ast")
_c_parser: Any = importlib.import_module("pycparser.c_parser")

# Scalar types that declarations may use and cffi knows by name, with their size in bytes on every
# 64-bit platform. `long` is left out on purpose: it has 4 bytes on Windows and 8 elsewhere.
SCALARS: Mapping[str, int] = {
    "_Bool": 1, "bool": 1, "char": 1, "signed char": 1, "unsigned char": 1,
    "short": 2, "unsigned short": 2, "int": 4, "unsigned": 4, "unsigned int": 4,
    "long long": 8, "unsigned long long": 8, "float": 4, "double": 8,
    "int8_t": 1, "uint8_t": 1, "int16_t": 2, "uint16_t": 2, "int32_t": 4, "uint32_t": 4,
    "int64_t": 8, "uint64_t": 8, "size_t": 8, "ptrdiff_t": 8, "intptr_t": 8, "uintptr_t": 8,
}  # fmt: skip

# pycparser has to know which names are types, not which types they are.
_PRELUDE = "".join(
    f"typedef int {name};"
    for name in (*SCALARS, "FILE", "va_list")
    if re.search("_t|^bool|^[FV]|va", name)
)


def parse(text: str, filename: str = "<declarations>", typedefs: Iterable[str] = ()) -> Any:
    """Parse preprocessed C, with `#line` markers, into a tree.

    Args:
        text: Preprocessed C, or what `generate` returns; its comments and constants are skipped,
            as pycparser does not accept them.
        filename: File name for messages, until the first `#line`.
        typedefs: Further names of types.

    Raises:
        ValidationError: pycparser cannot parse *text*; the message gives file and line.
    """
    text = re.sub(r"(?m)^(?://|#define\b).*$", "", text)
    prelude = _PRELUDE + "".join(f"typedef int {name};" for name in typedefs)
    source = f'#line 1 "<prelude>"\n{prelude}\n#line 1 "{filename}"\n{text}'
    parser = _c_parser.CParser()
    try:
        tree: Any = parser.parse(source, filename)
    except Exception as e:  # ParseError moved between pycparser releases; the lexer raises others
        message = f"cannot parse the C declarations: {e}"
        if not re.search(r":\d+:", message):
            # Some messages of pycparser 3 have no line number; its lexer is just past the place.
            lexer = parser.clex
            line = getattr(lexer, "_lineno", None) or getattr(lexer, "lineno", "?")
            message += f" (near {lexer.filename}:{line})"
        raise ValidationError(message) from e
    tree.ext = [node for node in tree.ext if node.coord is None or node.coord.file != "<prelude>"]
    return tree


def fold(node: Any, constants: Mapping[str, int]) -> int:
    """Evaluate an integer constant expression.

    Args:
        node: The expression.
        constants: Values of the enumerators seen so far.

    Raises:
        ValidationError: The expression contains something that has no known value.
    """
    if isinstance(node, c_ast.Constant):
        if node.type == "char" and len(node.value) == 3:
            return ord(node.value[1])
        digits = node.value.rstrip("uUlL")
        octal = digits.isdigit() and len(digits) > 1 and digits[0] == "0"
        if "int" in node.type:
            return int(digits, 8 if octal else 0)
    elif isinstance(node, c_ast.ID) and node.name in constants:
        return constants[node.name]
    elif isinstance(node, c_ast.UnaryOp):
        if node.op == "sizeof":
            return _sizeof(node.expr)
        value = fold(node.expr, constants)
        if node.op in "+-~":
            return {"+": value, "-": -value, "~": ~value}[node.op]
    elif isinstance(node, c_ast.BinaryOp):
        left, right = fold(node.left, constants), fold(node.right, constants)
        match node.op:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/" if right:
                return left // right if (left < 0) == (right < 0) else -(-left // right)
            case "%" if right and left >= 0 and right > 0:
                return left % right
            case "<<":
                return left << right
            case ">>":
                return left >> right
            case "|":
                return left | right
            case "&":
                return left & right
            case "^":
                return left ^ right
    raise ValidationError(f"{node.coord}: this constant expression cannot be evaluated")


def _sizeof(node: Any) -> int:
    kind: Any = getattr(getattr(node, "type", None), "type", None)
    if isinstance(node, c_ast.Typename) and isinstance(node.type, c_ast.PtrDecl):
        return 8
    if isinstance(kind, c_ast.IdentifierType) and " ".join(kind.names) in SCALARS:
        return SCALARS[" ".join(kind.names)]
    # pycparser 2 gives a type name line 0, but the type inside it the right one.
    coord = kind.coord if kind is not None and kind.coord else node.coord
    raise ValidationError(f"{coord}: sizeof of a type that is not scalar")


class Renderer:
    """Prints declarations one per line, and structs and enums one member per line.

    Attributes:
        constants: Value of every enumerator printed so far.
        tags: Keyword of each tag that the source uses without it: `{"ggml_tensor": "struct"}`.
    """

    def __init__(self, tags: Mapping[str, str] | None = None) -> None:
        self.constants: dict[str, int] = {}
        self.tags = tags or {}

    def declaration(self, node: Any) -> str:
        """Return one declaration or typedef with its semicolon, without linkage and specifiers."""
        prefix = "typedef " if isinstance(node, c_ast.Typedef) else ""
        return f"{prefix}{self.typed(node.type, node.name or '')};"

    def typed(self, node: Any, inner: str, indent: str = "") -> str:
        """Return the declarator *inner* with the type *node* around it, in C syntax."""
        if isinstance(node, c_ast.PtrDecl):
            quals = "".join(f" {q}" for q in node.quals if q == "const")
            star = f"*{quals.strip()}{' ' if quals and inner else ''}{inner}"
            wrap = isinstance(node.type, (c_ast.FuncDecl, c_ast.ArrayDecl))
            return self.typed(node.type, f"({star})" if wrap else star, indent)
        if isinstance(node, c_ast.ArrayDecl):
            size = "" if node.dim is None else str(fold(node.dim, self.constants))
            return self.typed(node.type, f"{inner}[{size}]", indent)
        if isinstance(node, c_ast.FuncDecl):
            return self.typed(node.type, f"{inner}({self.parameters(node)})", indent)
        if isinstance(node, (c_ast.TypeDecl, c_ast.Typename)):
            quals = "".join(f"{q} " for q in node.quals if q == "const")
            return f"{quals}{self._base(node.type, indent)} {inner}".rstrip()
        return f"{self._base(node, indent)} {inner}".rstrip()

    def parameters(self, node: Any) -> str:
        """Return the parameter list of a function; `void` if it has no parameters."""
        if node.args is None:
            return "void"
        return ", ".join(
            "..." if isinstance(p, c_ast.EllipsisParam) else self.typed(p.type, p.name or "")
            for p in node.args.params
        )

    def _base(self, node: Any, indent: str) -> str:
        if isinstance(node, c_ast.IdentifierType):
            name = " ".join(node.names)
            return f"{self.tags[name]} {name}" if name in self.tags else name
        if isinstance(node, c_ast.Enum):
            head = f"enum {node.name}" if node.name else "enum"
            return head + (self._enumerators(node.values, indent) if node.values else "")
        if isinstance(node, (c_ast.Struct, c_ast.Union)):
            word = "struct" if isinstance(node, c_ast.Struct) else "union"
            head = f"{word} {node.name}" if node.name else word
            return head + (self._members(node.decls, indent) if node.decls is not None else "")
        raise ValidationError(f"{node.coord}: unsupported {type(node).__name__} in a declaration")

    def _members(self, members: Iterable[Any], indent: str) -> str:
        deeper = indent + "    "
        lines = []
        for member in members:
            if getattr(member, "bitsize", None) is not None:
                # Their layout depends on the compiler; no upstream header has one.
                raise ValidationError(f"{member.coord}: bit-fields have no portable layout")
            lines.append(f"{deeper}{self.typed(member.type, member.name or '', deeper)};\n")
        return " {\n" + "".join(lines) + indent + "}"

    def _enumerators(self, values: Any, indent: str) -> str:
        lines = []
        value = -1
        for item in values.enumerators:
            value = value + 1 if item.value is None else fold(item.value, self.constants)
            self.constants[item.name] = value
            lines.append(f"{indent}    {item.name} = {value},\n")
        return " {\n" + "".join(lines) + indent + "}"
