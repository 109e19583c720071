"""The HTML of each object. `_repr_html_` of its class calls the function here, by name.

Views are cheap: they read what the object has, run no model and load nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import html, media
from .html import badge, bar, block, chip, details, dim, escape, label, paragraph, stack, table
from .token_logprobs import token_logprobs

if TYPE_CHECKING:
    from ..binding.loading.abi import AbiIdentity
    from ..binding.loading.library import Library
    from ..decisions import Answer, Decision
    from ..doctor import Check
    from ..libs_fetch import InstalledBuild
    from ..media import Audio, Image
    from ..memory_plan import DevicePlan, MemoryPlan

__all__ = [
    "abi",
    "answer",
    "build",
    "check",
    "checks",
    "decision",
    "decisions",
    "fields",
    "library",
    "memory_plan",
    "picture",
    "plain_content",
    "response",
    "response_note",
    "sound",
    "transcript",
    "unfinished",
]

_ENDS = {
    "length": ("cut off by max_tokens or the context size", "warn"),
    None: ("stopped before its end", "warn"),
}


# OpenAI's responses


def response(found: Mapping[str, Any]) -> str:
    """Return a response of a completion or a chat, whole or a choice of it."""
    choices = found.get("choices") or [found]
    parts: list[str] = []
    is_scored = not (found.get("usage") or {}).get("completion_tokens", 1)  # only the prompt
    for choice in choices:
        if len(choices) > 1:
            parts.append(dim(f"answer {choice.get('index', 0) + 1}"))
        parts += _choice(choice)
        if (reason := choice.get("finish_reason")) in _ENDS and not is_scored:
            parts.append(badge(*_ENDS[reason]))
    return block(*parts, dim(response_note(found)))


def _choice(choice: Mapping[str, Any]) -> list[str]:
    message = choice.get("message") or {"content": choice.get("text")}
    parts = [_message(message)]
    found: Any = choice
    if choice.get("logprobs") and (tokens := token_logprobs(found)):
        parts.append(html.heat_map(tokens))
    return parts


def response_note(found: Mapping[str, Any]) -> str:
    """Return the counts and timings of a response, a text."""
    usage, timings = found.get("usage") or {}, found.get("timings") or {}
    parts = []
    n_prompt = usage.get("prompt_tokens", timings.get("prompt_n"))
    if n_prompt:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        part = f"prompt {n_prompt:,} tokens" + (f" ({cached:,} cached)" if cached else "")
        parts.append(part + _speed(timings.get("prompt_per_second")))
    if (n := usage.get("completion_tokens", timings.get("predicted_n"))) is not None:
        reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
        part = f"answer {n:,} tokens" + (f" ({reasoning:,} of reasoning)" if reasoning else "")
        parts.append(part + _speed(timings.get("predicted_per_second")))
    if timings.get("prompt_ms"):
        parts.append(f"first token after {timings['prompt_ms']:,.0f} ms")
    return "; ".join(parts)


def _speed(tokens_per_s: float | None) -> str:
    return f", {tokens_per_s:,.1f} tokens/s" if tokens_per_s else ""


# Conversations


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a conversation in OpenAI's format."""
    roles = {"system": "warn", "developer": "warn", "assistant": "ok"}
    return block(
        *(
            f'<div style="margin-bottom:.2em">'
            f"{badge(message.get('role', '?'), roles.get(str(message.get('role')), 'plain'))}"
            f"</div>{_message(message)}"
            for message in messages
        )
    )


def _message(message: Mapping[str, Any]) -> str:
    """Return reasoning, content and tool calls of a message."""
    parts = []
    if reasoning := message.get("reasoning_content"):
        parts.append(details("reasoning", f'<div style="opacity:.7">{paragraph(reasoning)}</div>'))
    if (content := _content(message.get("content"))) or not message.get("tool_calls"):
        parts.append(content or dim("(no text)"))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        parts.append(paragraph(f"→ {function.get('name')}({function.get('arguments')})", mono=True))
    return "".join(parts)


def _content(content: object) -> str:
    """Return texts, pictures and sounds of a message."""
    found: list[str] = []
    texts: list[str] = []
    for part in _parts(content):
        shown = media.shown_part(part)
        if shown is None:
            texts.append(_text(part))
            continue
        found += [paragraph("".join(texts)), shown] if texts else [shown]
        texts = []
    return "".join([*found, paragraph("".join(texts))] if any(texts) else found)


def plain_content(content: object) -> str:
    """Return the text of a message; other parts are named."""
    return "".join(media.label(part) or _text(part) for part in _parts(content))


def _parts(content: object) -> list[Any]:
    if content is None or isinstance(content, (str, Mapping)):
        return [content] if content else []
    is_list = isinstance(content, Iterable) and media.label(content) is None
    return [*content] if is_list else [content]  # type: ignore[misc]


def _text(part: object) -> str:
    """Return a part that is no picture or sound."""
    if isinstance(part, Mapping):
        return str(part.get("text", "")) if part.get("type") == "text" else f"[{part.get('type')}]"
    return str(part)


def picture(image: Image) -> str:
    """Return a picture."""
    return block(media.picture(image))


def sound(audio: Audio) -> str:
    """Return a sound."""
    return block(media.sound(audio))


def unfinished(message: Mapping[str, Any]) -> str:
    """Return a message that is being generated, with its reasoning open."""
    reasoning = message.get("reasoning_content") or ""
    shown = f'<div style="opacity:.7">{paragraph(reasoning)}</div>' if reasoning else ""
    return block(shown + paragraph(plain_content(message.get("content")) + " ▌"))


# Memory plans


