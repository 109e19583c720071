"""From the steps of one answer to OpenAI's message, whole or in deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..chat.reasoning import ReasoningSplitter
from .running import finish_reason

if TYPE_CHECKING:
    from ..binding import Vocab
    from ..generation.logprobs import Logprob
    from ..generation.sequence import Step
    from ..generation.stats import GenerationStats
    from .types import (
        ChatCompletionLogprobs,
        ChatCompletionResponseChoice,
        ChatCompletionStreamResponseChoice,
        ChatCompletionTopLogprobToken,
    )

__all__ = ["ChatAssembler", "DocumentReader", "FirstCall", "PlainReader"]

Delta = dict[str, Any]


class PlainReader:
    """Splits an answer without tools into reasoning and content."""

    def __init__(self, splitter: ReasoningSplitter) -> None:
        self._splitter = splitter

    def push(self, text: str) -> list[Delta]:
        """Add text and return the new deltas."""
        return self._deltas(self._splitter.push(text))

    def finish(self) -> list[Delta]:
        """Return the deltas of the text that was held back."""
        return self._deltas(self._splitter.finish())

    def _deltas(self, pieces: Any) -> list[Delta]:
        names = {"reasoning": "reasoning_content", "content": "content"}
        return [{names[piece.kind]: piece.text} for piece in pieces]


class DocumentReader:
    """Splits an answer whose content is held to a grammar; the content is read verbatim.

    Args:
        head: Reads the text before the content.
        marks: The first of them begins the content; none: all is content.
        is_included: Whether the mark is part of the content.
    """

    def __init__(self, head: Any, marks: Sequence[str], is_included: bool) -> None:
        self._head = head if marks else None
        self._marks, self._is_included = marks, is_included
        self._held = ""  # what may begin a mark

    def push(self, text: str) -> list[Delta]:
        """Add text and return the new deltas."""
        if self._head is None:
            return [{"content": text}] if text else []
        text = self._held + text
        found = [(at, mark) for mark in self._marks if (at := text.find(mark)) >= 0]
        if not found:
            longest = max(map(len, self._marks)) - 1
            ends = (text[at:] for at in range(max(0, len(text) - longest), len(text)))
            self._held = next((e for e in ends if any(m.startswith(e) for m in self._marks)), "")
            return [*self._head.push(text.removesuffix(self._held))]
        at, mark = min(found)
        end = at if self._is_included else at + len(mark)
        deltas = [*self._head.push(text[:end]), *self._head.finish()]
        self._head, self._held = None, ""
        return [*deltas, *self.push(text[end:])]

    def finish(self) -> list[Delta]:
        """Return the deltas of the text that was held back."""
        if self._head is None:
            return []
        return [*self._head.push(self._held), *self._head.finish()]


class FirstCall:
    """Drops all tool calls but the first.

    Args:
        reader: Splits text into reasoning, tool calls and content.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def push(self, text: str) -> list[Delta]:
        """Add text and return the new deltas."""
        return self._kept(self._reader.push(text))

    def finish(self) -> list[Delta]:
        """Return the deltas of the text that was held back."""
        return self._kept(self._reader.finish())

    def _kept(self, deltas: list[Delta]) -> list[Delta]:
        return [delta for delta in map(self._with_first, deltas) if delta]

    def _with_first(self, delta: Delta) -> Delta:
        if "tool_calls" not in delta:
            return delta
        first = [part for part in delta["tool_calls"] if part["index"] == 0]
        rest = {name: value for name, value in delta.items() if name != "tool_calls"}
        return {**rest, "tool_calls": first} if first else rest


