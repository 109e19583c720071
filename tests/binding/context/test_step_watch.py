"""The sign that decoding waits for processors, with invented clocks and counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from llama_cffi import Engine, InferenceEngine, Llama
from llama_cffi.binding import Batch, Context, Model, processors
from llama_cffi.binding.context import step_watch
from llama_cffi.binding.context.step_watch import StepWatch

FAST, SLOW = 0.001, 0.08


class Machine:
    """A clock, and the threads of a process that wait while it runs."""

    def __init__(self, waiting: float, counts: bool = True) -> None:
        self.now, self.waited = 100.0, {1: 5.0, 2: 7.0}
        self.waiting, self.counts = waiting, counts
        self.messages: list[str] = []
        self.watch = StepWatch(lambda: self.now, self.waits, self.messages.append)

    def waits(self) -> dict[int, float]:
        return dict(self.waited) if self.counts else {}

    def step(self, seconds: float, n_tokens: int = 1, n_threads: int = 2) -> None:
        """Do what a context does in each step."""
        if self.watch.active:
            self.watch.judge()
        self.now += seconds
        self.waited[1] += seconds * self.waiting
        if self.watch.active:
            self.watch.add(n_tokens, n_threads, seconds)

    def answer(self, seconds: Iterable[float], **step: int) -> None:
        self.watch.start()
        for each in seconds:
            self.step(each, **step)


def test_steps_that_wait_for_a_processor_are_named_once() -> None:
    machine = Machine(waiting=0.9)
    machine.answer([FAST] + [SLOW] * 300)
    (message,) = machine.messages
    assert "80.0 ms per step, 80 times its fastest (1.00 ms)" in message
    assert "0.9 of its 2 threads wait for processors" in message
    assert "n_threads=1 (LLAMA_CFFI_N_THREADS=1, --threads 1)" in message
    for _ in range(5):
        machine.now += 100
        machine.answer([SLOW] * 100)
    assert len(machine.messages) == 1


def test_it_names_the_number_of_threads_that_is_left() -> None:
    for waiting, n_threads, left in [(0.9, 8, 7), (3.2, 8, 5), (9, 8, 1), (1.8, 2, 1)]:
        machine = Machine(waiting)
        machine.answer([FAST] + [SLOW] * 100, n_threads=n_threads)
        assert f"Use n_threads={left} " in machine.messages[0]
        assert f"{min(waiting, n_threads):.1f} of its {n_threads} threads" in machine.messages[0]


@pytest.mark.parametrize(
    ("machine", "seconds"),
    [
        (Machine(waiting=0), [FAST] * 500),
        (Machine(waiting=0), [FAST] + [SLOW] * 500),  # slow for another reason: paging, a GPU
        (Machine(waiting=0.9, counts=False), [FAST] + [SLOW] * 500),  # not Linux
        (Machine(waiting=0.9), [FAST] * 500),  # other threads of the process wait
        (Machine(waiting=0.9), [SLOW] * 500),  # a large model
        (Machine(waiting=0.9), [SLOW, SLOW * 5] * 250),  # one that has fewer processors
        (Machine(waiting=0.9), [FAST / 100] + [FAST] * 500),  # too short to be felt
        (Machine(waiting=0.9), [FAST, *[SLOW] * 25, *[FAST] * 500]),  # another program starts
    ],
)
def test_nothing_else_is_named(machine: Machine, seconds: list[float]) -> None:
    for _ in range(3):
        machine.now += 10
        machine.answer(seconds)
    assert machine.messages == []


def test_the_first_steps_may_read_the_model_from_disk() -> None:
    machine = Machine(waiting=0.5)
    machine.answer([20.0, *[FAST] * 500])
    assert machine.messages == []


def test_steps_of_another_size_are_not_compared() -> None:
    machine = Machine(waiting=0.9)
    for _ in range(40):
        machine.answer([FAST])
        machine.answer([SLOW], n_tokens=16)
        machine.answer([SLOW * 50], n_tokens=512)
    assert machine.messages == []
    machine.answer([SLOW] * 100, n_tokens=16)
    machine.answer([SLOW * 50] * 100, n_tokens=512)
    assert machine.messages == []  # they never were faster
    machine.now += 10
    machine.answer([FAST] + [SLOW] * 100, n_tokens=4)
    assert len(machine.messages) == 1


def test_most_steps_are_not_timed() -> None:
    machine = Machine(waiting=0)
    timed = 0
    machine.watch.start()
    for _ in range(800):
        timed += machine.watch.active
        machine.step(FAST)
    assert timed == 33
    for _ in range(100):  # more prompts in the same second
        machine.answer([FAST])
        assert not machine.watch.active
    machine.now += 1
    machine.answer([FAST])
    assert machine.watch.active


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all decoding wait for processors: each look at the clock takes more time."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(processors, "usable_cpus", lambda: 4)
    monkeypatch.setattr(step_watch, "_LONG_S", 0)
    monkeypatch.setattr(step_watch, "_N_STEPS", 6)
    # Every third step takes 100 times as long as the others.
    reads = [0.0]

    def clock() -> float:
        reads[0] += 0.1 if next(ticks) % 3 == 0 else 0.001
        return reads[0]

    monkeypatch.setattr(
        StepWatch.__init__,
        "__defaults__",
        (clock, lambda: {1: reads[0]}, StepWatch.__init__.__defaults__[2]),  # type: ignore[index]
    )


def decode(path: str) -> None:
    with Context(Model(path), n_ctx=256, n_threads=2) as context:
        batch = Batch(2)
        batch.fill([1, 2], 0)
        context.decode(batch)
        for i in range(30):
            batch.fill([3], i + 2)
            context.decode(batch)


def with_engine(path: str) -> None:
    with Engine(path, n_ctx=256, n_threads=2) as engine:
        engine.generate("xy", max_tokens=30, temperature=0, ignore_eos=True)


def with_llama(path: str) -> None:
    with Llama(path, n_ctx=256, n_threads=2) as llm:
        llm("xy", max_tokens=30, temperature=0, ignore_eos=True)


def with_inference_engine(path: str) -> None:
    with InferenceEngine(path, 2, 256, n_threads=2) as engine:
        requests = [
            engine.submit("xy", max_tokens=30, temperature=0, ignore_eos=True) for _ in range(2)
        ]
        assert all(request.result() for request in requests)


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("use", [decode, with_engine, with_llama, with_inference_engine])
def test_every_face_warns_once(tiny_model: str, use: Callable[[str], None]) -> None:
    with pytest.warns(UserWarning, match="of its 2 threads wait for processors") as caught:
        use(tiny_model)
    assert len(caught) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("crowded")
def test_a_warning_that_is_an_error_stops_a_step_before_it_is_computed(tiny_model: str) -> None:
    with Engine(tiny_model, n_ctx=256, n_threads=2) as engine:
        with pytest.raises(UserWarning, match="threads wait"):
            engine.generate("xy", max_tokens=30, temperature=0, ignore_eos=True)
        again = engine.generate("xy", max_tokens=20, temperature=0, ignore_eos=True)
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        assert engine.generate("xy", max_tokens=20, temperature=0, ignore_eos=True) == again
