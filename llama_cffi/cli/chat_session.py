"""The state of a chat in the terminal: messages, settings, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_files import replacing
from ..errors import LlamaError, ValidationError
from ..generation.sampling_params import SamplingOptions, SamplingParams
from ..validation import check_int, reject_unknown
from .media import Attachment, content_of

if TYPE_CHECKING:
    from ..api.llama import Llama

__all__ = ["ChatSession", "Message"]

_OWN = ("max_tokens", "stop", "thinking", "thinking_budget", "reasoning_effort")
_VERSION = 1


@dataclass(frozen=True)
class Message:
    """A message of a conversation.

    Attributes:
        role: `user` or `assistant`.
        text: Its text.
        media: The pictures and sounds before it.
    """

    role: str
    text: str
    media: tuple[Attachment, ...] = ()

    def as_openai(self) -> dict[str, Any]:
        """Return it in OpenAI's format."""
        return {"role": self.role, "content": content_of(self.text, [*self.media])}

    def saved(self) -> dict[str, Any]:
        """Return what is kept in a file: of pictures and sounds a reference."""
        found: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.media:
            found["media"] = [one.saved() for one in self.media]
        return found

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> Message:
        """Return the message that `saved` has kept.

        Raises:
            LlamaError: See `Attachment.restore`.
        """
        media = tuple(map(Attachment.restore, saved.get("media", ())))
        return cls(str(saved["role"]), str(saved["content"]), media)


class ChatSession:
    """A conversation with a model.

    Args:
        llm: The model.
        system: The system prompt; may be empty.
        settings: Options of `Llama.create_chat_completion`.

    Attributes:
        messages: The conversation without the system prompt.
        system: The system prompt.
        settings: Options of the next answer.
    """

    def __init__(self, llm: Llama, system: str, settings: dict[str, Any]) -> None:
        self._llm = llm
        self.system, self.settings = system, settings
        self.messages: list[Message] = []

    @staticmethod
    def message(text: str, media: Sequence[Attachment] = ()) -> Message:
        """Return a message of the user."""
        return Message("user", text, tuple(media))

    def answer(self, message: Message) -> Iterator[tuple[str, str]]:
        """Answer *message*; yield `content` or `reasoning_content`, and text.

        When the iteration ends or is left, the conversation has what was generated. Nothing is
        kept of a message that got no answer.
        """
        self.messages.append(message)
        content: list[str] = []
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            chunks: Any = self._llm.create_chat_completion(
                [*system, *(m.as_openai() for m in self.messages)], stream=True, **self.settings
            )
            with closing(chunks):
                for chunk in chunks:
                    delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
                    for kind in ("reasoning_content", "content"):
                        if text := delta.get(kind):
                            if kind == "content":
                                content.append(text)
                            yield kind, text
        finally:
            if content:
                self.messages.append(Message("assistant", "".join(content)))
            else:
                self.messages.pop()

    def last_prompt(self) -> Message | None:
        """Remove the last exchange; return what the user said, None: there is none."""
        while self.messages and self.messages[-1].role != "user":
            self.messages.pop()
        return self.messages.pop() if self.messages else None

    def set(self, name: str, value: object) -> None:
        """Change an option of the next answers.

        Raises:
            ValidationError: It does not exist, or the value is out of range.
        """
        known = [*SamplingOptions.__annotations__, *_OWN]
        reject_unknown({name: value}, known, "/set")
        if name == "max_tokens" and value not in (None, -1):
            check_int(name, value, 1)  # type: ignore[arg-type]
        elif name not in _OWN:
            SamplingParams(**{name: value})  # type: ignore[arg-type]
        self.settings[name] = value

    def save(self, path: Path) -> None:
        """Write the session to a file that only its owner may read.

        Raises:
            ValidationError: It cannot be written.
        """
        whole = {
            "version": _VERSION,
            "model": self._llm.model_path,
            "system": self.system,
            "settings": self.settings,
            "messages": [message.saved() for message in self.messages],
        }
        try:
            with replacing(path) as file:  # created with mode 0600
                file.write(json.dumps(whole, indent=2, ensure_ascii=False).encode())
        except OSError as e:
            raise ValidationError(f"cannot write {path}: {e.strerror or e}") from None

    def load(self, path: Path) -> None:
        """Take over the conversation, system prompt and settings of a file.

        Raises:
            ValidationError: It cannot be read, or is no session; or a picture or sound of it is
                gone or has changed.
            LlamaError: See `Attachment.restore`.
        """
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            messages = [Message.restore(saved) for saved in whole["messages"]]
            system, settings = str(whole["system"]), dict(whole["settings"])
        except LlamaError:
            raise
        except OSError as e:
            raise ValidationError(f"cannot read {path}: {e.strerror or e}") from None
        except (ValueError, KeyError, TypeError):
            raise ValidationError(
                f"{path} is not a session of `llama-cffi chat`; /save and --session write them"
            ) from None
        self.messages, self.system = messages, system
        for name, value in settings.items():
            self.set(name, value)
