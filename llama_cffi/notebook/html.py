"""What every view is made of. Inline styles only: no script, no ids, nothing from elsewhere.

Colours are transparent tints over whatever the page has, so that they fit light and dark themes;
where a viewer strips styles and titles, the text still reads.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

from .token_logprobs import TokenLogprob, visible

__all__ = [
    "MAX_TOKENS",
    "badge",
    "bar",
    "block",
    "chip",
    "coloured",
    "details",
    "dim",
    "escape",
    "heat_map",
    "label",
    "paragraph",
    "printable",
    "probability",
    "stack",
    "table",
]

MAX_TOKENS = 2000
_MAX_CHARACTERS = 200_000
_MAX_TITLE = 10  # alternatives
_MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
_LINE = "rgba(128,128,128,.35)"
# Hues that are told apart with every kind of colour vision.
_HUES = (210, 35, 160, 285, 60, 330)
_TONES = {"ok": 145, "warn": 40, "fail": 0, "plain": 215}
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_KEPT = "\n\t\u200c\u200d"  # emoji and several scripts are written with joiners


def printable(text: str) -> str:
    """Return *text* with control characters as escapes; line breaks and tabs stay."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character.isprintable() or character in _KEPT:
        return character
    is_shown = unicodedata.category(character) not in _INVISIBLE
    return character if is_shown else character.encode("unicode_escape").decode()


def escape(text: object) -> str:
    """Return a value as text of HTML, with its control characters visible."""
    return html.escape(printable(str(text)))


def dim(text: object) -> str:
    """Return a value as secondary text."""
    return f'<span style="opacity:.7">{escape(text)}</span>'


def label(text: object) -> str:
    """Return a value as secondary text in one line."""
    return f'<span style="opacity:.7;white-space:nowrap">{escape(text)}</span>'


def paragraph(text: str, *, mono: bool = False) -> str:
    """Return a text with its line breaks, cut off where it is very long."""
    more = len(text) - _MAX_CHARACTERS
    shown = escape(text[:_MAX_CHARACTERS])
    if more > 0:
        shown += dim(f" … and {more:,} more characters")
    font = f";{_MONO};font-size:.92em" if mono else ""
    return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere{font}">{shown}</div>'


def block(*parts: str) -> str:
    """Return the outermost element of a view."""
    gap = '<div style="height:.5em"></div>'
    inner = gap.join(part for part in parts if part)
    return f'<div style="text-align:left;line-height:1.5;max-width:60em">{inner}</div>'


def badge(text: object, tone: str = "plain") -> str:
    """Return a label on a tint: `ok`, `warn`, `fail` or `plain`."""
    return (
        f'<span style="background:hsla({_TONES[tone]},80%,50%,.22);border-radius:.3em;'
        f'padding:.05em .45em;font-weight:600">{escape(text)}</span>'
    )


def details(summary: str, inner: str) -> str:
    """Return HTML that opens with a click on a summary, which is a text."""
    return (
        f'<details><summary style="cursor:pointer;opacity:.7">{escape(summary)}</summary>'
        f'<div style="padding-left:1em">{inner}</div></details>'
    )


