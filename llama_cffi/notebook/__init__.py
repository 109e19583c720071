"""Notebooks: objects shown as HTML, plots, and the magics of `%load_ext llama_cffi`.

html.py            what every view is made of: escaped text, tables, bars, tokens on tints
views.py           the HTML of each object; `_repr_html_` of its class calls it (html_repr.py)
media.py           pictures and sounds in them
display.py         `show`: what has no class of its own, such as OpenAI's responses
collector.py       the chunks of a streamed answer, together
magics.py          `%llama` and `%%llama`
extension.py       registers the magics; IPython is imported only there and in the magics
token_logprobs.py  the log-probabilities in an answer
regeneration.py    an answer that is continued from any token with another choice
widget.py          shows it with anywidget; its front end is widget.js
plots.py           the scheduler's steps, bench results and log-probabilities, with matplotlib
"""

from .display import Shown, show, show_tokens

__all__ = ["Shown", "show", "show_tokens"]