def memory_plan(plan: MemoryPlan) -> str:
    """Return what a model takes on each device, as bars and numbers."""
    head, _, foot = str(plan).split("\n\n")
    names = dict.fromkeys(name for device in plan.devices for name in device.parts)
    parts = [name for name in names if any(d.parts[name] for d in plan.devices)]
    marked = [f"{chip(i)} {escape(name)}" for i, name in enumerate(parts)]
    columns = ["", "", *marked, "total", "free"]
    return block(
        badge("fits", "ok") if plan.fits else badge("does not fit", "fail"),
        paragraph(head),
        table([_device(d, parts) for d in plan.devices], columns, right=range(2, len(columns))),
        paragraph(foot),
    )


def _device(device: DevicePlan, parts: Sequence[str]) -> list[str]:
    sizes = {name: device.parts[name] for name in parts}
    free = device.free_bytes
    # Without a known free memory the bar shows the parts alone.
    whole = max(device.total_bytes, free or 0, 1)
    bars = [
        (size / whole, str(i), f"{name} {_size(size)}")
        for i, (name, size) in enumerate(sizes.items())
    ]
    cells = [
        *map(_size, [*sizes.values(), device.total_bytes]),
        "?" if free is None else _size(free),
    ]
    return [f"<b>{escape(device.label)}</b>", stack(bars, width_em=14), *map(escape, cells)]


def _size(n_bytes: int) -> str:
    unit, name = (2**30, "GiB") if n_bytes >= 2**30 else (2**20, "MiB")
    return f"{n_bytes / unit:,.1f} {name}"


# The library


def library(loaded: Library) -> str:
    """Return a loaded library: its build, the evidence of its ABI, its devices."""
    rows = [
        [
            f"<b>{escape(device.name)}</b>",
            escape(device.description),
            escape(device.type),
            f"{device.memory_free_bytes / 2**30:,.1f} of {device.memory_total_bytes / 2**30:,.1f} "
            "GiB free",
        ]
        for device in loaded.devices
    ]
    return block(build(loaded.build), abi(loaded.abi), table(rows, ("device", "", "type", "")))


def build(installed: InstalledBuild) -> str:
    """Return where a build came from."""
    return fields(
        {
            "llama.cpp": installed.tag or "unknown",
            "from": installed.spec,
            "variant": installed.variant,
            "chosen because": installed.backend_reason,
            "library": installed.library,
        }
    )


def abi(identity: AbiIdentity) -> str:
    """Return the verdict on a build's ABI and its evidence."""
    tone = {"exact": "ok", "unknown": "fail"}.get(identity.verdict, "warn")
    found = identity.as_dict()
    structs = ", ".join(f"{name} {n} bytes" for name, n in identity.struct_bytes.items())
    fitting = [match.name for match in identity.matches if match.fits]
    unfit = [[escape(match.describe())] for match in identity.matches if not match.fits]
    evidence = {
        "build tag": found["tag"] or "not named by its packaging",
        "functions": f"{found['exported_functions']} exported",
        "probed structs": structs,
        "classes that fit": f"{', '.join(fitting)} of {len(identity.matches)} compared",
    }
    if identity.new_functions:
        evidence["not bound"] = f"{', '.join(identity.new_functions)} (in no known class)"
    forced = dim(" forced by LLAMA_CFFI_ABI") if identity.forced else ""
    return block(
        f"{badge(identity.verdict, tone)} ABI class <b>{escape(identity.name or 'none')}</b>"
        f"{forced}",
        fields(evidence),
        details(f"why {len(unfit)} classes do not fit", table(unfit)) if unfit else "",
    )


def fields(values: Mapping[str, object]) -> str:
    """Return names and values as a table."""
    return table([[label(name), escape(value)] for name, value in values.items() if value != ""])


# The doctor's findings


def check(found: Check) -> str:
    """Return one finding."""
    return checks([found])


def checks(found: Iterable[Check]) -> str:
    """Return the findings, the advice below each."""
    rows = []
    for one in found:
        text = escape(one.detail)
        if one.advice:
            text += f"<br>→ {escape(one.advice)}"
        if one.data:
            evidence = json.dumps(one.data, indent=1, ensure_ascii=False, default=str)
            text += details("evidence", paragraph(evidence, mono=True))
        rows.append([badge(one.status, one.status), f"<b>{label(one.name)}</b>", text])
    return block(table(rows))


# Decisions


def answer(found: Answer) -> str:
    """Return an answer with the probability of each option."""
    return decisions([found])


def decision(found: Decision[Any]) -> str:
    """Return a decided value and the answers behind it."""
    return block(f"<b>{escape(found.value)}</b>", decisions(found.answers.values()))


def decisions(found: Iterable[Answer]) -> str:
    """Return several answers."""
    return block(*map(_answer, found))


def _answer(found: Any) -> str:
    from ..decisions import ChoiceAnswer, PredicateAnswer

    notes = [f"label mass {found.label_mass:.1%}"]
    if isinstance(found, PredicateAnswer):
        best: object = found.value
        shares: Mapping[Any, float] = {True: found.probability, False: 1 - found.probability}
    else:
        best = found.choice if isinstance(found, ChoiceAnswer) else found.level
        shares = found.probabilities
        notes.insert(0, f"confidence {found.confidence:.1%}")
        if not isinstance(found, ChoiceAnswer):
            notes.insert(0, f"score {found.score:.2f}")
    rows = [
        [
            f"<b>{escape(option)}</b>" if option == best else escape(option),
            bar(share, tone="ok" if option == best else "plain"),
        ]
        for option, share in shares.items()
    ]
    title = f"<b>{escape(found.name)}</b> " if found.name else ""
    return block(title + dim(", ".join(notes)), table(rows))
