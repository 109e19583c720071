"""Measure the demo model's tool calls through `Llama.create_chat_completion`.

``python -m tools.tool_calls [-n 500] [--seed 2026]``; the exit status is 1 if the accuracy of a
variant is below 95 %. Every request is held out from training (`tools/train_demo/split.py`) and
uses the GGUF's own chat template and greedy sampling, streamed and not:

- ``tool_call`` (one tool offered) and ``tool_choice`` (two or three), with tool_choice ``auto``,
  ``required`` and, for every second request, the function's name;
- ``tool_answer``: the second turn, after the model's own call and the tool's result;
- ``tool_plain``: no tool is needed, and with ``auto`` none must be called.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llama_cffi import Llama
from llama_cffi.demo import model_path

from .train_demo.conversations import SYSTEM_PROMPTS, heldout
from .train_demo.items import pick
from .train_demo.kinds_tools import call, offer
from .train_demo.split import is_heldout
from .train_demo.template import Message, Tool

REQUIRED = 0.95
N_CTX = 1024
OFFERED = {"tool_call": (1,), "tool_choice": (2, 3)}
NAMED_EVERY = 2

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """A request and its expected answer.

    Attributes:
        messages: The conversation up to the question.
        tools: The tools offered.
        answers: The accepted text answers.
        calls: The expected calls, as (name, arguments); empty: a text answer is expected.
        results: The tool messages that follow the calls.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    answers: tuple[str, ...]
    calls: tuple[Call, ...] = ()
    results: tuple[Message, ...] = ()


@dataclass
class Answer:
    """The model's answer: an OpenAI message, and its finish reason."""

    message: dict[str, Any]
    finish_reason: str

    @property
    def calls(self) -> list[tuple[str, Any]]:
        """The calls as (name, arguments); arguments that are not JSON are kept as a str."""
        functions = [made["function"] for made in self.message.get("tool_calls") or ()]
        return [(f["name"], _loads(f["arguments"])) for f in functions]


@dataclass
class Variant:
    """The results of one way of asking."""

    name: str
    n: int = 0
    tool: int = 0
    arguments: int = 0
    both: int = 0
    wrong: list[str] = field(default_factory=list)

    def count(self, request: Request, expected: Sequence[Call], answer: Answer) -> None:
        """Compare one answer with the expected one."""
        made = answer.calls
        tool = [name for name, _ in made] == [name for name, _ in expected]
        if expected:
            arguments = _same([given for _, given in made], [given for _, given in expected])
            ended = answer.finish_reason == "tool_calls"
        else:
            arguments = answer.message["content"] in request.answers
            ended = answer.finish_reason == "stop"
        self.n += 1
        self.tool += tool
        self.arguments += arguments
        self.both += tool and arguments and ended
        if not (tool and arguments and ended):
            wanted = list(expected) or list(request.answers)
            got = made or answer.message["content"]
            asked = request.messages[-1]["content"]
            self.wrong.append(f"{asked!r} -> {got!r} ({answer.finish_reason}), not {wanted!r}")

    @property
    def accuracy(self) -> float:
        """The fraction of answers that are correct in every respect."""
        return self.both / self.n


def requests(kind: str, n: int, seed: int) -> Iterator[Request]:
    """Draw held-out requests that need one tool; the same arguments give the same requests."""
    rng = random.Random(f"{seed}:{kind}")
    while n:
        system = pick(rng, None, *SYSTEM_PROMPTS)
        asked, answered = call(rng, offer(rng, pick(rng, *OFFERED[kind])), kind)
        if not is_heldout(asked.key):
            continue
        question, called, *results = answered.messages
        functions = [made["function"] for made in called["tool_calls"]]
        yield Request(
            (*_system(system), question),
            asked.tools or (),
            answered.answers,
            tuple((function["name"], function["arguments"]) for function in functions),
            tuple(results),
        )
        n -= 1


def plain_requests(n: int, seed: int) -> Iterator[Request]:
    """Draw held-out questions that need none of the offered tools."""
    rng = random.Random(f"{seed}:tool_plain")
    for _ in range(n):
        drawn = heldout("tool_plain", rng)
        yield Request(drawn.messages, drawn.tools or (), drawn.answers)


