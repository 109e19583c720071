"""Triggers of lazy grammars: words, token ids and patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TypeAlias

from ...errors import ValidationError

__all__ = ["TriggerLike", "check_triggers", "pattern_start"]

TriggerLike: TypeAlias = "str | int | re.Pattern[str]"


def check_triggers(name: str, triggers: Sequence[TriggerLike]) -> tuple[TriggerLike, ...]:
    """Return *triggers* as a tuple of words, token ids and patterns.

    Raises:
        ValidationError: One is empty, or none of these.
    """
    if isinstance(triggers, (str, bytes)) or not hasattr(triggers, "__iter__"):
        raise ValidationError(
            f"{name}={triggers!r} must be a list of str, token ids and compiled patterns"
        )
    known: list[TriggerLike] = []
    for trigger in triggers:
        if isinstance(trigger, re.Pattern) and isinstance(trigger.pattern, str):
            known.append(trigger)
        elif isinstance(trigger, Integral) and not isinstance(trigger, bool) and int(trigger) >= 0:
            known.append(int(trigger))
        elif not isinstance(trigger, str):
            raise ValidationError(
                f"{name}: {trigger!r} must be a str, a token id or a compiled pattern"
            )
        elif not trigger:
            raise ValidationError(f"{name}: a trigger must not be empty")
        else:
            known.append(trigger)
    return tuple(known)


def pattern_start(patterns: Iterable[re.Pattern[str]], text: bytes) -> int | None:
    """Return where in *text* the grammar starts; None: no pattern matches.

    That is the beginning of the first group that took part in the match, or else of the match, as
    in llama.cpp.

    Args:
        patterns: They may match anywhere in the text; the earliest start counts.
        text: UTF-8, the whole text so far; its last character may be incomplete.
    """
    decoded = text.decode("utf-8", "surrogateescape")
    starts = []
    for pattern in patterns:
        match = pattern.search(decoded)
        if match is not None:
            taken = [i for i, group in enumerate(match.groups(), 1) if group is not None]
            starts.append(match.start(taken[0] if taken else 0))
    if not starts:
        return None
    return len(decoded[: min(starts)].encode("utf-8", "surrogateescape"))
