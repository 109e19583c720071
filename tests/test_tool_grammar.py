"""The calls of every format, as a grammar that llguidance takes."""

from __future__ import annotations

import pytest

from llama_cffi.chat.formats import FORMATS
from llama_cffi.chat.tools import normalise_tools
from llama_cffi.tool_grammar import call_grammar


def move(city: str, speed: float, note: str = "", fast: bool = False) -> None:
    """Move to a city."""


def stay() -> None:
    """Stay."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("special", [{}, {"<tool_call>": 3, "[TOOL_CALLS]": 7}])
@pytest.mark.parametrize("parallel", [False, True])
def test_every_format_has_a_grammar(name: str, special: dict[str, int], parallel: bool) -> None:
    parts = FORMATS[name].grammar_parts(normalise_tools([move, stay]), parallel, True)
    assert call_grammar(parts, special).kind == "lark"
