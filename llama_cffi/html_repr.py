"""`_repr_html_` of objects, for notebooks; `llama_cffi.notebook` makes the HTML."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module

__all__ = ["shown_by"]

_log = logging.getLogger(__name__)


def shown_by(view: str) -> Callable[[object], str | None]:
    """Return a `_repr_html_` that calls a function of `llama_cffi.notebook.views`.

    It never raises: on an error it returns None, and the notebook shows the text.

    Args:
        view: The name of the function.
    """

    def _repr_html_(self: object) -> str | None:
        try:
            # By name: the notebook is a layer above all that it shows.
            views = import_module("llama_cffi.notebook.views")
            html: str = getattr(views, view)(self)
        except Exception:
            _log.debug("a %s is shown as text", type(self).__name__, exc_info=True)
            return None
        return html

    return _repr_html_
