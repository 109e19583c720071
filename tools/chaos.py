"""Stress an InferenceEngine with requests of all kinds, and check that every one ends correctly.

    python tools/chaos.py --requests 2000 --seeds 20

Requests come in bursts from several threads: some are cancelled, miss their deadline, raise in
callbacks or logits processors, are iterated only in part, or do not fit. Every one must end in one
final state: with the text that it gets alone, or with the expected error. Afterwards no handle,
no sampler chain and no block may be left.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from llama_cffi import (
    DecodeAbortedError,
    Engine,
    InferenceEngine,
    LlamaGrammar,
    Model,
    QueueFullError,
    RequestState,
)
from llama_cffi.demo import model_path

N_CTX = 256
SYSTEM = "You are a friendly assistant who answers in few words and is never rude. "
COLOUR = LlamaGrammar.from_choices(["red", "green", "blue"])
# The model is certain of these answers, so rounding in other batches changes none.
QUESTIONS = [f"What is {a} + {b}?" for a in range(2, 40, 5) for b in range(1, 30, 4)]
LAYOUTS: list[dict[str, Any]] = [
    {"n_parallel": 6},
    {"n_parallel": 8, "n_kv_tokens": 512, "block_size": 16},
    {"n_parallel": 4, "n_batch": 32, "n_prefill_chunk": 8},
    {"n_parallel": 12, "n_kv_tokens": 384, "block_size": 8, "n_batch": 64},
]


class MishapError(Exception):
    """Raised by callbacks and logits processors here."""


class Outcome(NamedTuple):
    """The end of a request."""

    kind: str
    state: RequestState
    error: BaseException | None
    text: str
    question: str


def prompt(question: str) -> str:
    """Return the text of a conversation; half of them share a system prompt."""
    system = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" if len(question) % 2 else ""
    return f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def answers(model: Model, **options: Any) -> dict[str, str]:
    """Answer each question alone."""
    with Engine(model, N_CTX, n_threads=1, **options) as engine:
        return {question: _alone(engine, question) for question in QUESTIONS}


def _alone(engine: Engine, question: str) -> str:
    tokens = engine.tokenize(prompt(question), parse_special=True)
    return "".join(step.text for step in engine.steps(tokens, 8, temperature=0, json_stop=()))


def mishap(after: int) -> Callable[..., None]:
    """Return a function that raises after *after* calls."""
    left = [after]

    def function(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise MishapError("as planned")

    return function


class Chaos:
    """One run.

    Args:
        model: The model that answers.
        seed: Seed of all random choices.
        n_requests: Number of requests.
        expected: The answer to each question alone.
        progress: Called after each request.
        **options: Options of the context.
    """

    def __init__(
        self,
        model: Model,
        seed: int,
        n_requests: int,
        expected: dict[str, str],
        progress: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> None:
        self.rng = random.Random(seed)
        self.engine = InferenceEngine(
            model, n_ctx=N_CTX, n_threads=1, max_waiting=40, ageing_s=0.5,
            **LAYOUTS[seed % len(LAYOUTS)], **options,
        )  # fmt: skip
        self.expected, self.progress = expected, progress
        self.outcomes: list[Outcome] = []
        self.n_refused = 0
        self.left = n_requests
        self.lock = threading.Lock()

    def run(self, n_threads: int = 8) -> Counter[str]:
        """Run all requests; return their counts by kind and final state.

        Raises:
            AssertionError: A request did not end as expected, or something was leaked.
        """
        seeds = [self.rng.random() for _ in range(n_threads)]
        errors: list[BaseException] = []

        def work(seed: float) -> None:
            rng = random.Random(seed)
            try:
                while self._take():
                    self._burst(rng)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        self._check_empty()
        self.engine.shutdown()
        for outcome in self.outcomes:
            check(outcome, self.expected)
        return Counter(f"{outcome.kind}: {outcome.state.value}" for outcome in self.outcomes)

    def _take(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left >= 0

    def _burst(self, rng: random.Random) -> None:
        """Submit one or several requests, then finish each."""
        begun = [self._begin(rng)]
        while rng.random() < 0.6 and self._take():
            begun.append(self._begin(rng))
        for kind, question, handle in begun:
            if handle is not None:
                self._finish(rng, kind, question, handle)
            self.progress()

    def _begin(self, rng: random.Random) -> tuple[str, str, Any]:
        kind = rng.choice(KINDS)
        question = rng.choice(QUESTIONS)
        options = dict(MAKE[kind](rng))
        text: Any = prompt(question)
        if kind == "long":
            text = [rng.randrange(30, 200) for _ in range(rng.randrange(60, 150))]
        options = {"max_tokens": 8, "temperature": 0, "priority": rng.randrange(3), **options}
        try:
            return kind, question, self.engine.submit(text, wait=rng.random() < 0.8, **options)
        except QueueFullError:
            with self.lock:
                self.n_refused += 1
            return kind, question, None

    def _finish(self, rng: random.Random, kind: str, question: str, handle: Any) -> None:
        if kind == "cancelled":
            time.sleep(rng.random() * 0.02)
            handle.cancel()
        error: BaseException | None = None
        try:
            if kind == "left":
                for _ in handle:
                    break
                handle.result(120)
            elif rng.random() < 0.5:
                text = "".join(handle)
                assert text == handle.result(120)
            else:
                handle.result(120)
        except Exception as raised:
            error = raised
        assert handle.done
        with self.lock:
            outcome = Outcome(kind, handle.request.state, error, handle.text, question)
            self.outcomes.append(outcome)

    def _check_empty(self) -> None:
        """Check that no request, handle or block is left."""
        engine = self.engine
        for _ in range(1000):  # the last step may still run
            if not engine.scheduler.has_work:
                break
            time.sleep(0.01)
        assert engine.active_requests == []
        assert engine._core.handles == {}
        assert not engine.scheduler.has_work
        stats = engine.stats
        ended = stats.n_finished + stats.n_failed + stats.n_cancelled
        assert ended == len(self.outcomes), (ended, len(self.outcomes))
        assert stats.cache.n_free + stats.cache.n_cached == stats.cache.n_blocks, stats.cache
        for seq_id in range(engine.cache.n_seqs):
            held = engine.context.memory.seq_pos_max(seq_id) + 1
            assert held == engine.cache.n_tokens(seq_id), (seq_id, held)
        engine.cache_clear()
        assert (
            engine.generate(prompt(QUESTIONS[0]), 8, temperature=0) == self.expected[QUESTIONS[0]]
        )


MAKE: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "plain": lambda rng: {},
    "endless": lambda rng: {"max_tokens": rng.randrange(1, 80), "logit_bias": ENDLESS},
    "long": lambda rng: {"max_tokens": rng.randrange(1, 40)},
    "structured": lambda rng: {"structured": COLOUR},
    "sampled": lambda rng: {"temperature": 1.5, "max_tokens": rng.randrange(1, 30)},
    "cancelled": lambda rng: {"max_tokens": 100, "logit_bias": ENDLESS},
    "left": lambda rng: {"max_tokens": 100, "logit_bias": ENDLESS},
    "late": lambda rng: {
        "max_tokens": 100, "logit_bias": ENDLESS, "timeout_s": rng.random() * 0.05
    },
    "callback raises": lambda rng: {
        "max_tokens": 30, "logit_bias": ENDLESS, "callback": mishap(rng.randrange(4))
    },
    "processor raises": lambda rng: {"logits_processor": [mishap(0)]},
}  # fmt: skip
KINDS = list(MAKE)
ENDLESS = dict.fromkeys(range(5), -100.0)


def check(outcome: Outcome, expected: dict[str, str]) -> None:
    """Check the end of a request against its kind.

    Raises:
        AssertionError: It did not end as expected.
    """
    kind, state, error, text, question = outcome
    assert state.final, outcome
    if kind in ("callback raises", "processor raises"):
        assert (state, type(error)) == (RequestState.FAILED, MishapError), outcome
    elif state is RequestState.CANCELLED:
        assert kind in ("cancelled", "left", "late"), outcome
        assert isinstance(error, DecodeAbortedError), outcome
        assert error.reason == ("deadline" if kind == "late" else "cancel"), outcome
    else:
        assert (state, error) == (RequestState.FINISHED, None), outcome
        if kind == "plain":
            assert text == expected[question], outcome
        if kind == "structured":
            assert text in ("red", "green", "blue"), outcome


def main() -> int:
    """Run the seeds given on the command line."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    with Model(model_path()) as model:
        expected = answers(model)
        for seed in range(args.first, args.first + args.seeds):
            with tqdm(total=args.requests, desc=f"seed {seed}") as bar:
                chaos = Chaos(model, seed, args.requests, expected, bar.update)
                counts = chaos.run()
            print(dict(sorted(counts.items())), f"refused: {chaos.n_refused}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