class ChatAssembler:
    """Assembles one answer: `add` and `choice` for a whole one, `push` and `last` for chunks.

    Args:
        index: The answer's index.
        reader: Splits text into reasoning, tool calls and content.
        vocab: The model's vocabulary.
        has_stop_reason: Whether the last choice of a stream has `stop_reason`.

    Attributes:
        n_reasoning_tokens: Number of tokens up to the end of the reasoning, without the end marker.
    """

    def __init__(
        self, index: int, reader: Any, vocab: Vocab, has_stop_reason: bool = False
    ) -> None:
        self._index, self._reader, self._vocab = index, reader, vocab
        self._has_stop_reason = has_stop_reason
        self.n_reasoning_tokens = 0
        self._n_tokens = 0  # since the last delta
        self._scores: list[Logprob] = []
        self._has_calls = False
        # In parts, because a str that grows by each token would be copied for each token.
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[dict[str, Any], list[str]]] = []  # with their arguments

    def add(self, step: Step) -> None:
        """Add a step of the answer."""
        for delta in self._read(step):
            self._add(delta)

    def choice(self, stats: GenerationStats) -> ChatCompletionResponseChoice:
        """Return OpenAI's choice, after the last step."""
        for delta in self._counted(self._reader.finish()):
            self._add(delta)
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._calls:
            message.update(content=content or None, tool_calls=[_call(*c) for c in self._calls])
        choice: Any = {
            "index": self._index,
            "message": message,
            "logprobs": self._logprobs(),
            "finish_reason": self._finish_reason(stats),
        }
        return choice  # type: ignore[no-any-return]

    def first(self) -> ChatCompletionStreamResponseChoice:
        """Return the choice of the first chunk, with the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def push(self, step: Step) -> Iterator[ChatCompletionStreamResponseChoice]:
        """Yield the choices of the chunks of a step."""
        for delta in self._read(step):
            yield self._chunk(delta)

    def last(self, stats: GenerationStats) -> Iterator[ChatCompletionStreamResponseChoice]:
        """Yield the choices of the last chunks, after the last step."""
        for delta in self._counted(self._reader.finish()):
            yield self._chunk(delta)
        if self._scores:
            yield self._chunk({})
        last = self._chunk({}, self._finish_reason(stats))
        if self._has_stop_reason:
            last["stop_reason"] = stats.stop or None
        yield last

    def _read(self, step: Step) -> list[Delta]:
        if step.logprob is not None:
            self._scores.append(step.logprob)
        self._n_tokens += step.token is not None
        return self._counted(self._reader.push(step.text))

    def _counted(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            if "reasoning_content" in delta:
                self.n_reasoning_tokens += self._n_tokens
            self._n_tokens = 0
        return deltas

    def _finish_reason(self, stats: GenerationStats) -> str:
        reason = finish_reason(stats)
        return "tool_calls" if self._has_calls and reason == "stop" else reason

    def _chunk(self, delta: Delta, reason: str | None = None) -> ChatCompletionStreamResponseChoice:
        self._has_calls = self._has_calls or "tool_calls" in delta
        logprobs = self._logprobs()
        self._scores = []
        choice: Any = {
            "index": self._index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        return choice  # type: ignore[no-any-return]

    def _add(self, delta: Delta) -> None:
        self._has_calls = self._has_calls or "tool_calls" in delta
        self._content.append(delta.get("content") or "")
        self._reasoning.append(delta.get("reasoning_content") or "")
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(self._calls):
                self._calls.append((part, []))
            arguments = part.get("function", {}).get("arguments", "")
            self._calls[part["index"]][1].append(arguments)

    def _logprobs(self) -> ChatCompletionLogprobs | None:
        if not self._scores:
            return None
        return {"content": [self._logprob(score) for score in self._scores], "refusal": None}

    def _logprob(self, score: Logprob) -> Any:
        top = [self._token(token, value) for token, value in score.top]
        return {**self._token(score.token, score.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> ChatCompletionTopLogprobToken:
        piece = self._vocab.token_to_piece(token, True)
        return {
            "token": piece.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": list(piece),
        }


def _call(first: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Return a call of which the first delta and the arguments are known."""
    name = first.get("function", {}).get("name", "")
    function = {"name": name, "arguments": "".join(arguments)}
    return {"id": first["id"], "type": "function", "function": function}
