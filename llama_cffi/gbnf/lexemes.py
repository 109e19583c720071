"""Partition of a grammar into lexemes that a greedy lexer matches correctly.

llguidance's lexer is greedy: it continues as long as any lexeme allowed at the current position
can continue, and reports to the parser those that end there. Single-character lexemes are always
correct, as all end together, but longer ones are 50 times faster, as the lexer alone rejects most
of the vocabulary. So each part without recursion starts as one lexeme. Then all strings are
traversed as the lexer would read them, as sets of positions; a rule may return to any of its uses,
so this covers more strings than the grammar matches. Where one lexeme may end while another can
continue with a character that may follow the first, the other is cut before that character. This
repeats until there are no conflicts.
"""

from __future__ import annotations

import functools
import itertools
import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .expressions import (
    Alt,
    Lexeme,
    Node,
    Ref,
    Repeat,
    Seq,
    Token,
    alt,
    inner,
    is_regular,
    replaced,
    seq,
)
from .parser import Chars

__all__ = ["cut"]

_WORK = 1_000_000  # steps of all searches together; takes a second or less
# UTF-8 by length: the last code point, the shift and the marker bits of the first byte.
_LENGTHS = [(0x7F, 0, 0), (0x7FF, 6, 0xC0), (0xFFFF, 12, 0xE0), (0x10FFFF, 18, 0xF0)]
_TOKEN_BYTE = 0xFF  # llguidance writes it before a token's id


def cut(nodes: Mapping[int, Node], root: int) -> dict[int, Node]:
    """Return *nodes* with all regular parts wrapped in lexemes.

    Args:
        nodes: Expressions by rule.
        root: Index of the root rule.
    """
    found = {index: _lexed(node) for index, node in nodes.items()}
    work = _WORK
    while work > 0:
        search = _Search(found)
        search.run(root, work)
        work -= search.work
        if work > 0 and not search.conflicts:
            return found
        found = {index: _split(node, search.conflicts) for index, node in found.items()}
    return {index: _single(node) for index, node in nodes.items()}


def _lexed(node: Node) -> Node:
    """Wrap the largest parts without recursion in lexemes."""
    if isinstance(node, Seq) and not node.items:
        return node
    if is_regular(node):
        return Lexeme(node)
    if isinstance(node, Repeat):
        return Repeat(_lexed(node.item), node.low, node.high)
    if isinstance(node, Alt):
        regular = [way for way in node.ways if is_regular(way)]
        others = [_lexed(way) for way in node.ways if not is_regular(way)]
        return alt([_lexed(alt(regular)), *others] if regular else others)
    if isinstance(node, Seq):
        runs = [(regular, [*run]) for regular, run in itertools.groupby(node.items, is_regular)]
        return seq(_lexed(seq(run)) if regular else seq(map(_lexed, run)) for regular, run in runs)
    return node


def _split(node: Node, conflicts: Mapping[Lexeme, int]) -> Node:
    """Cut conflicting lexemes before the given part, or into their parts if it is the first."""
    if isinstance(node, Lexeme):
        if node not in conflicts:
            return node
        whole, at = node.node, max(conflicts[node], 1)
        if isinstance(whole, Seq):
            return seq([_lexed(seq(whole.items[:at])), _lexed(seq(whole.items[at:]))])
        return replaced(whole, map(_lexed, inner(whole)))
    return replaced(node, [_split(part, conflicts) for part in inner(node)])


def _single(node: Node) -> Node:
    """Make each character a lexeme of its own."""
    return Lexeme(node) if isinstance(node, Chars) else replaced(node, map(_single, inner(node)))


@dataclass(frozen=True, eq=False)
class _Position:
    """A position in a lexeme: one character class, as an edge between states.

    Attributes:
        codes: The characters, as a bit set over the `_Alphabet`.
        first: Their first bytes, as a bit set.
        after: The state after the character.
        lexeme: The lexeme that contains it.
        part: Index of the lexeme's part that contains it.
    """

    codes: int
    first: int
    after: int
    lexeme: Lexeme
    part: int


