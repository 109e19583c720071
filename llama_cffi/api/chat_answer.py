"""One answer of a chat: the text of a run -> OpenAI's message, whole or in deltas."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..chat.reasoning import ReasoningSplitter
from .completions import finish_reason

if TYPE_CHECKING:
    from ..generation.logprobs import Logprob
    from ..generation.sequence import Step
    from ..generation.stats import GenerationStats

__all__ = ["ChatAnswer", "PlainReader", "chunks"]

Delta = dict[str, Any]


class PlainReader:
    """Reads an answer to which no tools were offered: a thought and content."""

    def __init__(self, splitter: ReasoningSplitter) -> None:
        self._splitter = splitter

    def push(self, text: str) -> list[Delta]:
        """Take text and return what it settles."""
        return self._deltas(self._splitter.push(text))

    def finish(self) -> list[Delta]:
        """Return what was held back."""
        return self._deltas(self._splitter.finish())

    def _deltas(self, pieces: Any) -> list[Delta]:
        names = {"reasoning": "reasoning_content", "content": "content"}
        return [{names[piece.kind]: piece.text} for piece in pieces]


class ChatAnswer:
    """One answer, as deltas or whole."""

    def __init__(
        self,
        run: Generator[Step, None, GenerationStats],
        reader: Any,
        logprobs: Callable[[Sequence[Logprob]], Any],
    ) -> None:
        self._run, self._reader, self._logprobs = run, reader, logprobs
        self._called = False
        self.stats: GenerationStats

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for why it ended."""
        reason = finish_reason(self.stats)
        return "tool_calls" if self._called and reason == "stop" else reason

    def deltas(self) -> Iterator[tuple[Delta, list[Logprob]]]:
        """Give deltas with the log-probabilities of the tokens that they came from."""
        scores: list[Logprob] = []
        try:
            while True:
                try:
                    event = next(self._run)
                except StopIteration as e:
                    self.stats = e.value
                    break
                if event.logprob is not None:
                    scores.append(event.logprob)
                for delta in self._reader.push(event.text):
                    yield self._seen(delta), scores
                    scores = []
            for delta in self._reader.finish():
                yield self._seen(delta), scores
                scores = []
            if scores:
                yield {}, scores
        finally:
            self._run.close()

    def whole(self, index: int) -> Any:
        """Return OpenAI's choice."""
        content = thought = ""
        calls: list[Any] = []
        scores: list[Logprob] = []
        for delta, found in self.deltas():
            scores += found
            content += delta.get("content") or ""
            thought += delta.get("reasoning_content") or ""
            for part in delta.get("tool_calls", ()):
                _add_call(calls, part)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message.update(content=content or None, tool_calls=calls)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(scores),
            "finish_reason": self.finish_reason,
        }

    def chunks(self, index: int) -> Iterator[Any]:
        """Give the choices of OpenAI's chunks."""
        role = {"role": "assistant", "content": ""}
        yield {"index": index, "delta": role, "logprobs": None, "finish_reason": None}
        for delta, found in self.deltas():
            logprobs = self._logprobs(found)
            yield {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        reason = self.finish_reason
        yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}

    def _seen(self, delta: Delta) -> Delta:
        self._called = self._called or "tool_calls" in delta
        return delta


def chunks(base: dict[str, Any], answers: Sequence[ChatAnswer]) -> Iterator[Any]:
    """Give OpenAI's chunks of *answers*, one after the other."""
    for index, answer in enumerate(answers):
        for choice in answer.chunks(index):
            yield {**base, "choices": [choice]}


def _add_call(calls: list[Any], part: Mapping[str, Any]) -> None:
    """Add a part of a call, as a delta has it, to those that were begun."""
    function = part.get("function", {})
    if part["index"] == len(calls):
        new = {"name": function.get("name", ""), "arguments": function.get("arguments", "")}
        calls.append({"id": part["id"], "type": "function", "function": new})
    else:
        calls[part["index"]]["function"]["arguments"] += function.get("arguments", "")