def ask(llm: Llama, messages: Sequence[Message], stream: bool, **options: Any) -> Answer:
    """Return the model's answer; a stream is joined as a client of OpenAI's API does."""
    given = llm.create_chat_completion(list(messages), stream=stream, temperature=0, **options)
    if stream:
        return collect(given)
    choice = given["choices"][0]
    return Answer(choice["message"], choice["finish_reason"])


def collect(chunks: Iterable[dict[str, Any]]) -> Answer:
    """Join the chunks of a streamed answer."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: dict[int, dict[str, Any]] = {}
    finish_reason = ""
    for chunk in chunks:
        choice = chunk["choices"][0]
        delta = choice["delta"]
        message["content"] += delta.get("content") or ""
        for part in delta.get("tool_calls") or ():
            new = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            made = calls.setdefault(part["index"], new)
            made["id"] += part.get("id") or ""
            for key, text in part.get("function", {}).items():
                made["function"][key] += text
        finish_reason = choice["finish_reason"] or finish_reason
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return Answer(message, finish_reason)


def measure(llm: Llama, n: int, seed: int, is_shown: bool = False) -> list[Variant]:
    """Ask *n* requests of each kind in every variant.

    Args:
        llm: The demo model.
        n: Number of requests of each kind.
        seed: Seed for drawing requests.
        is_shown: Whether to show progress bars.
    """
    variants: dict[str, Variant] = {}

    def count(name: str, stream: bool, request: Request, answer: Answer, calls: Any) -> None:
        name += ", streamed" if stream else ""
        variants.setdefault(name, Variant(name)).count(request, calls, answer)

    for kind in OFFERED:
        drawn = requests(kind, n, seed)
        for i, request in enumerate(tqdm(drawn, kind, n, disable=not is_shown)):
            named = {"type": "function", "function": {"name": request.calls[0][0]}}
            choices = {"auto": "auto", "required": "required", "named": named}
            for name, choice in choices.items():
                if name == "named" and i % NAMED_EVERY:
                    continue
                for stream in (False, True):
                    options = {"tools": request.tools, "tool_choice": choice}
                    answer = ask(llm, request.messages, stream, **options)
                    # Naming a function asks for exactly one call.
                    calls = request.calls[:1] if name == "named" else request.calls
                    count(f"{kind}, {name}", stream, request, answer, calls)
                    if name == "auto" and len(answer.calls) == len(request.calls):
                        messages = [*request.messages, *_results(answer, request)]
                        final = ask(llm, messages, stream, tools=request.tools)
                        count("tool_answer, auto", stream, request, final, ())
    drawn = plain_requests(n, seed)
    for request in tqdm(drawn, "tool_plain", n, disable=not is_shown):
        for stream in (False, True):
            answer = ask(llm, request.messages, stream, tools=request.tools)
            count("tool_plain, auto", stream, request, answer, ())
    return list(variants.values())


def _results(answer: Answer, request: Request) -> Iterator[Message]:
    """Yield the messages after a call: the model's own message, and the tools' results."""
    yield answer.message
    for made, result in zip(answer.message["tool_calls"], request.results, strict=True):
        yield {**result, "tool_call_id": made["id"]}


def _system(text: str | None) -> tuple[Message, ...]:
    return () if text is None else ({"role": "system", "content": text},)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _same(a: Any, b: Any) -> bool:
    """Return whether two values are equal as JSON, where true is not 1."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("-n", type=int, default=500, help="number of requests of each kind")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument(
        "--show", type=int, default=3, help="wrong answers to print for each variant"
    )
    args = parser.parse_args()
    # With two million parameters, a second thread waits more than it works.
    with Llama(args.model, n_ctx=N_CTX, n_threads=1, n_gpu_layers=0) as llm:
        variants = measure(llm, args.n, args.seed, is_shown=True)
    print(f"{'variant':<34}{'requests':>9}{'tool':>9}{'arguments':>11}{'both':>9}")
    for variant in variants:
        counts = (variant.tool, variant.arguments, variant.both)
        tool, arguments, both = (count / variant.n for count in counts)
        print(f"{variant.name:<34}{variant.n:>9}{tool:>9.1%}{arguments:>11.1%}{both:>9.1%}")
        for wrong in variant.wrong[: args.show]:
            print(f"    {wrong}")
    low = [variant.name for variant in variants if variant.accuracy < REQUIRED]
    print(f"below {REQUIRED:.0%}: {low}" if low else f"every variant reaches {REQUIRED:.0%}")
    print("For text answers, 'tool' counts that none was called, 'arguments' the right answers.")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
