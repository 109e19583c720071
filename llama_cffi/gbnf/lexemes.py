"""Which parts of a grammar a lexer may read as one, so that it reads what the grammar says.

llguidance's lexer is greedy: of the lexemes that may stand at a place it goes on as long as one of
them can, and the parser hears of those that end there. Lexemes of one character change nothing, as
all end together, but longer ones are 50 times faster, as the lexer alone tries most of the
vocabulary. So each part without recursion is a lexeme at first. Then all texts are read as the
lexer would read them, in sets of places; a rule may return to wherever it is used, so these are
more texts than the grammar has. Where a lexeme may end while another goes on with what may follow
the first, the other is cut in front of that, until there is no such place.
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

_WORK = 1_000_000  # steps of all searches; a second or less
# Of UTF-8: the last character with so many bytes, and what its first byte is made of.
_LENGTHS = [(0x7F, 0, 0), (0x7FF, 6, 0xC0), (0xFFFF, 12, 0xE0), (0x10FFFF, 18, 0xF0)]
_TOKEN_BYTE = 0xFF  # in llguidance's texts it stands in front of a token's id


def cut(nodes: Mapping[int, Node], root: int) -> dict[int, Node]:
    """Return *nodes* with all that is regular in lexemes.

    Args:
        nodes: Expressions by rule.
        root: The rule that texts follow.
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
    """Put the largest parts without recursion in lexemes."""
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
    """Cut lexemes in front of a part, or into their parts if it is the first."""
    if isinstance(node, Lexeme):
        if node not in conflicts:
            return node
        whole, at = node.node, max(conflicts[node], 1)
        if isinstance(whole, Seq):
            return seq([_lexed(seq(whole.items[:at])), _lexed(seq(whole.items[at:]))])
        return replaced(whole, map(_lexed, inner(whole)))
    return replaced(node, [_split(part, conflicts) for part in inner(node)])


def _single(node: Node) -> Node:
    """Make each character a lexeme."""
    return Lexeme(node) if isinstance(node, Chars) else replaced(node, map(_single, inner(node)))


@dataclass(frozen=True, eq=False)
class _Place:
    """A character of a lexeme, as an edge of a graph.

    Attributes:
        codes: Which characters, as bits of the `_Alphabet`.
        first: Their first bytes, as bits.
        after: The state behind it.
        lexeme: The lexeme around it.
        part: The part of the lexeme in which it is.
    """

    codes: int
    first: int
    after: int
    lexeme: Lexeme
    part: int


class _Search:
    """Reads all texts.

    Args:
        nodes: Expressions by rule, with lexemes.

    Attributes:
        conflicts: Lexemes to cut, and in front of which part.
        work: Steps so far.
    """

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.conflicts: dict[Lexeme, int] = {}
        self.work = 0
        # By state: states that follow without a character, the characters that may come, and the
        # first states of the lexemes that may come.
        self._steps: list[list[int]] = []
        self._places: list[list[_Place]] = []
        self._starts: list[list[int]] = []
        self._end: dict[Lexeme, int] = {}  # its last state
        self._behind: dict[Lexeme, int] = {}  # the state after it
        self._known_states: dict[int, frozenset[int]] = {}
        self._known_places: dict[_Place, tuple[frozenset[_Place], bool]] = {}
        self._known_behind: dict[frozenset[Lexeme], tuple[int, frozenset[frozenset[_Place]]]] = {}
        self._alphabet = _Alphabet(nodes.values())
        self._rules = {index: (self._state(), self._state()) for index in nodes}
        for index, node in nodes.items():
            self._connect(node, *self._rules[index])

    def run(self, root: int, limit: int) -> None:
        """Find conflicts; give up after *limit* steps."""
        todo = [*_texts(self._beginnings(self._rules[root][0]))]
        seen = set(todo)
        while todo and self.work < limit:
            places = todo.pop()
            going = {inside for place in places for inside in self._inside(place)[0]}
            ended = frozenset(place.lexeme for place in places if self._inside(place)[1])
            first_bytes, texts = self._following(ended)
            self.work += 1 + len(going) + len(texts)
            wrong = [place for place in going if place.first & first_bytes]
            for place in wrong:
                part = self.conflicts.get(place.lexeme, place.part)
                self.conflicts[place.lexeme] = min(part, place.part)
            if not wrong:  # and so no character goes on and begins a lexeme
                new = (texts | {*_texts(going)}) - seen
                seen |= new
                todo += new

    def _state(self) -> int:
        self._steps.append([])
        self._places.append([])
        self._starts.append([])
        return len(self._steps) - 1

    def _connect(
        self, node: Node, before: int, after: int, lexeme: Lexeme | None = None, part: int = 0
    ) -> None:
        """Put *node* between two states; what repeats may do so without a limit."""
        if isinstance(node, (Chars, Token)) and lexeme is not None:
            codes, first = self._alphabet.bits(node)
            self._places[before].append(_Place(codes, first, after, lexeme, part))
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

    def _inside(self, place: _Place) -> tuple[frozenset[_Place], bool]:
        """Return what may follow in the lexeme, and whether it may end."""
        if place not in self._known_places:
            states = self._reach(place.after)
            inside = frozenset(p for state in states for p in self._places[state])
            self._known_places[place] = inside, self._end[place.lexeme] in states
        return self._known_places[place]

    def _following(self, ended: frozenset[Lexeme]) -> tuple[int, frozenset[frozenset[_Place]]]:
        """Return what may follow lexemes: the first bytes, and what each text comes to."""
        if ended not in self._known_behind:
            places = {p for lexeme in ended for p in self._beginnings(self._behind[lexeme])}
            self.work += len(places)
            first_bytes = functools.reduce(operator.or_, (place.first for place in places), 0)
            self._known_behind[ended] = first_bytes, frozenset(_texts(places))
        return self._known_behind[ended]

    def _beginnings(self, state: int) -> frozenset[_Place]:
        """Return what lexemes may begin with behind *state*."""
        starts = {start for s in self._reach(state) for start in self._starts[s]}
        states = {s for start in starts for s in self._reach(start)}
        return frozenset(place for s in states for place in self._places[s])

    def _reach(self, state: int) -> frozenset[int]:
        """Return the states that follow without a character."""
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
    """Characters as bits: one for those that no class tells apart, and one for each token."""

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
        """Return the characters and their first bytes."""
        if isinstance(node, Token):
            return self._tokens[node], 1 << _TOKEN_BYTE
        if node not in self._known:
            codes = first = 0
            for low, high in node.ranges:
                codes |= _bits(*(bisect_left(self._bounds, bound) for bound in (low, high + 1)))
                first |= _first_bytes(low, high)
            self._known[node] = codes, first
        return self._known[node]


def _texts(places: Iterable[_Place]) -> Iterator[frozenset[_Place]]:
    """Give the sets of places that one more character may come to."""
    by_codes: dict[int, set[_Place]] = {}
    for place in places:
        by_codes.setdefault(place.codes, set()).add(place)
    found: list[tuple[int, set[_Place]]] = []
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
