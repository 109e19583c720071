"""Normalization of grammars to plain rules that llama.cpp's engine can handle safely.

C's engine has no bounds of its own. It terminates only if no rule reaches itself without a
character (builds before 2026 overflow the stack on `("a"?)*`), and it expands every derivation of
the empty string (those builds: 2^n for n optional parts in a row). So the rules are rewritten: a
rule either does not match the empty string, or derives it in exactly one way. The size of the
result is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .parser import Chars, Item, Rule, explain

__all__ = [
    "MAX_BEGINNINGS",
    "MAX_ITEMS",
    "MAX_LEFT_DEPTH",
    "Normal",
    "PlainRule",
    "closure",
    "normalize",
    "spell",
]

MAX_ITEMS = 100_000  # characters and references in all rules
MAX_LEFT_DEPTH = 250  # rules that begin with one another; C recurses that deep
MAX_BEGINNINGS = 2_000  # leading derivations of a rule; C tries each
_ALL_BEGINNINGS = 1_000_000

Sequence = tuple[Item, ...]


@dataclass
class PlainRule:
    """Alternatives of sequences; at most one of them can match the empty string.

    Attributes:
        source: The rule of the caller's grammar that it stems from.
        nullable: Whether one alternative matches the empty string.
    """

    source: Rule
    alternatives: list[Sequence]
    nullable: bool = False


@dataclass(frozen=True)
class Normal:
    """Rules that are safe for C; the first is the root."""

    rules: list[PlainRule]

    def text(self) -> str:
        """Return the rules as GBNF that every build parses identically."""
        lines = []
        for i, rule in enumerate(self.rules):
            ways = " | ".join(map(_write, rule.alternatives))
            lines.append(f"{_name(i)} ::= {ways}\n")
        return "".join(lines)


def normalize(text: str, rules: list[Rule], root: int) -> Normal:
    """Normalize the rules reachable from *root*.

    Args:
        text: Source of the grammar, for error messages.
        rules: The rules that `parse` returns.
        root: Index of the root rule.

    Raises:
        GrammarError: The grammar is left-recursive, or too large for C to process in reasonable
            time.
    """
    lowering = _Lowering(text, rules)
    lowering.run(root)
    _check_left(text, lowering.plain)
    return Normal(lowering.plain)


class _Lowering:
    """Creates plain rules, each on its first use."""

    def __init__(self, text: str, rules: list[Rule]) -> None:
        self.text, self.rules = text, rules
        self.plain: list[PlainRule] = []
        self._size = 0
        self._filled = closure(rules, every=False, counts=lambda _: True)
        self._nullable = closure(rules, every=True, counts=lambda _: False)
        self._known: dict[tuple[int, bool], int] = {}
        self._todo: list[tuple[int, int, bool]] = []

    def run(self, root: int) -> None:
        """Create the rules that *root* needs."""
        for index, rule in enumerate(self.rules):
            if index not in self._filled and index not in self._nullable:
                what = f"left recursion: {rule.name} never reaches a character"
                raise explain(self.text, rule.at, what)
        if root in self._filled:
            self._use(root, empty=root in self._nullable)
        else:
            self._add(self.rules[root], [()], nullable=True)
        while self._todo:
            target, index, empty = self._todo.pop()
            rule = self.rules[index]
            ways = self._repeat(rule) if rule.repeat else self._alternatives(rule)
            self._set(target, ways, nullable=empty)

    def _use(self, index: int, *, empty: bool) -> int:
        """Return the plain rule for rule *index*, with or without the empty string."""
        key = index, empty
        if key not in self._known:
            self._known[key] = self._add(self.rules[index], [], nullable=empty)
            self._todo.append((self._known[key], index, empty))
        return self._known[key]

    def _full(self, item: Item) -> Item:
        """Return an item that matches what *item* does except the empty string."""
        return item if isinstance(item, Chars) else self._use(item, empty=False)

    def _maybe(self, item: Item) -> Item:
        """Return an item that matches exactly what *item* does."""
        if isinstance(item, Chars):
            return item
        return self._use(item, empty=item in self._nullable)

    def _alternatives(self, rule: Rule) -> list[Sequence]:
        ways: list[Sequence] = []
        for sequence in rule.alternatives:
            items = [i for i in sequence if isinstance(i, Chars) or i in self._filled]
            if any(isinstance(i, Chars) or i not in self._nullable for i in items):
                ways.append(tuple(map(self._maybe, items)))
            elif items:
                ways.extend(self._some_of(rule, items))
        return ways

    def _some_of(self, rule: Rule, items: list[Item]) -> list[Sequence]:
        """Return alternatives for optional items in a row that match at least one character."""
        ways: list[Sequence] = [(self._full(items[-1]),)]
        rest = self._maybe(items[-1])
        for item in reversed(items[:-1]):
            shorter = self._add(rule, ways)
            ways = [(self._full(item), rest), (shorter,)]
            rest = self._add(rule, ways, nullable=True)
        return ways

    def _repeat(self, rule: Rule) -> list[Sequence]:
        """Return the alternatives of a repetition; its items are made non-empty."""
        assert rule.repeat
        item, low, high = rule.repeat
        if not isinstance(item, Chars) and item in self._nullable:
            low = 0
        one = self._full(item)
        if low == 0:  # only called for at least one character
            low, high = 1, high
        if high is None:
            loop = self._add(rule, [])
            self._set(loop, [(one, loop)], nullable=True)
            return [(one,) * low + (loop,)]
        rest: Sequence = ()
        for _ in range(high - low):
            rest = (self._add(rule, [(one, *rest)], nullable=True),)
        return [(one,) * low + rest]

    def _add(self, rule: Rule, ways: list[Sequence], *, nullable: bool = False) -> int:
        self.plain.append(PlainRule(rule, []))
        self._set(len(self.plain) - 1, ways, nullable=nullable)
        return len(self.plain) - 1

    def _set(self, target: int, ways: list[Sequence], *, nullable: bool) -> None:
        """Set the alternatives of a rule, factoring out common prefixes.

        Otherwise C would follow each alternative, and parse everything after it once for each.
        """
        todo = [(target, ways, nullable)]
        while todo:
            target, ways, nullable = todo.pop()
            plain = self.plain[target]
            plain.nullable, plain.alternatives = nullable, []
            alike: dict[Item, list[Sequence]] = {}
            for way in filter(None, dict.fromkeys(ways)):
                alike.setdefault(way[0], []).append(way)
            for group in alike.values():
                shared = _shared(group)
                rests = [way[shared:] for way in group]
                optional = sum(map(self._is_optional, rests))
                if len(group) == 1 or optional > 1:
                    plain.alternatives += group
                else:
                    rest = self._add(plain.source, [])
                    todo.append((rest, rests, optional == 1))
                    plain.alternatives.append((*group[0][:shared], rest))
            if nullable and not any(map(self._is_optional, plain.alternatives)):
                plain.alternatives.append(())
            self._size += 1 + sum(map(len, plain.alternatives))
            if self._size > MAX_ITEMS:
                raise explain(
                    self.text,
                    plain.source.at,
                    f"the grammar expands to more than {MAX_ITEMS} characters and references here; "
                    "lower its repetition counts",
                )

    def _is_optional(self, way: Sequence) -> bool:
        return all(not isinstance(i, Chars) and self.plain[i].nullable for i in way)


def _shared(group: list[Sequence]) -> int:
    """Return the length of the longest common prefix of the sequences."""
    columns = enumerate(zip(*group, strict=False))
    return next((i for i, c in columns if len(set(c)) > 1), min(map(len, group)))


def closure(rules: list[Rule], *, every: bool, counts: Callable[[Chars], bool]) -> set[int]:
    """Return the rules with a sequence in which *every* item counts, or in which any does.

    A reference counts if its rule is in the result. Takes linear time: each sequence keeps the
    number of its items that are still missing, and a rule that is added decrements it.

    Args:
        rules: All rules of the grammar.
        every: Whether every item of a sequence must count (an empty sequence then qualifies).
        counts: Whether a character counts.

    Returns:
        Indices of the rules.
    """
    found: set[int] = set()
    waiting: dict[int, list[list[int]]] = {}  # rule -> [dependent rule, items missing]
    todo = []
    for index, rule in enumerate(rules):
        sequences = [[rule.repeat[0]]] if rule.repeat else rule.alternatives
        if every and rule.repeat and rule.repeat[1] == 0:
            sequences = [[]]
        for items in sequences:
            references = [i for i in items if not isinstance(i, Chars)]
            chars = [counts(i) for i in items if isinstance(i, Chars)]
            if all(chars) and not references if every else any(chars):
                todo.append(index)
            elif not every or all(chars):
                entry = [index, len(references) if every else 1]
                for reference in references:
                    waiting.setdefault(reference, []).append(entry)
    while todo:
        index = todo.pop()
        if index in found:
            continue
        found.add(index)
        for entry in waiting.get(index, ()):
            entry[1] -= 1
            if entry[1] == 0:
                todo.append(entry[0])
    return found


def _check_left(text: str, rules: list[PlainRule]) -> None:
    """Reject left recursion, and rules that begin too deeply or in too many ways."""
    ways: dict[int, int] = {}  # rule -> ways to begin
    depth: dict[int, int] = {}
    for start in range(len(rules)):
        path: list[tuple[int, Iterator[int]]] = []
        if start not in ways:
            path.append((start, iter(_left(rules, start))))
        on_path = {start: None}
        while path:
            index, rest = path[-1]
            following = next((i for i in rest if i not in ways), None)
            if following is None:
                left = _left(rules, index)
                ways[index] = 1 + sum(ways[i] for i in left)
                depth[index] = 1 + max((depth[i] for i in left), default=0)
                _check_counts(text, rules[index], ways[index], depth[index])
                path.pop()
                del on_path[index]
            elif following in on_path:
                indices = list(on_path)
                names = [rules[i].source.name for i in indices[indices.index(following) :]]
                names = [*dict.fromkeys(names), rules[following].source.name]
                raise explain(
                    text,
                    rules[following].source.at,
                    f"left recursion: {' -> '.join(names)} without a character in between; put "
                    "something before the rule's own name, or repeat with *",
                )
            else:
                on_path[following] = None
                path.append((following, iter(_left(rules, following))))
    if sum(ways.values()) > _ALL_BEGINNINGS:
        raise explain(
            text,
            rules[0].source.at,
            f"all rules together can begin in more than {_ALL_BEGINNINGS} ways",
        )


def _check_counts(text: str, rule: PlainRule, ways: int, depth: int) -> None:
    name, at = rule.source.name, rule.source.at
    if ways > MAX_BEGINNINGS:
        raise explain(
            text,
            at,
            f"{name!r} can begin in {ways} ways, the limit is {MAX_BEGINNINGS}; avoid alternatives "
            "that begin with the same rule",
        )
    if depth > MAX_LEFT_DEPTH:
        raise explain(
            text, at, f"{depth} rules begin with one another here; the limit is {MAX_LEFT_DEPTH}"
        )


def _left(rules: list[PlainRule], index: int) -> list[int]:
    """Return the rules that rule *index* may begin with, once for each occurrence."""
    found = []
    for way in rules[index].alternatives:
        for item in way:
            if isinstance(item, Chars):
                break
            found.append(item)
            if not rules[item].nullable:
                break
    return found


def _name(index: int) -> str:
    return f"r{index}" if index else "root"


def spell(chars: Chars) -> str:
    """Return a character or class as GBNF; literals and classes use the same escapes."""
    if not chars.ranges:
        return "."
    low, high = chars.ranges[0]
    if low == high and len(chars.ranges) == 1 and not chars.negated:
        return f'"{_escape(low)}"'
    ranges = (_escape(a) + (f"-{_escape(b)}" if b > a else "") for a, b in chars.ranges)
    return f"[{'^' * chars.negated}{''.join(ranges)}]"


def _write(items: Sequence) -> str:
    words = (spell(i) if isinstance(i, Chars) else _name(i) for i in items)
    return " ".join(words).replace('" "', "") or '""'


def _escape(c: int) -> str:
    """Escape a code point unless it is alphanumeric, as most punctuation has a meaning."""
    if chr(c).isascii() and chr(c).isalnum():
        return chr(c)
    return f"\\x{c:02X}" if c < 256 else f"\\u{c:04X}" if c < 65536 else f"\\U{c:08X}"