class _Search:
    """Searches all strings, as the lexer reads them, for conflicts between lexemes.

    Args:
        nodes: Expressions by rule, with lexemes.

    Attributes:
        conflicts: Lexemes to cut, with the index of the part to cut before.
        work: Number of steps so far.
    """

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.conflicts: dict[Lexeme, int] = {}
        self.work = 0
        # By state: epsilon transitions, the characters that may follow, and the start states of
        # the lexemes that may follow.
        self._steps: list[list[int]] = []
        self._positions: list[list[_Position]] = []
        self._starts: list[list[int]] = []
        self._end: dict[Lexeme, int] = {}  # its final state
        self._behind: dict[Lexeme, int] = {}  # the state after it
        self._known_states: dict[int, frozenset[int]] = {}
        self._known_positions: dict[_Position, tuple[frozenset[_Position], bool]] = {}
        self._known_behind: dict[
            frozenset[Lexeme], tuple[int, frozenset[frozenset[_Position]]]
        ] = {}
        self._alphabet = _Alphabet(nodes.values())
        self._rules = {index: (self._state(), self._state()) for index in nodes}
        for index, node in nodes.items():
            self._connect(node, *self._rules[index])

    def run(self, root: int, limit: int) -> None:
        """Find conflicts; give up after *limit* steps."""
        todo = [*_by_character(self._beginnings(self._rules[root][0]))]
        seen = set(todo)
        while todo and self.work < limit:
            positions = todo.pop()
            going = {inside for position in positions for inside in self._inside(position)[0]}
            ended = frozenset(
                position.lexeme for position in positions if self._inside(position)[1]
            )
            first_bytes, reachable = self._following(ended)
            self.work += 1 + len(going) + len(reachable)
            wrong = [position for position in going if position.first & first_bytes]
            for position in wrong:
                part = self.conflicts.get(position.lexeme, position.part)
                self.conflicts[position.lexeme] = min(part, position.part)
            if not wrong:  # so no character both continues a lexeme and begins another
                new = (reachable | {*_by_character(going)}) - seen
                seen |= new
                todo += new

    def _state(self) -> int:
        self._steps.append([])
        self._positions.append([])
        self._starts.append([])
        return len(self._steps) - 1

    def _connect(
        self, node: Node, before: int, after: int, lexeme: Lexeme | None = None, part: int = 0
    ) -> None:
        """Connect two states by *node*; counted repetitions are treated as unbounded."""
        if isinstance(node, (Chars, Token)) and lexeme is not None:
            codes, first = self._alphabet.bits(node)
            self._positions[before].append(_Position(codes, first, after, lexeme, part))
        elif isinstance(node, (Lexeme, Token)):
            self._connect_lexeme(node if isinstance(node, Lexeme) else Lexeme(node), before, after)
        elif isinstance(node, Ref):
            first_state, last_state = self._rules[node.rule]
            self._steps[before].append(first_state)
            self._steps[last_state].append(after)
        elif isinstance(node, Repeat):
            start, end = self._state(), self._state()
            self._connect(node.item, start, end, lexeme, part)
            self._steps[before] += [start] if node.low else [start, after]
            self._steps[end] += [after] if node.high == 1 else [after, start]
        elif isinstance(node, Alt):
            for way in node.ways:
                self._connect(way, before, after, lexeme, part)
        else:
            for item in inner(node):
                state = self._state()
                self._connect(item, before, state, lexeme, part)
                before = state
            self._steps[before].append(after)

    def _connect_lexeme(self, lexeme: Lexeme, before: int, after: int) -> None:
        node = lexeme.node
        start = state = self._state()
        for part, item in enumerate(node.items if isinstance(node, Seq) else [node]):
            end = self._state()
            self._connect(item, state, end, lexeme, part)
            state = end
        self._starts[before].append(start)
        self._end[lexeme], self._behind[lexeme] = state, after
        if state in self._reach(start):
            self._steps[before].append(after)

    def _inside(self, position: _Position) -> tuple[frozenset[_Position], bool]:
        """Return the positions that may follow in the lexeme, and whether it may end."""
        if position not in self._known_positions:
            states = self._reach(position.after)
            inside = frozenset(p for state in states for p in self._positions[state])
            self._known_positions[position] = inside, self._end[position.lexeme] in states
        return self._known_positions[position]

    def _following(self, ended: frozenset[Lexeme]) -> tuple[int, frozenset[frozenset[_Position]]]:
        """Return the first bytes that may follow lexemes, and the sets of positions reached."""
        if ended not in self._known_behind:
            positions = {p for lexeme in ended for p in self._beginnings(self._behind[lexeme])}
            self.work += len(positions)
            first_bytes = functools.reduce(
                operator.or_, (position.first for position in positions), 0
            )
            self._known_behind[ended] = first_bytes, frozenset(_by_character(positions))
        return self._known_behind[ended]

    def _beginnings(self, state: int) -> frozenset[_Position]:
        """Return the first positions of the lexemes that may follow *state*."""
        starts = {start for s in self._reach(state) for start in self._starts[s]}
        states = {s for start in starts for s in self._reach(start)}
        return frozenset(position for s in states for position in self._positions[s])

    def _reach(self, state: int) -> frozenset[int]:
        """Return the epsilon closure of *state*."""
        if state not in self._known_states:
            found, todo = {state}, [state]
            while todo:
                new = {*self._steps[todo.pop()]} - found
                found |= new
                todo += new
            self.work += len(found)
            self._known_states[state] = frozenset(found)
        return self._known_states[state]


