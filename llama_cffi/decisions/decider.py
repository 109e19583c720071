"""Deciding: prompts in, the logits of one position each out; nothing is generated."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypedDict, TypeVar

from ..errors import GenerationError, QueueFullError, ValidationError
from ..generation.cancellation import DEADLINE, aborted
from ..generation.logprobs import log_softmax
from ..generation.options import CALL_DEFAULTS
from ..generation.prompt import common_prefix_length
from ..validation import as_list, check_bool, check_float, reject_unknown
from .inputs import DecisionInput
from .prompts import LabelledPrompt, PromptMaker
from .typed import Form, form_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..binding import Context, Model
    from ..generation.chat_renderer import ChatRenderer
    from ..generation.stats import GenerationStats
    from .questions import Answer

__all__ = [
    "Decided",
    "DecisionOptions",
    "PreparedDecisions",
    "decide_batch",
    "decide_batch_async",
    "prepare",
    "run",
    "run_async",
]

T = TypeVar("T")
# Decision models whose heads this package's builds of llama.cpp cannot run.
_OWN_HEADS = frozenset(("clef", "kev", "laya"))
_GGUF_KINDS = {"predicate": "noul", "choice": "choice", "score": "score"}


class DecisionOptions(TypedDict, total=False):
    """Options of a decision.

    `average_orders`: ask each question with its options in both orders and average the
    probabilities, which removes most of a model's preference for a place. `timeout_s`: deadline
    in seconds from the call.
    """

    average_orders: bool
    timeout_s: float | None


class Deciding(Protocol):
    """The part of an engine that decides."""

    @property
    def model(self) -> Model:
        """The model."""
        ...

    @property
    def context(self) -> Context:
        """The context."""
        ...

    @property
    def n_ctx(self) -> int:
        """Context size of one prompt in tokens."""
        ...

    @property
    def renderer(self) -> ChatRenderer:
        """Renders conversations."""
        ...

    @property
    def steps(self) -> Callable[..., Generator[object, None, GenerationStats]]:
        """See `Engine.steps`."""
        ...


class Handle(Awaitable[object], Protocol):
    """The part of a `RequestHandle` that is used."""

    @property
    def stats(self) -> GenerationStats:
        """Counts and times so far."""
        ...

    def cancel(self) -> None:
        """End the request."""


class Submitting(Deciding, Protocol):
    """An engine whose requests can be awaited."""

    @property
    def submit(self) -> Callable[..., Handle]:
        """See `InferenceEngine.submit`."""
        ...


class _LabelReader:
    """Reads the log-probabilities of labels: a stopping criterion that is met at once."""

    def __init__(self, labels: Sequence[int]) -> None:
        self._labels = labels
        self.logprobs: list[float] = []

    def __call__(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> bool:
        self.logprobs = log_softmax(logits, self._labels)
        return True


@dataclass(frozen=True)
class Decided:
    """The answers about one input.

    Attributes:
        answers: One for each question, in order.
        n_prompt: Tokens of the prompts, with those that all of them begin with counted once.
        n_reused: Tokens of the first prompt that the KV cache held before.
    """

    answers: list[Answer]
    n_prompt: int
    n_reused: int


@dataclass(frozen=True)
class PreparedDecisions(Generic[T]):
    """Questions about inputs as prompts, independent of the engine.

    Attributes:
        form: The questions, and how their answers become a result.
        prompts: By input, by question: a prompt for each order of the options.
        timeout_s: Deadline in seconds from the call.
        temperatures: Kind of question -> temperature of its labels; 1 where there is none.
    """

    form: Form[T]
    prompts: list[list[list[LabelledPrompt]]]
    timeout_s: float | None
    temperatures: dict[str, float]

    def evaluations(self) -> list[tuple[LabelledPrompt, _LabelReader]]:
        """Return every prompt in order, with a reader of its labels."""
        every = [p for questions in self.prompts for orders in questions for p in orders]
        return [(prompt, _LabelReader(prompt.labels)) for prompt in every]

    def decided(
        self, readers: Sequence[_LabelReader], stats: Sequence[GenerationStats]
    ) -> list[Decided]:
        """Return the answers of each input.

        Args:
            readers: Those of `evaluations`, after the run.
            stats: The statistics of each prompt.

        Raises:
            GenerationError: The logits are not numbers.
        """
        found, read, n = [], iter(readers), 0
        for questions in self.prompts:
            answers = []
            for question, orders in zip(self.form.questions, questions, strict=True):
                temperature = self.temperatures.get(question.kind, 1.0)
                parts = [_softmax(next(read).logprobs, temperature) for _ in orders]
                every = [sum(values) / len(parts) for values in zip(*parts, strict=True)]
                answers.append(question.answer(every[:-1], every[-1]))
            prompts = [prompt.tokens for orders in questions for prompt in orders]
            shared = min(common_prefix_length(prompts[0], other) for other in prompts)
            n_prompt = shared + sum(len(prompt) - shared for prompt in prompts)
            found.append(Decided(answers, n_prompt, stats[n].n_reused))
            n += len(prompts)
        return found


def prepare(
    engine: Deciding, inputs: Sequence[DecisionInput], asked: object, options: DecisionOptions
) -> PreparedDecisions[Any]:
    """Make the prompts of questions about inputs.

    Args:
        engine: The engine.
        inputs: See `decide`.
        asked: A question, a list of questions, or a type.
        options: See `DecisionOptions`.

    Raises:
        ContextOverflowError: A prompt does not fit into the context.
        TemplateError: The chat template refuses an input.
        UnknownOptionError: An option does not exist.
        ValidationError: A question or an input has the wrong shape, or the model cannot decide.
    """
    reject_unknown(options, DecisionOptions.__annotations__, "a decision")
    averages = check_bool("average_orders", options.get("average_orders", False))
    timeout_s = options.get("timeout_s")
    if timeout_s is not None:
        timeout_s = check_float("timeout_s", timeout_s, 0, 1e9)
    form = form_of(asked)
    renderer, temperatures = _checked(engine)
    maker = PromptMaker(engine.model, renderer, engine.n_ctx)
    prompts = [[maker.prompts(each, q, averages) for q in form.questions] for each in inputs]
    return PreparedDecisions(form, prompts, timeout_s, temperatures)


def run(engine: Deciding, prepared: PreparedDecisions[Any]) -> list[Decided]:
    """Evaluate the prompts and return the answers of each input.

    Raises:
        ClosedError: The engine is closed.
        DeadlineExceededError: `timeout_s` has passed.
        GenerationError: Decoding failed.
    """
    evaluations, options = prepared.evaluations(), _Options(prepared.timeout_s)
    with ExitStack() as stack:
        starting = (
            stack.enter_context(closing(engine.steps(p.tokens, 1, **options.with_reader(reader))))
            for p, reader in evaluations
        )
        # An engine of several requests gets all now; the others' time begins with their turn.
        runs = [*starting] if hasattr(engine, "submit") else starting
        stats = [_exhaust(steps) for steps in runs]
    return prepared.decided([reader for _, reader in evaluations], stats)


async def run_async(engine: Submitting, prepared: PreparedDecisions[Any]) -> list[Decided]:
    """Evaluate the prompts in an event loop; see `run`."""
    evaluations, options = prepared.evaluations(), _Options(prepared.timeout_s)
    handles: list[Handle] = []
    try:
        for prompt, reader in evaluations:
            submit = partial(engine.submit, prompt.tokens, 1, **options.with_reader(reader))
            try:
                handles.append(submit())
            except QueueFullError:
                handles.append(await asyncio.to_thread(submit, wait=True))
        for handle in handles:
            await handle
    finally:
        for handle in handles:
            handle.cancel()  # does nothing where it has ended
    readers = [reader for _, reader in evaluations]
    return prepared.decided(readers, [handle.stats for handle in handles])


def decide_batch(
    engine: Deciding, inputs: Sequence[DecisionInput], asked: object, options: DecisionOptions
) -> list[Any]:
    """Return the result for each input; see `InferenceEngine.decide_batch`."""
    prepared = prepare(engine, as_list("inputs", inputs), asked, options)
    return [prepared.form.build(found.answers) for found in run(engine, prepared)]


async def decide_batch_async(
    engine: Submitting, inputs: Sequence[DecisionInput], asked: object, options: DecisionOptions
) -> list[Any]:
    """Return the result for each input in an event loop."""
    prepared = await asyncio.to_thread(prepare, engine, as_list("inputs", inputs), asked, options)
    return [prepared.form.build(found.answers) for found in await run_async(engine, prepared)]


def _checked(engine: Deciding) -> tuple[ChatRenderer, dict[str, float]]:
    """Return the renderer and the temperatures of a model that can decide.

    Raises:
        ValidationError: The model has no logits, or a head that this package cannot run.
    """
    model, kind = engine.model, engine.context.kind
    if not (kind.causal and kind.logits) or kind.has_encoder:
        raise ValidationError(
            f"{model.path.name} does not predict the next token of a prompt, and decisions read "
            "its probabilities; use a causal chat model"
        )
    decision_type = model.gguf.decision_type
    if decision_type in _OWN_HEADS:
        raise ValidationError(
            f"{model.path.name} is a decision model of the type {decision_type!r}, whose head "
            "needs a newer llama.cpp than any that llama_cffi knows; use a chat model, or a "
            "decision model that answers by the logits of labels, such as openjev or lev"
        )
    key = f"{model.gguf.architecture}.decision.temperature."
    found = {kind: model.gguf.values.get(key + name) for kind, name in _GGUF_KINDS.items()}
    temperatures = {kind: float(t) for kind, t in found.items() if isinstance(t, float) and t > 0}
    return engine.renderer, temperatures


class _Options:
    """The options of the generations of one call, which share its deadline."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def with_reader(self, reader: _LabelReader) -> dict[str, Any]:
        """Return the options of the next generation.

        Raises:
            DeadlineExceededError: There is no time left for it.
        """
        left = None
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise aborted(f"the deadline of {self._timeout_s} s has passed", DEADLINE)
        return {
            **CALL_DEFAULTS,
            "temperature": 0.0,  # nothing is sampled
            "context_policy": "error",
            "stopping_criteria": reader,
            "timeout_s": left,
        }


def _exhaust(steps: Generator[object, None, GenerationStats]) -> GenerationStats:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            stats: GenerationStats = end.value
            return stats


def _softmax(logprobs: Sequence[float], temperature: float) -> list[float]:
    """Return the probabilities of labels among each other, and their mass among all tokens.

    Raises:
        GenerationError: The log-probabilities are not numbers.
    """
    most = max(logprobs)
    if not math.isfinite(sum(logprobs)):
        raise GenerationError(
            "the model's logits are not finite numbers; its weights may be damaged, or a backend "
            "computes them wrongly: try n_gpu_layers=0"
        )
    weights = [math.exp((value - most) / temperature) for value in logprobs]
    total = sum(weights)
    mass = min(1.0, sum(math.exp(value) for value in logprobs))
    return [*(weight / total for weight in weights), mass]
