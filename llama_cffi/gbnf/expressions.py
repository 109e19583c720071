"""Grammar rules as expressions, with right recursion turned into loops.

An Earley parser keeps an item for every step of a right recursion (`list ::= "a" list | "b"`), so
right-recursive rules become repetitions. Rules without recursion are then inlined: the result is a
regular expression, which a lexer can match.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .normal import closure
from .parser import Chars, Item, Rule, explain

__all__ = [
    "Alt",
    "Lexeme",
    "Node",
    "Ref",
    "Repeat",
    "Seq",
    "Token",
    "alt",
    "build",
    "inner",
    "is_regular",
    "replaced",
    "seq",
]

_MAX_SIZE = 4_000  # nodes of a rule that is inlined
_MAX_DEPTH = 60
_MAX_TAIL = 16  # rules that end with one another
_MAX_TOTAL = 100_000  # nodes of all rules together
_NEVER = [(0, 0), (0xD800, 0xDFFF), (0x110000, 0x110000)]  # C strings end at a NUL


@dataclass(frozen=True, eq=False)
class Seq:
    """Concatenation of expressions; the empty string if there are none."""

    items: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Alt:
    """Choice between expressions."""

    ways: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """Repetition, *low* to *high* times; None: unbounded."""

    item: Node
    low: int
    high: int | None


@dataclass(frozen=True)
class Ref:
    """Reference to a rule by its index."""

    rule: int


@dataclass(frozen=True)
class Token:
    """Control token by its id."""

    id: int


@dataclass(frozen=True, eq=False)
class Lexeme:
    """Expression without `Ref` and `Token` that the lexer matches as a whole."""

    node: Node


Node = Seq | Alt | Repeat | Ref | Token | Lexeme | Chars


def seq(items: Iterable[Node]) -> Node:
    """Concatenate expressions."""
    flat: list[Node] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Seq) else [item])
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def alt(ways: Iterable[Node]) -> Node:
    """Build the choice between expressions, without duplicates."""
    flat: dict[Node, None] = {}
    for way in ways:
        flat.update(dict.fromkeys(way.ways if isinstance(way, Alt) else [way]))
    return next(iter(flat)) if len(flat) == 1 else Alt(tuple(flat))


def build(text: str, rules: list[Rule], root: int, tokens: Mapping[str, int]) -> dict[int, Node]:
    """Return the expressions of *root*, which comes first, and of all rules reachable from it.

    Args:
        text: Source of the grammar, for error messages.
        rules: Rules without left recursion.
        root: Index of the root rule.
        tokens: Ids of control tokens by name. A literal that spells a name also matches the token.

    Raises:
        GrammarError: No finite string matches the grammar.
    """
    productive = closure(rules, every=True, counts=_is_possible)
    if root not in productive:
        what = f"no finite string matches {rules[root].name!r}; add an alternative that ends"
        raise explain(text, rules[root].at, what)
    reader = _Reader(rules, productive, tokens)
    ends = {index: reader.ends(index) for index in sorted(productive)}
    for group in components({i: [t for t in e if t is not None] for i, e in ends.items()}):
        if len(group) <= _MAX_TAIL:  # a single rule may end with itself
            _solve(group, ends)
    nodes = {index: alt(_joined(ways)) for index, ways in ends.items()}
    return _inlined(nodes, root)


class _Reader:
    """Converts rules into expressions grouped by the rule that they end with."""

    def __init__(self, rules: list[Rule], productive: set[int], tokens: Mapping[str, int]) -> None:
        self._rules, self._productive = rules, productive
        self._tokens = {tuple(map(ord, name)): id_ for name, id_ in tokens.items() if name}
        self._longest = max(map(len, self._tokens), default=0)

    def ends(self, index: int) -> dict[int | None, Node]:
        """Return the alternatives of rule *index* by the rule that ends them, without that rule."""
        rule = self._rules[index]
        if rule.repeat is None:
            ways: Sequence[Sequence[Item]] = rule.alternatives
        else:
            item, low, high = rule.repeat
            if not self._matches(item):
                return {None: Seq(())}
            if (low, high) != (0, 1):
                return {None: Repeat(self._node(item), low, high)}
            ways = [[item], []]
        found: dict[int | None, list[Node]] = {}
        for way in ways:
            if all(map(self._matches, way)):
                last = way[-1] if way and isinstance(way[-1], int) else None
                items = way if last is None else way[:-1]
                found.setdefault(last, []).append(seq(self._sequence(items)))
        return {last: alt(nodes) for last, nodes in found.items()}

    def _matches(self, item: Item) -> bool:
        if isinstance(item, int):
            return item in self._productive
        return _is_possible(item)

    def _node(self, item: Item) -> Node:
        return Ref(item) if isinstance(item, int) else _positive(item)

    def _sequence(self, items: Sequence[Item]) -> Iterator[Node]:
        """Yield the expressions of *items*, with the control tokens that they spell."""
        at = 0
        codes = tuple(_only(item) for item in items)
        while at < len(items):
            ends = range(min(at + self._longest, len(items)), at, -1)
            end = next((end for end in ends if codes[at:end] in self._tokens), None)
            if end is None:
                yield self._node(items[at])
                at += 1
            else:
                yield Alt((seq(map(self._node, items[at:end])), Token(self._tokens[codes[at:end]])))
                at = end


def _solve(group: list[int], ends: dict[int, dict[int | None, Node]]) -> None:
    """Turn mutually right-recursive rules into loops by Gaussian elimination.

    `a ::= x a | y` is `x* y`, which then replaces `a` at the end of the other rules.
    """
    solved = {index: dict(ends[index]) for index in group}
    for index in group:
        loop = solved[index].pop(index, None)
        if loop is not None:
            head = Repeat(loop, 0, None)
            solved[index] = {last: seq([head, node]) for last, node in solved[index].items()}
        for other in solved.values():
            if index in other:
                before = other.pop(index)
                for last, node in solved[index].items():
                    known = [other[last]] if last in other else []
                    other[last] = alt([*known, seq([before, node])])
    sizes: dict[Node, tuple[int, int]] = {}
    if all(_fits(node, sizes) for ways in solved.values() for node in ways.values()):
        ends.update(solved)


def _joined(ends: Mapping[int | None, Node]) -> Iterator[Node]:
    for last, node in ends.items():
        yield node if last is None else seq([node, Ref(last)])


def _inlined(nodes: dict[int, Node], root: int) -> dict[int, Node]:
    """Inline regular rules and drop the rules that are no longer used."""
    found: dict[int, Node] = {}
    regular: dict[int, Node] = {}
    sizes: dict[Node, tuple[int, int]] = {}
    left = _MAX_TOTAL
    for group in components({index: list(_refs(node)) for index, node in nodes.items()}):
        for index in group:
            node = _with(nodes[index], regular)
            if not _fits(node, sizes) or _measure(node, sizes)[0] > left:
                node = nodes[index]
            left -= _measure(node, sizes)[0]
            found[index] = node
            if is_regular(node) and _fits(node, sizes):
                regular[index] = node
    used, todo = {root: found[root]}, [root]
    while todo:
        for ref in _refs(used[todo.pop()]):
            if ref not in used:
                used[ref] = found[ref]
                todo.append(ref)
    return used


def inner(node: Node) -> tuple[Node, ...]:
    """Return the direct children of *node*."""
    if isinstance(node, Seq):
        return node.items
    if isinstance(node, Alt):
        return node.ways
    return (node.item,) if isinstance(node, Repeat) else ()


def replaced(node: Node, parts: Iterable[Node]) -> Node:
    """Return *node* with its direct children replaced."""
    if isinstance(node, Seq):
        return seq(parts)
    if isinstance(node, Alt):
        return alt(parts)
    if isinstance(node, Repeat):
        (item,) = parts
        return Repeat(item, node.low, node.high)
    return node


def is_regular(node: Node) -> bool:
    """Whether *node* contains neither a rule nor a token."""
    return not isinstance(node, (Ref, Token)) and all(map(is_regular, inner(node)))


def _refs(node: Node) -> Iterator[int]:
    if isinstance(node, Ref):
        yield node.rule
    for part in inner(node):
        yield from _refs(part)


def _with(node: Node, known: Mapping[int, Node]) -> Node:
    """Replace references by the *known* expressions."""
    if isinstance(node, Ref):
        return known.get(node.rule, node)
    return replaced(node, [_with(part, known) for part in inner(node)])


def _measure(node: Node, known: dict[Node, tuple[int, int]]) -> tuple[int, int]:
    """Return the size and depth of *node*, whose subexpressions may be shared."""
    if node not in known:
        parts = [_measure(part, known) for part in inner(node)]
        size = 1 + sum(size for size, _ in parts)
        known[node] = size, 1 + max((depth for _, depth in parts), default=0)
    return known[node]


def _fits(node: Node, known: dict[Node, tuple[int, int]]) -> bool:
    size, depth = _measure(node, known)
    return size <= _MAX_SIZE and depth <= _MAX_DEPTH


@functools.lru_cache(4096)
def _positive(chars: Chars) -> Chars:
    """Return the characters of a class that can occur in UTF-8 text, as sorted ranges."""
    found: list[tuple[int, int]] = []
    given = [*_NEVER, *chars.ranges] if chars.negated else _NEVER
    at = 0
    for low, high in sorted(given):  # the gaps between them
        found += [(at, low - 1)] if at < low else []
        at = max(at, high + 1)
    if chars.negated:
        return Chars(tuple(found))
    cut = sorted((max(a, low), min(b, high)) for a, b in chars.ranges for low, high in found)
    return Chars(_merged((low, high) for low, high in cut if low <= high))


def _is_possible(chars: Chars) -> bool:
    return bool(_positive(chars).ranges)


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for low, high in ranges:
        if found and low <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return tuple(found)


def _only(item: Item) -> int:
    """Return the single character that *item* matches; -1 if it is not a single character."""
    if isinstance(item, int) or item.negated or len(item.ranges) != 1:
        return -1
    low, high = item.ranges[0]
    return low if low == high else -1


def components(graph: Mapping[int, Sequence[int]]) -> Iterator[list[int]]:
    """Yield the strongly connected components in reverse topological order (Tarjan)."""
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    path: list[int] = []
    for start in graph:
        if start in number:
            continue
        number[start] = lowest[start] = len(number)
        path.append(start)
        stack = [(start, iter(graph[start]))]
        while stack:
            node, left = stack[-1]
            following = next((n for n in left if n not in number or n in lowest), None)
            if following is None:
                stack.pop()
                if stack:
                    parent = stack[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[node])
                if lowest[node] == number[node]:
                    group: list[int] = []
                    while not group or group[-1] != node:
                        group.append(path.pop())
                        del lowest[group[-1]]
                    yield group
            elif following in number:
                lowest[node] = min(lowest[node], number[following])
            else:
                number[following] = lowest[following] = len(number)
                path.append(following)
                stack.append((following, iter(graph[following])))
