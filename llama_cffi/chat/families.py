"""Which family a model is of, and what follows for its prompts, its sampling and its answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..errors import ValidationError
from .family_table import ROWS, Row, Thinking
from .formats import ToolFormat, detect_format, get_format

__all__ = ["Family", "identify"]

_NAMES = ("name", "basename", "finetune", "base_model.0.name", "quantized_by")
_SWITCHES = ("enable_thinking", "thinking")
_GENERIC = Row("generic", "", "")


@dataclass(frozen=True)
class Family:
    """What is known about a model's family.

    Attributes:
        name: e.g. ``qwen``; ``generic`` where nothing is known.
        version: e.g. ``3-instruct``; "" where not known.
        tool_format: How it writes tool calls: told by the chat template, else by the family.
        reasoning: The markers around a thought, or None for a model that never thinks.
        thinking: `default` (it thinks unless told not to), `request`, `always` or `never`.
        switch: The variable of the chat template that turns thinking on and off, or None.
        tags: The words at the end of a user's message that do so, or None.
        sampling: Recommended options without thinking, named as in `SamplingParams`; may be empty.
        thinking_sampling: The same with thinking.
        stops: Texts that end an answer, for model files that do not mark them as such.
        source: The page that recommends all this, or "".
    """

    name: str
    version: str
    tool_format: ToolFormat
    reasoning: tuple[str, str] | None
    thinking: Thinking
    switch: str | None
    tags: tuple[str, str] | None
    sampling: Mapping[str, float]
    thinking_sampling: Mapping[str, float]
    stops: tuple[str, ...]
    source: str

    def thinks(self, thinking: bool | None = None) -> bool:
        """Say whether it will think when asked for *thinking*; None is its own default.

        Raises:
            ValidationError: It cannot be turned on, or off.
        """
        default = self.thinking in ("default", "always")
        if thinking is None or thinking == default:
            return default
        if self.thinking in ("always", "never"):
            raise ValidationError(
                f"a model of the family {self.name} {self.version}".rstrip()
                + f" {self.thinking} thinks; leave thinking= out"
            )
        return thinking

    def template_kwargs(self, thinking: bool | None = None) -> dict[str, Any]:
        """Return what the chat template has to be given for *thinking*; see `thinks`."""
        wanted = self.thinks(thinking)
        return {} if thinking is None or self.switch is None else {self.switch: wanted}

    def tag(self, thinking: bool | None = None) -> str:
        """Return the word to put at the end of the user's message, where no switch does it."""
        wanted = self.thinks(thinking)
        if thinking is None or self.switch is not None or self.tags is None:
            return ""
        return self.tags[0] if wanted else self.tags[1]

    def recommended(self, thinking: bool | None = None) -> Mapping[str, float]:
        """Return the recommended sampling options for *thinking*; see `thinks`."""
        return self.thinking_sampling if self.thinks(thinking) else self.sampling


def identify(metadata: Mapping[str, str], file_name: str, template: str | None = None) -> Family:
    """Find out the family of a model.

    The names in the metadata count first, then the file's name, then the architecture. The chat
    template tells the tool format, and whether thinking can be switched.

    Args:
        metadata: Of the GGUF; `general.name`, `general.basename`, `general.finetune` and
            `general.architecture` are read.
        file_name: With or without folders.
        template: The chat template's source.
    """
    row = _row(metadata, file_name)
    detected = detect_format(template)
    tool_format = detected if detected.name != "generic" else get_format(row.tool_format)
    thinking, switch = _thinking(row, template)
    tags = row.tags
    if thinking in ("always", "never"):
        switch = tags = None
    return Family(
        name=row.family,
        version=row.version,
        tool_format=tool_format,
        reasoning=None if thinking == "never" else tool_format.reasoning,
        thinking=thinking,
        switch=switch,
        tags=tags,
        sampling=MappingProxyType(dict(row.sampling)),
        thinking_sampling=MappingProxyType(dict(row.thinking_sampling)),
        stops=row.stops,
        source=row.source,
    )


def _row(metadata: Mapping[str, str], file_name: str) -> Row:
    for name in _candidates(metadata, file_name):
        for row in ROWS:
            if re.search(row.names, name):
                return row
    architecture = metadata.get("general.architecture", "")
    for row in ROWS:
        if row.architectures and re.fullmatch(row.architectures, architecture):
            return row
    return _GENERIC


def _candidates(metadata: Mapping[str, str], file_name: str) -> Iterator[str]:
    """Return the names to look at, the more telling first, in one spelling."""
    names = [metadata.get(f"general.{key}") for key in _NAMES]
    for name in (" ".join(filter(None, names)), re.split(r"[\\/]", file_name)[-1]):
        yield re.sub(r"[^a-z0-9.]+", "-", name.lower())


def _thinking(row: Row, template: str | None) -> tuple[Thinking, str | None]:
    """Say whether the model thinks and what switches it; the template knows better than a name."""
    if template is None:
        return row.thinking, row.switch
    found = [name for name in _SWITCHES if re.search(rf"\b{name}\b", _code(template))]
    switch = row.switch if row.switch in found else next(iter(found), None)
    if switch:
        return (row.thinking if row.switch else "default"), switch
    # A kind that cannot be switched; if it always thinks, its prompt ends with the marker.
    if "<think>" in template[-300:] and "</think>" not in template[-300:]:
        return "always", None
    is_switched = row.thinking in ("default", "request") and not row.tags
    return ("never" if is_switched else row.thinking), None


def _code(template: str) -> str:
    """Return the template's code without its texts and comments."""
    code = "".join(re.findall(r"\{%.*?%\}|\{\{.*?\}\}", template, re.S))
    return re.sub(r"'[^']*'|\"[^\"]*\"|\.\w+", "", code)
