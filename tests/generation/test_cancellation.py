from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.children import Child
from support.injection import interrupted_everywhere

from llama_cffi.errors import DecodeAbortedError
from llama_cffi.generation import cancellation
from llama_cffi.generation.cancellation import CANCEL, CLOSE, DEADLINE, INTERRUPT, CancelToken

NAMES = ("listen", "unlisten", "_settle")


class Flag:
    """An abort flag without a context."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def set(self) -> None:
        self.event.set()

    def clear(self) -> None:
        self.event.clear()

    @property
    def is_set(self) -> bool:
        return self.event.is_set()


@pytest.fixture
def flag() -> Flag:
    return Flag()


@pytest.fixture
def handler() -> Iterator[list[int]]:
    """A SIGINT handler that raises nothing."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


def make(flag: Flag, timeout_s: float | None = None) -> CancelToken:
    return CancelToken(flag, timeout_s)  # type: ignore[arg-type]


def test_a_request_counts_while_it_runs(flag: Flag) -> None:
    stop = make(flag)
    stop.request(CANCEL)
    assert not flag.is_set  # nothing of this generation runs
    with stop.running():
        assert flag.is_set
        with pytest.raises(DecodeAbortedError, match="cancelled") as e:
            stop.check()
        assert e.value.reason == CANCEL
    assert not flag.is_set
    stop.request(CLOSE)
    assert stop.reason == CANCEL  # the first counts
    assert not flag.is_set
    with make(flag).running():
        assert not flag.is_set


def test_deadline(flag: Flag) -> None:
    stops = [make(flag, seconds) for seconds in (0.05, 60)]
    with stops[1].running(), stops[0].running():
        assert flag.event.wait(30)
        assert [stop.reason for stop in stops] == [DEADLINE, None]
        with pytest.raises(DecodeAbortedError, match=r"0\.05 s"):
            stops[0].check()
        stops[1].check()


def test_a_deadline_that_passed_already(flag: Flag) -> None:
    stop = make(flag, 0)
    with stop.running():
        assert flag.event.wait(30)


def test_a_forgotten_deadline_sets_nothing(flag: Flag) -> None:
    with make(flag, 0.05).running():
        pass
    with make(flag).running():
        assert not flag.event.wait(0.2)


def test_signal_sets_the_flag(flag: Flag, handler: list[int]) -> None:
    stop = make(flag)
    with stop.running(), stop.interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.event.wait(30)
        assert stop.reason == INTERRUPT
        stop.check()  # the handler decides, and this one raised nothing
        assert stop.resume_after_interrupt()
        assert not flag.is_set
        assert stop.reason is None
        assert not stop.resume_after_interrupt()
    assert handler == [signal.SIGINT]


def test_other_signals_do_not(flag: Flag) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    stop = make(flag)
    with stop.running(), stop.interruptible():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not flag.event.wait(0.1)
    signal.signal(signal.SIGUSR1, before)


def test_the_previous_listener_still_hears(flag: Flag, handler: list[int]) -> None:
    """An asyncio loop has its own wakeup descriptor; it gets the signals and gets it back."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(30)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        stop, inner = make(flag), make(Flag())
        with stop.running(), stop.interruptible():
            with inner.running(), inner.interruptible():
                pass
            os.kill(os.getpid(), signal.SIGINT)
            assert flag.event.wait(30)
            assert reader.recv(8) == bytes([signal.SIGINT])
        os.kill(os.getpid(), signal.SIGINT)
        assert reader.recv(8) == bytes([signal.SIGINT])
        assert signal.set_wakeup_fd(writer.fileno()) == writer.fileno()
    finally:
        assert signal.set_wakeup_fd(before) == writer.fileno()
        reader.close()
        writer.close()
    assert len(handler) == 2


def test_other_threads_do_not_listen(flag: Flag) -> None:
    stop = make(flag)
    heard: list[int] = []

    def run() -> None:
        with stop.running(), stop.interruptible():
            time.sleep(0.05)
            heard.append(signal.SIGINT if stop.reason else 0)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == [0]


def test_nothing_is_left_at_exit(child: Child) -> None:
    code = """
        import signal
        from llama_cffi.generation.cancellation import CancelToken
        class Flag:
            set = clear = lambda self: None
        with CancelToken(Flag(), 60).running() as stop, stop.interruptible():
            pass
        assert signal.set_wakeup_fd(-1) == -1
    """
    result = child(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_ctrl_c_at_any_moment_gives_the_signals_back(flag: Flag) -> None:
    watcher = cancellation._watcher()

    def run() -> None:
        stop = make(flag)
        with stop.running(), stop.interruptible():
            pass

    functions = (CancelToken.interruptible, *(getattr(type(watcher), n) for n in NAMES))
    n = 0
    for n in interrupted_everywhere(run, *functions):  # noqa: B007
        run()  # what was cut short is put right now
        assert signal.set_wakeup_fd(-1) == -1
        assert not watcher._stops
        assert not watcher._before
        assert not flag.is_set
    assert n > 10
