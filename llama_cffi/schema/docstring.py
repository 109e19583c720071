"""Google-style docstrings."""

from __future__ import annotations

import re

__all__ = ["read_docstring"]

_SECTION = re.compile(r"^(\w[\w ]*):\s*$", re.M)
_ENTRY = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_FIELDS = ("Args", "Arguments", "Parameters", "Attributes")


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the description, and that of each parameter or attribute.

    Args:
        text: A docstring without indentation, as `inspect.getdoc` gives it.
    """
    first = _SECTION.search(text)
    about = text[: first.start()] if first else text
    described: dict[str, list[str]] = {}
    for section in _SECTION.finditer(text):
        if section[1] not in _FIELDS:
            continue
        following = _SECTION.search(text, section.end())
        lines = text[section.end() : following.start() if following else None].splitlines()
        indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
        current: list[str] = []
        for line in lines:
            entry = _ENTRY.match(line.strip())
            if entry and len(line) - len(line.lstrip()) == min(indents):
                current = described.setdefault(entry[1], [])
                line = entry[2]
            current.append(line.strip())
    joined = {name: " ".join(filter(None, lines)) for name, lines in described.items()}
    about = "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", about))
    return about.strip(), {name: text for name, text in joined.items() if text}
