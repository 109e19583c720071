"""Items of the output, and usage, in the shapes of the Responses API."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from ...api.types import ChatCompletionLogprobToken, CompletionUsage
    from ..response_store import Item

__all__ = ["Kind", "OutputItem", "new_id", "read_encrypted", "response_usage"]

Kind: TypeAlias = Literal["message", "reasoning", "function_call"]

_PREFIXES: Mapping[Kind, str] = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_ENCODED = "llama-cffi:"


def new_id(prefix: str) -> str:
    """Return a new id, which nobody can guess."""
    return f"{prefix}_{secrets.token_hex(24)}"


class OutputItem:
    """An item of the output while it is generated.

    Args:
        kind: Its type.
        call: Id and name of a function call.
        encrypts: Whether reasoning is given as `encrypted_content`, too.

    Attributes:
        kind: Its type.
        id: Its id.
    """

    def __init__(
        self, kind: Kind, call: Mapping[str, str] | None = None, encrypts: bool = False
    ) -> None:
        self.kind: Kind = kind
        self.id = new_id(_PREFIXES[kind])
        self._call, self._encrypts = call or {}, encrypts
        self._pieces: list[str] = []
        self._logprobs: list[Item] = []

    @property
    def text(self) -> str:
        """The text so far, or the arguments."""
        return "".join(self._pieces)

    def add(self, text: str, logprobs: Iterable[ChatCompletionLogprobToken] = ()) -> None:
        """Add text, with the log-probabilities of its tokens."""
        self._pieces.append(text)
        self._logprobs += [{**each} for each in logprobs]

    def event_logprobs(self, n_last: int | None = None) -> list[Item]:
        """Return the log-probabilities in the shape that events have, which is without bytes.

        Args:
            n_last: Only those of this many last tokens; None: of all.
        """
        found = self._logprobs if n_last is None else self._logprobs[len(self._logprobs) - n_last :]
        return [
            {**_without_bytes(each), "top_logprobs": [*map(_without_bytes, each["top_logprobs"])]}
            for each in found
        ]

    def part(self) -> Item:
        """Return the content part with the text so far."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        logprobs = [*self._logprobs]
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": logprobs,
        }

    def as_dict(self, status: Literal["in_progress", "completed", "incomplete"]) -> Item:
        """Return the item; without content while it is `in_progress`."""
        item: Item = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            return {**item, **self._call, "arguments": self.text}
        content = [] if status == "in_progress" else [self.part()]
        if self.kind == "message":
            return {**item, "role": "assistant", "content": content}
        item.update(summary=[], content=content)
        if self._encrypts and content:
            item["encrypted_content"] = _encrypted(self.text)
        return item


def _without_bytes(logprob: Mapping[str, Any]) -> Item:
    return {"token": logprob["token"], "logprob": logprob["logprob"]}


def _encrypted(text: str) -> str:
    """Return reasoning as `encrypted_content`: encoded only, for it is in `content`, too.

    Clients such as Codex CLI send back nothing else of the reasoning.
    """
    return _ENCODED + base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def read_encrypted(encrypted: str) -> str:
    """Return the reasoning in `encrypted_content`; "" if another server wrote it."""
    if not encrypted.startswith(_ENCODED):
        return ""
    try:
        return base64.b64decode(encrypted.removeprefix(_ENCODED), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def response_usage(usage: CompletionUsage) -> Item:
    """Return the usage of a chat completion in the shape of the Responses API."""
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    reasoning = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        # Nothing is written to a cache that would be charged for.
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }
