"""Model of the stacks of llama.cpp's grammar engine, to bound its cost in advance.

C follows all parses of the text in parallel, one stack for each, and has no bounds: a grammar such
as `r ::= "-" r "a" | "-" r "b" | ""` doubles the stacks with every character. Stacks are shared
here (each node knows its parent and its continuations), so a step costs a few look-ups.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable
from typing import NamedTuple

from ..errors import GenerationError
from .normal import Normal, spell
from .parser import Chars

__all__ = ["MAX_DEPTH", "MAX_STACKS", "Machine", "State"]

# C expands each stack, copies the intermediate stacks, and compares them with each other: with
# these limits a call takes less than a second or two, usually far less than a millisecond.
MAX_STACKS = 500  # parallel parses of the text
MAX_DEPTH = 1_000  # nested rules
_MAX_TOTAL = 30_000  # sum of the depths of all stacks
_MAX_VISITS = 2_000  # intermediate stacks before the next characters; old builds recurse that deep
_SHOWN = 6
# Limits of `explodes`: steps, parses, repetitions of a character; length and states of other
# strings; characters and stacks tried.
_WORK, _MANY_WAYS, _RUN, _ANY, _ANY_SEEN, _SOME = 6_000, 4_096, 64, 16, 64, 16


class _Place:
    """A position in a sequence: an item and the position after it."""

    __slots__ = ("_known", "chars", "following", "rule")

    def __init__(self, item: Chars | int, following: _Place | None) -> None:
        self.chars = item if isinstance(item, Chars) else None
        self.rule = -1 if isinstance(item, Chars) else item
        self.following = following
        self._known: dict[int, bool] = {}

    def matches(self, c: int) -> bool:
        """Whether the item matches code point *c*."""
        known = self._known.get(c)
        if known is None:
            assert self.chars
            inside = any(low <= c <= high for low, high in self.chars.ranges)
            known = self._known[c] = inside != self.chars.negated
        return known

    def may_become(self, low: int, high: int) -> bool:
        """Whether C accepts an incomplete character whose code point is in *low* to *high*."""
        assert self.chars
        meets = any(a <= high and low <= b for a, b in self.chars.ranges)
        return meets != self.chars.negated


class _Stack:
    """Positions to continue at, innermost first; the stack without a position is the end."""

    __slots__ = ("after", "depth", "parent", "place", "pushed")

    def __init__(self, place: _Place | None, parent: _Stack | None) -> None:
        self.place, self.parent = place, parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.pushed: dict[_Place, _Stack] = {}
        self.after: tuple[_Stack, ...] | None = None

    def push(self, place: _Place | None) -> _Stack:
        """Return this stack with *place* on top; the same object for the same position."""
        if place is None:
            return self
        stack = self.pushed.get(place)
        if stack is None:
            if self.depth >= MAX_DEPTH:
                raise GenerationError(
                    f"the text nests the grammar's rules {MAX_DEPTH} deep; llama.cpp's engine "
                    "would run out of stack"
                )
            stack = self.pushed[place] = _Stack(place, self)
        return stack


class State(NamedTuple):
    """Parser state; immutable.

    Attributes:
        stacks: All ways to continue.
        value: Bits so far of an incomplete UTF-8 character.
        missing: Number of bytes that it lacks.
    """

    stacks: tuple[_Stack, ...]
    value: int = 0
    missing: int = 0


class Machine:
    """Parses bytes exactly as llama.cpp's grammar engine does.

    Args:
        normal: The normalized grammar.

    Raises:
        GenerationError: The grammar can begin in too many ways.
    """

    def __init__(self, normal: Normal) -> None:
        self._heads: list[list[_Place | None]] = []
        for rule in normal.rules:
            heads = []
            for way in rule.alternatives:
                place = None
                for item in reversed(way):
                    place = _Place(item, place)
                heads.append(place)
            self._heads.append(heads)
        self._end = _Stack(None, None)
        self.start = State(self._characters(self._end.push(_Place(0, None))))

    def explodes(self) -> bool:
        """Whether C could hang on a token because a short string has very many parses.

        C has no bounds within a token, and follows each parse separately: for `("a"+)+` they double
        with every character. From the start of each rule this tries the form of long tokens (one
        character repeated) and, greedily and within a budget, other short strings.
        """
        work = _WORK
        for rule in range(len(self._heads)):
            try:
                start = self._characters(_Stack(None, None).push(_Place(rule, None)))
                work = self._try_strings(dict.fromkeys(start, 1), work)
            except GenerationError:
                return True
        return False

    def _try_strings(self, start: dict[_Stack, int], work: int) -> int:
        """Raise GenerationError if a string has very many parses; return the *work* left."""
        for c in _typical(start):
            before: dict[_Stack, int] = {}
            ways = start
            for _ in range(_RUN):
                if ways == before or work <= 0:
                    break
                before, ways = ways, self._count(ways, c)
                work -= 1 + len(ways) // 8
        todo, seen = [(0, 0, 0, start)], set()
        while todo and work > 0:
            *_, length, ways = heapq.heappop(todo)  # the most parses first
            for c in _typical(ways):
                following = self._count(ways, c)
                work -= 1 + len(following) // 8
                total, known = sum(following.values()), frozenset(following.items())
                if total > 1 and known not in seen and length + 1 < _ANY:
                    seen.add(known)
                    heapq.heappush(todo, (-total, len(seen), length + 1, following))
            work -= 1
            if len(seen) > _ANY_SEEN:
                break
        return work

    def _count(self, ways: dict[_Stack, int], c: int) -> dict[_Stack, int]:
        """Return the stacks after *c* and the number of parses that reach each."""
        found: dict[_Stack, int] = {}
        for stack, n in ways.items():
            if stack.place is not None and stack.place.matches(c):
                for following in self._after(stack):
                    found[following] = found.get(following, 0) + n
        _check_size(found)
        if sum(found.values()) > _MANY_WAYS:
            raise GenerationError(
                f"the grammar parses a short string in more than {_MANY_WAYS} ways"
            )
        return found

    def complete(self, state: State) -> bool:
        """Whether the text may end here."""
        return self._end in state.stacks

    def ended(self, state: State) -> bool:
        """Whether the text can only end here."""
        return state.stacks == (self._end,)

    def feed(self, state: State, piece: bytes) -> State | None:
        """Return the state after *piece*, or None if the grammar rejects it.

        Raises:
            GenerationError: The text has too many parses, or is nested too deeply.
        """
        stacks = state.stacks
        if not piece or not piece[0]:
            return None
        codes, value, missing = _decode(piece, state.value, state.missing)
        for c in codes:
            stacks = self._step(stacks, c)
            if not stacks:
                return None
        if missing and not _may_go_on(stacks, value, missing):
            return None
        return State(stacks, value, missing)

    def fits(self, state: State) -> bool:
        """Whether C can test tokens here, as it expands all continuations of the next character."""
        try:
            for stack in state.stacks:
                self._after(stack)
        except GenerationError:
            return False
        return True

    def describe(self, state: State) -> str:
        """Describe in GBNF which characters may come next."""
        ways = dict.fromkeys(
            spell(s.place.chars) if s.place and s.place.chars else "the end" for s in state.stacks
        )
        shown = list(ways)[:_SHOWN]
        return ", ".join(shown) + (", ..." if len(ways) > _SHOWN else "")

    def _step(self, stacks: tuple[_Stack, ...], c: int) -> tuple[_Stack, ...]:
        found: dict[_Stack, None] = {}
        for stack in stacks:
            place = stack.place
            if place is not None and place.matches(c):
                found.update(dict.fromkeys(self._after(stack)))
        _check_size(found)
        return tuple(found)

    def _after(self, stack: _Stack) -> tuple[_Stack, ...]:
        """Return the stacks after the character on top of *stack*."""
        if stack.after is None:
            if stack.place is None:
                stack.after = ()
            else:
                assert stack.parent
                stack.after = self._characters(stack.parent.push(stack.place.following))
        return stack.after

    def _characters(self, stack: _Stack) -> tuple[_Stack, ...]:
        """Expand *stack* to the stacks with a character (or the end) on top."""
        todo, seen, found = [stack], {stack}, []
        while todo:
            top = todo.pop()
            place = top.place
            if place is None or place.chars is not None:
                found.append(top)
                continue
            assert top.parent
            rest = top.parent.push(place.following)
            for head in self._heads[place.rule]:
                following = rest.push(head)
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
            if len(seen) > _MAX_VISITS:
                raise GenerationError(
                    f"the grammar can continue in more than {_MAX_VISITS} ways; make its "
                    "alternatives differ in their first characters"
                )
        _check_size(found)
        return tuple(found)


def _check_size(stacks: Collection[_Stack]) -> None:
    n = len(stacks)
    if n > MAX_STACKS or n * MAX_DEPTH > _MAX_TOTAL < sum(s.depth for s in stacks):
        raise GenerationError(
            f"the grammar parses the text in {n} parallel ways, which is too slow in llama.cpp; "
            "make its alternatives differ in their first characters"
        )


def _typical(stacks: Iterable[_Stack]) -> list[int]:
    """Return characters that usually reveal all overlaps between classes."""
    found: dict[int, None] = {}
    for stack in itertools.islice(stacks, _SOME):
        if stack.place is not None and (chars := stack.place.chars):
            if chars.negated:
                found.update(dict.fromkeys([0x20, *(high + 1 for _, high in chars.ranges)]))
            else:
                found.update(dict.fromkeys(low for low, _ in chars.ranges))
    return list(found)[:_SOME]


def _may_go_on(stacks: tuple[_Stack, ...], value: int, missing: int) -> bool:
    """Whether C accepts a piece that ends within a character."""
    if missing < 0 or (missing == 1 and value < 2):
        return False
    low = value << 6 * missing
    high = low | (1 << 6 * missing) - 1
    if low == 0:
        low = {2: 1 << 11, 3: 1 << 16}.get(missing, 0)
    return any(s.place is not None and s.place.may_become(low, high) for s in stacks)


def _decode(piece: bytes, value: int, missing: int) -> tuple[list[int], int, int]:
    """Decode UTF-8 as C does, which validates only some of the bytes; a NUL ends the piece.

    Returns:
        The code points, the bits of a trailing incomplete character, and its number of missing
        bytes; -1 missing bytes if the input is rejected.
    """
    piece = piece.partition(b"\0")[0]
    at, codes = 0, []
    started = missing > 0
    while at < len(piece) and missing > 0:
        if piece[at] >> 6 != 2:
            return [], 0, -1
        value = value << 6 | piece[at] & 0x3F
        at, missing = at + 1, missing - 1
    if started and missing == 0:
        codes.append(value)
    while at < len(piece):
        first = piece[at]
        if 0x80 <= first < 0xC0:
            return [], 0, -1
        missing = 0 if first < 0x80 else 1 if first < 0xE0 else 2 if first < 0xF0 else 3
        value = first & (1 << 7 - missing) - 1
        at += 1
        while at < len(piece) and missing > 0:
            value = value << 6 | piece[at] & 0x3F
            at, missing = at + 1, missing - 1
        if missing == 0:
            codes.append(value)
    return codes, value, missing
