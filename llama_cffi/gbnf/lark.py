"""Conversion of GBNF to llguidance's variant of Lark, matching the same strings."""

from __future__ import annotations

from collections.abc import Mapping

from .expressions import Alt, Lexeme, Node, Ref, Repeat, Seq, Token, build, inner
from .lexemes import cut
from .normal import normalize
from .parser import Chars, parse

__all__ = ["check", "to_lark"]

_MAX_DEPTH = 20  # nested parentheses; llguidance's limit is 30


def to_lark(text: str, root: str = "root", tokens: Mapping[str, int] | None = None) -> str:
    """Convert GBNF to an llguidance grammar that matches the same strings.

    Strings are valid UTF-8 without NUL, as in C. Control tokens, which C accepts in place of their
    names anywhere, are accepted only where a literal spells the name.

    Args:
        text: GBNF source.
        root: Name of the start rule.
        tokens: Ids of control tokens by name.

    Returns:
        The grammar in llguidance's variant of Lark.

    Raises:
        GrammarError: The grammar does not parse, exceeds what llama.cpp's engine can handle, or
            matches no finite string.
        ValidationError: *text* or *root* is not a str.
    """
    nodes, index = _expressions(text, root, tokens or {})
    return _Writer(cut(nodes, index), index).text()


def check(text: str, root: str = "root") -> None:
    """Validate a grammar without converting it; raises the same errors as `to_lark`."""
    _expressions(text, root, {})


def _expressions(text: str, root: str, tokens: Mapping[str, int]) -> tuple[dict[int, Node], int]:
    rules, index = parse(text, root)
    normalize(text, rules, index)
    return build(text, rules, index, tokens), index


class _Writer:
    """Serializes rules and numbers their lexemes."""

    def __init__(self, nodes: Mapping[int, Node], root: int) -> None:
        self._nodes, self._root = nodes, root
        self._lexemes: dict[str, str] = {}
        self._groups: list[str] = []

    def text(self) -> str:
        """Return the grammar in Lark notation."""
        rules = [f"{self._name(index)}: {self._rule(node)}" for index, node in self._nodes.items()]
        lexemes = [f"{name}: /{pattern}/" for pattern, name in self._lexemes.items()]
        return "\n".join([*rules, *self._groups, *lexemes, ""])

    def _name(self, index: int) -> str:
        return "start" if index == self._root else f"r{index}"

    def _rule(self, node: Node, depth: int = 0) -> str:
        if depth == _MAX_DEPTH and inner(node):
            rule = self._rule(node)
            self._groups.append(f"g{len(self._groups)}: {rule}")
            return f"g{len(self._groups) - 1}"
        parts = [self._rule(part, depth + 1) for part in inner(node)]
        if isinstance(node, Lexeme):
            pattern = _pattern(node.node)
            return self._lexemes.setdefault(pattern, f"L{len(self._lexemes)}")
        if isinstance(node, Seq):
            return " ".join(parts) or '""'
        if isinstance(node, Alt):
            return f"({' | '.join(parts)})"
        if isinstance(node, Repeat):
            return f"({parts[0]}){_times(node)}"
        if isinstance(node, Ref):
            return self._name(node.rule)
        assert isinstance(node, Token)
        return f"<[{node.id}]>"


def _pattern(node: Node) -> str:
    """Return *node* as a regular expression."""
    if isinstance(node, Seq):
        return "".join(map(_pattern, node.items))
    if isinstance(node, Alt):
        return f"(?:{'|'.join(map(_pattern, node.ways))})"
    if isinstance(node, Repeat):
        return f"(?:{_pattern(node.item)}){_times(node)}"
    assert isinstance(node, Chars)
    (low, high), *others = node.ranges
    if low == high and not others:
        return _escape(low)
    ranges = (_escape(a) + (f"-{_escape(b)}" if b > a else "") for a, b in node.ranges)
    return f"[{''.join(ranges)}]"


def _times(node: Repeat) -> str:
    short = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((node.low, node.high))
    return short or f"{{{node.low},{'' if node.high is None else node.high}}}"


def _escape(c: int) -> str:
    return chr(c) if c < 128 and chr(c).isalnum() else f"\\x{{{c:x}}}"
