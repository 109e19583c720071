"""The HTML of each object. `_repr_html_` of its class calls the function here, by name.

Views are cheap: they read what the object has, run no model and load nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..memory_plan.memory_plan import gib
from . import html
from .html import Token, badge, bar, block, details, dim, escape, paragraph, stack, table

if TYPE_CHECKING:
    from ..binding.loading.abi import AbiIdentity
    from ..binding.loading.library import Library
    from ..decisions import Answer, Decision
    from ..doctor import Check
    from ..libs_fetch import InstalledBuild
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
    "plain_content",
    "response",
    "response_note",
    "transcript",
    "unfinished",
]

_TONE = {"ok": "ok", "warn": "warn", "fail": "fail"}
_PARTS = {
    "weights": "weights_bytes",
    "KV cache": "kv_bytes",
    "states": "recurrent_bytes",
    "compute": "compute_bytes",
    "output": "output_bytes",
}
_ENDS = {
    "length": ("cut off by max_tokens or the context size", "warn"),
    None: ("stopped before its end", "warn"),
}


# OpenAI's responses


def response(found: Mapping[str, Any]) -> str:
    """Return a response of a completion or a chat, whole or a choice of it."""
    choices = found.get("choices") or [found]
    parts: list[str] = []
    for choice in choices:
        if len(choices) > 1:
            parts.append(dim(f"answer {choice.get('index', 0) + 1}"))
        parts += _choice(choice)
    return block(*parts, dim(response_note(found)))


def _choice(choice: Mapping[str, Any]) -> list[str]:
    message = choice.get("message") or {"content": choice.get("text")}
    parts = [_message(message)]
    if tokens := _tokens(choice.get("logprobs")):
        parts.append(html.heat_map(tokens))
    if (reason := choice.get("finish_reason")) in _ENDS:
        parts.append(badge(*_ENDS[reason]))
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


def _tokens(logprobs: Mapping[str, Any] | None) -> list[Token]:
    """Return the tokens of a choice's log-probabilities, in either of OpenAI's forms."""
    if not logprobs:
        return []
    if (content := logprobs.get("content")) is not None:
        return [
            Token(
                one["token"],
                one["logprob"],
                [(other["token"], other["logprob"]) for other in one["top_logprobs"]],
            )
            for one in content
        ]
    rows = zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    )
    return [
        Token(text, value, sorted((top or {}).items(), key=lambda pair: -pair[1]))
        for text, value, top in rows
    ]


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
    if (text := plain_content(message.get("content"))) or not message.get("tool_calls"):
        parts.append(paragraph(text) if text else dim("(no text)"))
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        parts.append(paragraph(f"→ {function.get('name')}({function.get('arguments')})", mono=True))
    return "".join(parts)


def plain_content(content: object) -> str:
    """Return the text of a message; other parts are named."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Iterable):
        return str(content)
    return "".join(
        str(part.get("text", "")) if part.get("type") == "text" else f"[{part.get('type')}]"
        for part in content
        if isinstance(part, Mapping)
    )


def unfinished(message: Mapping[str, Any]) -> str:
    """Return a message that is being generated, with its reasoning open."""
    reasoning = message.get("reasoning_content") or ""
    shown = f'<div style="opacity:.7">{paragraph(reasoning)}</div>' if reasoning else ""
    return block(shown + paragraph(plain_content(message.get("content")) + " ▌"))


# Memory plans


def memory_plan(plan: MemoryPlan) -> str:
    """Return what a model takes on each device, as bars and numbers."""
    head, _, foot = str(plan).split("\n\n")
    used = {
        label: name
        for label, name in _PARTS.items()
        if name != "recurrent_bytes" or any(d.recurrent_bytes for d in plan.devices)
    }
    rest = any(d.total_bytes > _sum(d, used.values()) for d in plan.devices)
    names = [*used, *["other"] * rest]
    rows = [_device(device, used, rest) for device in plan.devices]
    columns = ["", "", *names, "total", "free"]
    return block(
        badge("fits", "ok") if plan.fits else badge("does not fit", "fail"),
        paragraph(head),
        table(rows, columns, right=range(2, len(columns))),
        paragraph(foot),
    )


def _sum(device: DevicePlan, names: Iterable[str]) -> int:
    return sum(getattr(device, name) for name in names)


def _device(device: DevicePlan, used: Mapping[str, str], rest: bool) -> list[str]:
    sizes = {label: getattr(device, name) for label, name in used.items()}
    if rest:
        sizes["other"] = device.total_bytes - sum(sizes.values())
    # Without a known free memory the bar shows the parts alone.
    whole = max(device.total_bytes, device.free_bytes or 0, 1)
    parts = [
        (size / whole, str(i), f"{label} {_mib(size)}")
        for i, (label, size) in enumerate(sizes.items())
    ]
    cells = [escape(_mib(size)) for size in (*sizes.values(), device.total_bytes)]
    free = "?" if device.free_bytes is None else gib(device.free_bytes)
    return [f"<b>{escape(device.label)}</b>", stack(parts, width_em=14), *cells, escape(free)]


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"


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
    return table([[dim(name), escape(value)] for name, value in values.items() if value != ""])


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
        rows.append([badge(one.status, _TONE[one.status]), f"<b>{escape(one.name)}</b>", text])
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
    probabilities: Mapping[object, float] = getattr(found, "probabilities", None) or {
        True: found.probability,
        False: 1 - found.probability,
    }
    value = next((v for k in ("choice", "level") if (v := getattr(found, k, None)) is not None), "")
    best = value if value != "" else found.value
    rows = [
        [
            f"<b>{escape(option)}</b>" if option == best else escape(option),
            bar(p, tone="ok" if option == best else "plain"),
        ]
        for option, p in probabilities.items()
    ]
    notes = [f"label mass {found.label_mass:.1%}"]
    if hasattr(found, "confidence"):
        notes.insert(0, f"confidence {found.confidence:.1%}")
    if hasattr(found, "score"):
        notes.insert(0, f"score {found.score:.2f}")
    title = f"<b>{escape(found.name)}</b> " if found.name else ""
    return block(title + dim(", ".join(notes)), table(rows))
