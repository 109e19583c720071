"""Calls without a marker: they begin a line of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..scanner import Parser, Scanner
from .message import MessageBuilder

__all__ = ["parse_lines"]

_FENCE = "```"


def parse_lines(
    scanner: Scanner,
    out: MessageBuilder,
    parse_bare: Callable[[], Parser[bool]],
    starts: Sequence[str],
    markers: Sequence[str],
) -> Parser[str | None]:
    """Parse text, and calls that begin a line outside code blocks, up to one of *markers*.

    Args:
        scanner: At the beginning of a line.
        out: Receives the calls; other text becomes content.
        parse_bare: Parses what may be a call; returns whether it is one, else *out* is unchanged.
        starts: Strings with which calls begin.
        markers: Strings at which to stop.

    Returns:
        The marker, or None at the end of the text.
    """
    is_fenced = False
    stop: str | None = "\n"
    while stop in ("\n", _FENCE):
        if stop == _FENCE:
            is_fenced = not is_fenced
        elif not is_fenced:
            yield from _parse_line_start(scanner, out, parse_bare, starts)
        stop = yield from scanner.until((*markers, "\n", _FENCE), out.content)
        if stop in ("\n", _FENCE):
            out.content(stop)
    return stop


def _parse_line_start(
    scanner: Scanner,
    out: MessageBuilder,
    parse_bare: Callable[[], Parser[bool]],
    starts: Sequence[str],
) -> Parser[None]:
    """Parse the calls that begin a line."""
    while True:
        space = yield from scanner.space()
        is_start = yield from scanner.peek(scanner.literal(*starts))
        if not is_start or not (yield from scanner.trial(parse_bare())):
            break
        yield from scanner.space()
        yield from scanner.literal(";", ",")
    out.content(space)