class _Alphabet:
    """Bit sets: one bit per class of equivalent characters, and one per token."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        bounds: set[int] = set()
        tokens: dict[Token, None] = {}
        todo = [*nodes]
        while todo:
            node = todo.pop()
            todo += [node.node] if isinstance(node, Lexeme) else inner(node)
            if isinstance(node, Chars):
                bounds.update(bound for low, high in node.ranges for bound in (low, high + 1))
            elif isinstance(node, Token):
                tokens[node] = None
        self._bounds = sorted(bounds)
        self._tokens = {token: 1 << len(bounds) + i for i, token in enumerate(tokens)}
        self._known: dict[Chars, tuple[int, int]] = {}

    def bits(self, node: Chars | Token) -> tuple[int, int]:
        """Return the characters and their first bytes, each as a bit set."""
        if isinstance(node, Token):
            return self._tokens[node], 1 << _TOKEN_BYTE
        if node not in self._known:
            codes = first = 0
            for low, high in node.ranges:
                codes |= _bits(*(bisect_left(self._bounds, bound) for bound in (low, high + 1)))
                first |= _first_bytes(low, high)
            self._known[node] = codes, first
        return self._known[node]


def _by_character(positions: Iterable[_Position]) -> Iterator[frozenset[_Position]]:
    """Return the sets of positions that can be reached by the same character."""
    by_codes: dict[int, set[_Position]] = {}
    for position in positions:
        by_codes.setdefault(position.codes, set()).add(position)
    found: list[tuple[int, set[_Position]]] = []
    for codes, alike in by_codes.items():
        known, found = found, []
        for others, reached in known:
            found += [(others & codes, reached | alike)] if others & codes else []
            found += [(others & ~codes, reached)] if others & ~codes else []
            codes &= ~others
        found += [(codes, alike)] if codes else []
    return (frozenset(reached) for _, reached in found)


def _first_bytes(low: int, high: int) -> int:
    found = start = 0
    for last, shift, mark in _LENGTHS:
        a, b = max(low, start), min(high, last)
        if a <= b:
            found |= _bits(mark | a >> shift, (mark | b >> shift) + 1)
        start = last + 1
    return found


def _bits(start: int, stop: int) -> int:
    return (1 << stop) - (1 << start)