def table(
    rows: Iterable[Sequence[str]], head: Sequence[str] = (), *, right: Iterable[int] = ()
) -> str:
    """Return a table.

    Args:
        rows: Cells, each HTML.
        head: Names of the columns, each HTML.
        right: Columns of numbers.
    """
    numbers = frozenset(right)
    css = f"border:0;border-bottom:1px solid {_LINE};padding:.2em .8em .2em 0;vertical-align:top"

    def line(tag: str, cells: Sequence[str], weight: str) -> str:
        sides = ("right" if i in numbers else "left" for i in range(len(cells)))
        inner = "".join(
            f'<{tag} style="text-align:{side};{css}{weight}">{cell}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f'<tr style="background:transparent">{inner}</tr>'

    body = "".join(line("td", row, "") for row in rows)
    top = line("th", head, ";font-weight:600;opacity:.7") if head else ""
    style = "border-collapse:collapse;margin:0;border:0;font-size:inherit"
    return f'<table style="{style}">{top}{body}</table>'


def bar(share: float, *, tone: str = "plain", width_em: float = 16) -> str:
    """Return a bar of which *share* is filled, 0 to 1, with the number beside it."""
    return stack([(share, tone, "")], width_em=width_em) + dim(f" {share:.1%}")


def stack(parts: Sequence[tuple[float, str, str]], *, width_em: float = 20) -> str:
    """Return a bar of several parts.

    Args:
        parts: Share of the bar, a tone or the index of a hue, and a title.
        width_em: Width of the whole bar.
    """
    inner = ""
    for share, colour, title in parts:
        percent = min(1.0, max(0.0, share)) * 100
        inner += (
            f'<span title="{escape(title)}" style="display:inline-block;height:100%;'
            f'width:{percent:.2f}%;background:{_fill(colour)}"></span>'
        )
    return (
        f'<span style="display:inline-block;vertical-align:middle;width:{width_em}em;height:.8em;'
        f"line-height:0;white-space:nowrap;overflow:hidden;border-radius:.2em;"
        f'background:rgba(128,128,128,.2)">{inner}</span>'
    )


def chip(index: int) -> str:
    """Return a mark in the colour that part *index* of a bar has."""
    size = "display:inline-block;width:.6em;height:.6em;border-radius:.15em"
    return f'<span style="{size};background:{_fill(str(index))}"></span>'


def _fill(colour: str) -> str:
    """Return the colour of a tone, or of the index of a hue."""
    hue = _HUES[int(colour) % len(_HUES)] if colour.isdigit() else _TONES[colour]
    return f"hsla({hue},75%,50%,.6)"


def coloured(tokens: Sequence[tuple[str, str]], special: Iterable[int] = ()) -> str:
    """Return tokens on alternating tints, for people to see where each begins.

    Args:
        tokens: Text and title of each.
        special: Indices of those that are control tokens; they get a border.
    """
    marked = frozenset(special)
    spans = []
    for i, (text, title) in enumerate(tokens[:MAX_TOKENS]):
        css = f"background:hsla({_HUES[i % 4]},75%,50%,.22)"
        if i in marked:
            css = "font-weight:600;box-shadow:inset 0 0 0 1px hsla(0,75%,50%,.7)"
        spans.append(_span(text, css, title))
    return _tokens(spans, len(tokens))


def heat_map(tokens: Sequence[TokenLogprob]) -> str:
    """Return tokens on tints: the less probable one was, the stronger; alternatives as title."""
    spans = []
    for text, logprob, top in tokens[:MAX_TOKENS]:
        if logprob is None:
            spans.append(_span(text, "", "no probability"))
            continue
        p = probability(logprob)
        css = f"background:hsla({45 * p:.0f},95%,50%,{0.6 * (1 - p):.2f})"
        lines = [f"{_quoted(text)} {p:.2%}"]
        lines += [f"{_quoted(other)} {probability(value):.2%}" for other, value in top[:_MAX_TITLE]]
        spans.append(_span(text, css, "\n".join(lines)))
    scale = "".join(
        f'<span style="background:hsla({45 * p:.0f},95%,50%,{0.6 * (1 - p):.2f});'
        f'padding:0 .4em">{p:.0%}</span>'
        for p in (1.0, 0.75, 0.5, 0.25, 0.0)
    )
    note = f'<div style="font-size:.85em"><span style="opacity:.7">probability </span>{scale}</div>'
    return _tokens(spans, len(tokens)) + note


def probability(logprob: float) -> float:
    """Return the probability of a log-probability, also of one that rounding put above 0."""
    return 0.0 if math.isnan(logprob) else math.exp(min(0.0, logprob))


def _quoted(text: str) -> str:
    return f"“{visible(text)}”"


def _span(text: str, css: str, title: str) -> str:
    shown = html.escape(visible(text).replace("⏎", "⏎\n"))
    return (
        f'<span title="{_title(title)}" style="{css};border-radius:.2em;padding:.05em 0">'
        f"{shown}</span>"
    )


def _title(text: str) -> str:
    """Return a title of several lines."""
    return "&#10;".join(html.escape(printable(line)) for line in text.split("\n"))


def _tokens(spans: Sequence[str], n: int) -> str:
    more = dim(f" … and {n - MAX_TOKENS:,} more tokens") if n > MAX_TOKENS else ""
    return (
        f'<div style="white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7;{_MONO};'
        f'font-size:.92em">{"<wbr>".join(spans)}{more}</div>'
    )
