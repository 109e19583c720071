"""TokenWidget: an answer as tokens on tints, of which another one can be chosen.

anywidget, in the extra `notebook`, shows it in Jupyter, JupyterLab, Colab and VS Code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CancelledError, LlamaError, ValidationError
from ..generation.cancellation import CancelScope
from ..validation import shown
from .regeneration import ChosenToken, Regeneration
from .token_logprobs import visible

try:
    import anywidget
    import traitlets
except ImportError:
    raise LlamaError("the widget needs anywidget: pip install 'llama-cffi[notebook]'") from None

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..api.chat_completions import Message, MoreChatCompletionOptions
    from ..api.llama import Llama

__all__ = ["TokenWidget"]

_INTERVAL_S = 0.2  # between updates while tokens come: each sends all of them


class TokenWidget(anywidget.AnyWidget):
    """Generates an answer and shows its tokens by their probability.

    Choosing an alternative of a token continues the answer from there; the prompt and the tokens
    before it are reused from the KV cache. Tokens are generated in a thread, so the kernel is free
    meanwhile.

    Args:
        llm: The model.
        prompt: The user's message, or a conversation.
        n_alternatives: Alternatives that are shown for each token, 1 to 20.
        max_tokens: Most tokens of the answer.
        **options: See `MoreChatCompletionOptions`; without tools, grammars and response formats.

    Attributes:
        tokens: What is shown of each token: its text, probability and alternatives.
        status: `running`, `done`, `stopped`, or `error`.
        message: Why it failed.

    Raises:
        ValidationError: An argument is out of range.
    """

    _esm = Path(__file__).parent / "widget.js"
    tokens: traitlets.List[dict[str, object]] = traitlets.List().tag(sync=True)
    status = traitlets.Unicode("done").tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        llm: Llama,
        prompt: str | Sequence[Message],
        *,
        n_alternatives: int = 8,
        max_tokens: int = 256,
        **options: Unpack[MoreChatCompletionOptions],
    ) -> None:
        self._thread: threading.Thread | None = None
        self._scope = CancelScope()
        self._turn = threading.RLock()  # one change after another
        self._answer = Regeneration(llm, prompt, n_alternatives, max_tokens, **options)
        super().__init__()
        self.on_msg(self._receive)
        self._start()

    def __repr__(self) -> str:
        text = "".join(token.chosen.text for token in self._answer.tokens)
        return f"<TokenWidget {self.status}: {shown(text)}>"

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._answer.text

    def choose(self, index: int, choice: int) -> None:
        """Take another alternative of a token and generate what follows it.

        Args:
            index: The token.
            choice: The alternative.

        Raises:
            ValidationError: There is no such token or alternative.
        """
        with self._turn:
            self.stop()
            self._answer.choose(index, choice)
            self._start()

    def regenerate(self) -> None:
        """Generate another answer; the same one if a seed was given or the temperature is 0."""
        with self._turn:
            self.stop()
            self._answer.tokens.clear()
            self._start()

    def stop(self) -> None:
        """End the generation; the tokens until then stay. Without one, nothing happens."""
        with self._turn:
            self._scope.cancel()
            self.wait()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the generation; return whether it has ended.

        Args:
            timeout_s: Most seconds to wait; None: no limit.
        """
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def close(self) -> None:
        """End the generation and remove the widget from the page."""
        self.stop()
        super().close()

    def _start(self) -> None:
        self._scope = scope = CancelScope()
        self.message, self.status = "", "running"
        self._show()
        self._thread = threading.Thread(
            target=self._generate, args=(scope,), name="llama_cffi-widget", daemon=True
        )
        self._thread.start()

    def _generate(self, scope: CancelScope) -> None:
        next_s = time.monotonic() + _INTERVAL_S
        status, message = "done", ""
        try:
            with scope:
                for _ in self._answer.run():
                    if time.monotonic() >= next_s:
                        self._show()
                        next_s = time.monotonic() + _INTERVAL_S
        except CancelledError:
            status = "stopped"
        except Exception as error:
            status, message = "error", str(error)
        self._show()
        self.message, self.status = message, status

    def _show(self) -> None:
        self.tokens = [_shown(token) for token in self._answer.tokens]

    def _receive(self, _: object, content: Any, buffers: object) -> None:
        """Do what a front end asks for."""
        asked: dict[str, Any] = content if isinstance(content, dict) else {}
        kind = asked.get("type")
        try:
            if kind == "choose":
                self.choose(asked.get("index", -1), asked.get("choice", -1))
            elif kind == "regenerate":
                self.regenerate()
            elif kind == "stop":
                self.stop()
        except ValidationError:
            pass  # the token was replaced before the message came


def _shown(token: ChosenToken) -> dict[str, object]:
    return {
        "text": "".join(map(_drawn, token.chosen.text)),
        "label": visible(token.chosen.text),
        "p": token.chosen.probability,
        "choice": token.choice,
        "alternatives": [[visible(each.text), each.probability] for each in token.alternatives],
    }


def _drawn(char: str) -> str:
    if char == "\n":
        return "⏎\n"
    return char if char.isprintable() or char == "\t" else visible(char)
