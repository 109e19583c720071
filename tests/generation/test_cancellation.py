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
        self.holder: object | None = None
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
    """A SIGINT handler that does not raise."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


def make(flag: Flag, timeout_s: float | None = None) -> CancelToken:
    return CancelToken(flag, timeout_s)  # type: ignore[arg-type]


def test_request_sets_the_flag_only_while_running(flag: Flag) -> None:
    token = make(flag)
    token.request(CANCEL)
    assert not flag.is_set  # the generation is not running
    with token.running():
        assert flag.is_set
        with pytest.raises(DecodeAbortedError, match="cancelled") as e:
            token.check()
        assert e.value.reason == CANCEL
    assert not flag.is_set
    token.request(CLOSE)
    assert token.reason == CANCEL  # the first one wins
    assert not flag.is_set
    with make(flag).running():
        assert not flag.is_set


def test_deadline_stops_its_own_generation(flag: Flag) -> None:
    tokens = [make(flag, seconds) for seconds in (0.05, 60)]
    with tokens[1].running(), tokens[0].running():
        assert flag.event.wait(30)
        assert [token.reason for token in tokens] == [DEADLINE, None]
        with pytest.raises(DecodeAbortedError, match=r"0\.05 s"):
            tokens[0].check()
        tokens[1].check()


def test_expired_deadline(flag: Flag) -> None:
    token = make(flag, 0)
    with token.running():
        assert flag.event.wait(30)


def test_deadline_after_the_end_sets_nothing(flag: Flag) -> None:
    with make(flag, 0.05).running():
        pass
    with make(flag).running():
        assert not flag.event.wait(0.2)


def test_signal_sets_the_flag(flag: Flag, handler: list[int]) -> None:
    token = make(flag)
    with token.running(), token.interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.event.wait(30)
        assert token.reason == INTERRUPT
        token.check()  # the handler decides, and this one did not raise
        assert token.resume_after_interrupt()
        assert not flag.is_set
        assert token.reason is None
        assert not token.resume_after_interrupt()
    assert handler == [signal.SIGINT]


def test_other_signals_do_not_set_the_flag(flag: Flag) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    token = make(flag)
    with token.running(), token.interruptible():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not flag.event.wait(0.1)
    signal.signal(signal.SIGUSR1, before)


def test_signals_are_forwarded_to_the_previous_descriptor(flag: Flag, handler: list[int]) -> None:
    """An asyncio loop keeps receiving signals, and its descriptor is restored."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    reader.settimeout(30)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        token, inner = make(flag), make(Flag())
        with token.running(), token.interruptible():
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


def test_only_the_main_thread_listens(flag: Flag) -> None:
    token = make(flag)
    seen: list[int] = []

    def run() -> None:
        with token.running(), token.interruptible():
            time.sleep(0.05)
            seen.append(signal.SIGINT if token.reason else 0)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [0]


def test_descriptor_is_restored_at_exit(child: Child) -> None:
    code = """
        import signal
        from llama_cffi.generation.cancellation import CancelToken
        class Flag:
            holder = None
            set = clear = lambda self: None
        with CancelToken(Flag(), 60).running() as token, token.interruptible():
            pass
        assert signal.set_wakeup_fd(-1) == -1
    """
    result = child(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_ctrl_c_at_any_point_restores_the_descriptor(flag: Flag) -> None:
    watcher = cancellation._watcher()

    def run() -> None:
        token = make(flag)
        with token.running(), token.interruptible():
            pass

    functions = (CancelToken.interruptible, *(getattr(type(watcher), n) for n in NAMES))
    n = 0
    for n in interrupted_everywhere(run, *functions):  # noqa: B007
        run()  # repairs what was interrupted
        assert signal.set_wakeup_fd(-1) == -1
        assert not watcher._listening
        assert not watcher._replaced
        assert not flag.is_set
    assert n > 10
