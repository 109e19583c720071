"""The extension of IPython that `%load_ext llama_cffi` loads.

IPython is imported only here and in the magics, and only when it has asked for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..html_repr import shown_by
from .display import is_response

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["load_ipython_extension", "unload_ipython_extension"]

_HTML = "text/html"
_html_of = shown_by("response")


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Add `%llama` and `%%llama`, and show OpenAI's responses as HTML; `%load_ext` calls it.

    Args:
        ipython: The shell.
    """
    from .magics import LlamaMagics

    ipython.register_magics(LlamaMagics)
    _formatter(ipython).for_type(dict, _response_html)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Undo `load_ipython_extension`; models stay open. `%unload_ext` calls it.

    Args:
        ipython: The shell.
    """
    for kind in ("line", "cell"):
        ipython.magics_manager.magics[kind].pop("llama", None)
    ipython.magics_manager.registry.pop("LlamaMagics", None)
    _formatter(ipython).pop(dict, None)


def _formatter(ipython: InteractiveShell) -> Any:
    display_formatter: Any = ipython.display_formatter
    return display_formatter.formatters[_HTML]


def _response_html(value: dict[str, object]) -> str | None:
    """Return the HTML of a response; None: it is another dict."""
    return _html_of(value) if is_response(value) else None
