"""The cost of each layer: greedy loops on the context of an `Engine`, each with one more layer.

Printed by `overhead.py --profile`. One thread, processor time. The loops alternate, so differences
are accurate to a few tenths of a microsecond even on a busy machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from models import prompt
from native import NativeLoop
from tqdm import tqdm

from llama_cffi import Batch, Engine, SamplerChain

N_PROMPT = 16


class Steps:
    """The loops; each returns the processor time of all tokens after the first, in seconds."""

    def __init__(self, engine: Engine, n: int) -> None:
        self.engine, self.n = engine, n
        self._native = NativeLoop(engine.model.library)
        self._text = prompt(N_PROMPT)
        self._tokens = engine.tokenize(self._text)
        self._chain = SamplerChain(engine.model).add_greedy()
        self._batch = Batch(N_PROMPT)
        self._lib = engine.model.library.lib

    def native_c(self) -> float:
        """Run the C loop."""
        return self._native.run(self.engine, self._chain, self._tokens, self.n).cpu_s

    def bare_cffi(self) -> float:
        """Make the same two calls from Python."""
        one, lib = Batch(1), self._lib
        one.fill((0,), 0)
        batch, context = one.struct[0], self.engine.context.ptr
        token, pos, decode, sample = batch.token, batch.pos, lib.llama_decode, self._sample_c()

        def step(previous: int, at: int) -> int:
            token[0], pos[0] = previous, at
            decode(context, batch)
            return sample()

        return self._loop(step, sample)

    def batch(self) -> float:
        """Add `Batch.advance`."""
        one, decode, context = Batch(1), self._lib.llama_decode, self.engine.context.ptr
        one.fill((0,), 0)
        sample = self._sample_c()

        def step(previous: int, at: int) -> int:
            one.advance(previous, at)
            decode(context, one.struct[0])
            return sample()

        return self._loop(step, sample)

    def context(self) -> float:
        """Add `Context.decode`."""
        one, context, sample = Batch(1), self.engine.context, self._sample_c()
        one.fill((0,), 0)

        def step(previous: int, at: int) -> int:
            one.advance(previous, at)
            context.decode(one)
            return sample()

        return self._loop(step, sample)

    def chain(self) -> float:
        """Add `SamplerChain.sample`."""
        one, context, chain = Batch(1), self.engine.context, self._chain
        one.fill((0,), 0)

        def step(previous: int, at: int) -> int:
            one.advance(previous, at)
            context.decode(one)
            return chain.sample(context)

        return self._loop(step, lambda: chain.sample(context))

    def engine_tokens(self) -> float:
        """Run `Engine.generate_tokens`: the tap and the generation's bookkeeping, without text."""
        times = []
        for n in (1, self.n):
            start = time.process_time()
            self.engine.generate_tokens(self._tokens, n, temperature=0)
            times.append(time.process_time() - start)
        return times[1] - times[0]

    def engine_stream(self) -> float:
        """Run `Engine.stream` with stop strings."""
        options = {"raw": True, "stop": ["\n\n###"], "json_stop": (), "temperature": 0}
        stream = self.engine.stream(self._text, max_tokens=self.n, **options)
        next(stream)
        start = time.process_time()
        for _ in stream:
            pass
        return time.process_time() - start

    def _sample_c(self) -> Callable[[], int]:
        sample, chain, context = self._lib.llama_sampler_sample, self._chain, self.engine.context
        chain_ptr, context_ptr = chain.ptr, context.ptr
        return lambda: sample(chain_ptr, context_ptr, -1)

    def _loop(self, step: Callable[[int, int], int], sample: Callable[[], int]) -> float:
        """Time *step* for the tokens after the first; the call itself is part of bare_cffi."""
        context = self.engine.context
        context.memory.clear()
        self._batch.fill(self._tokens, 0)
        context.decode(self._batch)
        self._chain.reset()
        token = sample()
        start = time.process_time()
        for at in range(N_PROMPT, N_PROMPT + self.n - 1):
            token = step(token, at)
        return time.process_time() - start


def print_steps(engine: Engine, rounds: int, n: int = 512) -> None:
    """Print what each layer adds per token."""
    steps = Steps(engine, n)
    loops = [steps.native_c, steps.bare_cffi, steps.batch, steps.context, steps.chain]
    loops += [steps.engine_tokens, steps.engine_stream]
    us: list[list[float]] = [[] for _ in loops]
    for _ in tqdm(range(rounds), desc="steps", leave=False):
        for times, loop in zip(us, loops, strict=True):
            times.append(loop() / (n - 1) * 1e6)
    print(f"{'us per token':15} {'median':>8} {'added':>6} {'fastest':>8} {'added':>6}")
    last = statistics.median(us[0]), min(us[0])
    for times, loop in zip(us, loops, strict=True):
        now = statistics.median(times), min(times)
        (median, more), (fastest, more_fastest) = (
            (x, x - y) for x, y in zip(now, last, strict=True)
        )
        print(f"{loop.__name__:15} {median:8.1f} {more:6.1f} {fastest:8.1f} {more_fastest:6.1f}")
        last = now
