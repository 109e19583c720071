"""Identifies a model's family: its tool format, its reasoning, its recommended sampling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import ValidationError
from .family_table import FAMILY_TABLE, FamilyRow, ThinkingMode
from .formats import ToolFormat, detect_format, get_format

__all__ = ["Family", "identify"]

_NAMES = ("name", "basename", "finetune", "base_model.0.name", "quantized_by")
_SWITCHES = ("enable_thinking", "thinking")
_GENERIC = FamilyRow("generic", "", "")


@dataclass(frozen=True)
class Family:
    """A model's family.

    Attributes:
        name: Name of the family, such as ``qwen``; ``generic`` if unknown.
        version: The version or variant, such as ``3-instruct``; "" if unknown.
        tool_format: How the model writes tool calls, according to its chat template, else its
            family.
        reasoning: The markers before and after reasoning; None if the model never thinks.
        thinking: When the model thinks: `default` (unless told not to), `request`, `always`,
            `never`.
        switch: The chat template's variable that turns thinking on and off, or None.
        tags: The words at the end of a user message that turn thinking on and off, or None.
        sampling: Recommended sampling options without thinking, named as in `SamplingParams`; may
            be empty.
        thinking_sampling: Recommended sampling options with thinking; may be empty.
        stops: Strings that end an answer, for model files that do not mark them as such.
        source: The page that recommends the sampling options, or "".
    """

    name: str
    version: str
    tool_format: ToolFormat
    reasoning: tuple[str, str] | None
    thinking: ThinkingMode
    switch: str | None
    tags: tuple[str, str] | None
    sampling: Mapping[str, float]
    thinking_sampling: Mapping[str, float]
    stops: tuple[str, ...]
    source: str

    def thinks(self, thinking: bool | None = None) -> bool:
        """Return whether the model thinks.

        Args:
            thinking: What the caller asked for; None: the model's default.

        Raises:
            ValidationError: The model cannot do what was asked for.
        """
        default = self.thinking in ("default", "always")
        if thinking is None or thinking == default:
            return default
        if self.thinking in ("always", "never"):
            family = f"{self.name} {self.version}".rstrip()
            known = "this model" if family == "generic" else f"a model of the family {family}"
            raise ValidationError(f"{known} {self.thinking} thinks; leave out thinking={thinking}")
        return thinking

    def template_kwargs(self, thinking: bool | None = None) -> dict[str, bool]:
        """Return the chat template's variables for *thinking*; see `thinks`."""
        wanted = self.thinks(thinking)
        return {} if thinking is None or self.switch is None else {self.switch: wanted}

    def tag(self, thinking: bool | None = None) -> str:
        """Return the tag to append to the user's message; "" if none is needed.

        Raises:
            ValidationError: Thinking cannot be turned on, or off.
        """
        wanted = self.thinks(thinking)
        if thinking is None or self.switch is not None or self.tags is None:
            return ""
        return self.tags[0] if wanted else self.tags[1]

    def recommended(self, thinking: bool | None = None) -> Mapping[str, float]:
        """Return the recommended sampling options for *thinking*; see `thinks`."""
        return self.thinking_sampling if self.thinks(thinking) else self.sampling


def identify(
    metadata: Mapping[str, str],
    file_name: str,
    template: str | None = None,
    *,
    tool_template: str | None = None,
) -> Family:
    """Identify a model's family.

    The names in the metadata are matched first, then the file name, then the architecture. The chat
    template determines the tool format and whether thinking can be switched.

    Args:
        metadata: The GGUF's metadata; `general.name`, `general.basename`, `general.finetune`,
            `general.base_model.0.name`, `general.quantized_by` and `general.architecture` are read.
        file_name: Name or path of the file.
        template: Source of the chat template; None if there is none.
        tool_template: Source of the chat template for conversations with tools; None: *template*.
    """
    row = _row(metadata, file_name)
    detected = detect_format(tool_template or template)
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


def _row(metadata: Mapping[str, str], file_name: str) -> FamilyRow:
    for name in _candidates(metadata, file_name):
        for row in FAMILY_TABLE:
            if re.search(row.names, name):
                return row
    architecture = metadata.get("general.architecture", "")
    for row in FAMILY_TABLE:
        if row.architectures and re.fullmatch(row.architectures, architecture):
            return row
    return _GENERIC


def _candidates(metadata: Mapping[str, str], file_name: str) -> Iterator[str]:
    """Yield the normalised names to match, the most specific first."""
    names = [metadata.get(f"general.{key}") for key in _NAMES]
    for name in (" ".join(filter(None, names)), re.split(r"[\\/]", file_name)[-1]):
        yield re.sub(r"[^a-z0-9.]+", "-", name.lower())


def _thinking(row: FamilyRow, template: str | None) -> tuple[ThinkingMode, str | None]:
    """Return when the model thinks, and its switch; the template overrides the table."""
    if template is None:
        return row.thinking, row.switch
    found = [name for name in _SWITCHES if re.search(rf"\b{name}\b", _code(template))]
    switch = row.switch if row.switch in found else next(iter(found), None)
    if switch:
        return (row.thinking if row.switch else "default"), switch
    # Without a switch, the prompt of a model that always thinks ends with the marker.
    if "<think>" in template[-300:] and "</think>" not in template[-300:]:
        return "always", None
    is_switched = row.thinking in ("default", "request") and not row.tags
    return ("never" if is_switched else row.thinking), None


def _code(template: str) -> str:
    """Return the template's code without its text, strings and comments."""
    code = "".join(re.findall(r"\{%.*?%\}|\{\{.*?\}\}", template, re.S))
    return re.sub(r"'[^']*'|\"[^\"]*\"|\.\w+", "", code)
