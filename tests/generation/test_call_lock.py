from __future__ import annotations

import threading
import time

import pytest
from support.injection import interrupted_everywhere

from llama_cffi.errors import ValidationError
from llama_cffi.generation import call_lock as lock_module
from llama_cffi.generation.call_lock import CallLock, Turn
from llama_cffi.generation.request_scope import RequestScope


def is_free(lock: CallLock) -> bool:
    with lock.acquire(wait=False) as acquired:
        return acquired


def test_one_at_a_time() -> None:
    lock, order = CallLock(), []

    def run(name: str, entered: threading.Event, leave: threading.Event) -> None:
        with lock.acquire() as acquired:
            assert acquired
            order.append(name)
            entered.set()
            leave.wait(30)
            order.append(name)

    events = [(threading.Event(), threading.Event()) for _ in range(2)]
    first = threading.Thread(target=run, args=("a", *events[0]))
    second = threading.Thread(target=run, args=("b", *events[1]))
    first.start()
    assert events[0][0].wait(30)
    second.start()
    assert not events[1][0].wait(0.05)
    assert not is_free(lock)
    with lock.acquire(0.01) as acquired:
        assert not acquired
    events[0][1].set()
    assert events[1][0].wait(30)
    events[1][1].set()
    first.join()
    second.join()
    assert order == ["a", "a", "b", "b"]
    assert is_free(lock)


def test_calls_take_turns_in_order() -> None:
    lock, order = CallLock(), []

    def run(i: int) -> None:
        with lock.acquire():
            order.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(10)]
    with lock.acquire():
        for i, thread in enumerate(threads):
            thread.start()
            while len(lock.waiting) <= i:
                time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    assert order == [*range(10)]
    assert lock.waiting == []


def test_a_call_that_gave_up_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C may prevent that it leaves the queue."""
    monkeypatch.setattr(lock_module, "_LEAST_S", 0.01)
    lock = CallLock()
    lock.enqueue(lock.waiter())
    for _ in range(3):
        with lock.acquire() as turn:
            assert turn
    with lock.acquire(0) as turn:
        assert not turn
    assert is_free(lock)


def test_a_late_stream_goes_on_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_LEAST_S", 0.0)
    lock = CallLock()
    with lock.acquire() as stream:
        assert stream
        stream.pause()
        with lock.acquire():  # in the same thread, and so without waiting
            pass
        assert not stream.reclaim()
        assert stream.wait()
        assert not stream.computes_ahead  # nobody waits
        lock.enqueue(lock.waiter())
        monkeypatch.setattr(lock_module, "_LEAST_S", 1000)
        assert stream.computes_ahead
        monkeypatch.setattr(lock_module, "_LEAST_S", 0.0)
        assert not stream.computes_ahead  # its time is over
        stream.pause()
        assert not lock.lock.locked()
        lock.waiting.clear()
        assert stream.wait()
        stream.pause()
        assert lock.lock.locked()
        assert stream.reclaim()
    assert is_free(lock)


def test_refuses_to_wait_for_its_own_thread() -> None:
    lock = CallLock()
    with lock.acquire():
        with pytest.raises(ValidationError, match="busy in this thread"), lock.acquire():
            pass
        with lock.acquire(wait=False) as acquired:
            assert not acquired
        assert lock.owner == threading.get_ident()
    assert lock.owner is None


def test_ctrl_c_at_any_point_releases_the_lock() -> None:
    """Python checks for signals after each call, including the one that acquires the lock."""
    lock = CallLock()

    def run() -> None:
        with lock.acquire():
            pass

    n = 0
    functions = CallLock.acquire, Turn.wait, CallLock.waiter, CallLock.enqueue, CallLock.set_owner
    for n in interrupted_everywhere(run, *functions):  # noqa: B007
        assert not lock.lock.locked()
        assert lock.owner is None
    assert n > 2


def test_clients_take_turns() -> None:
    lock, order = CallLock(), list[str]()

    def run(client: str) -> None:
        with RequestScope(client[0]), lock.acquire():
            order.append(client)

    asked = ["a2", "a3", "a4", "b1", "b2", "c1"]
    threads = [threading.Thread(target=run, args=(name,)) for name in asked]
    with RequestScope("a"), lock.acquire():
        for i, thread in enumerate(threads):
            thread.start()
            while len(lock.waiting) <= i:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == ["b1", "c1", "a2", "b2", "a3", "a4"]
    run("b3")
    assert is_free(lock)


def test_a_client_that_comes_again_waits_for_the_others() -> None:
    lock, order = CallLock(), list[str]()

    def run(client: str) -> None:
        with RequestScope(client[0]), lock.acquire():
            order.append(client)
            if client == "b1":  # its next call comes before its first has ended
                again.start()
                while len(lock.waiting) < 2:
                    time.sleep(0.001)

    again = threading.Thread(target=run, args=("b2",))
    threads = [threading.Thread(target=run, args=(name,)) for name in ("a1", "a2", "b1")]
    with RequestScope("c"), lock.acquire():
        for i, thread in enumerate(threads):
            thread.start()
            while len(lock.waiting) <= i:
                time.sleep(0.001)
    for thread in (*threads, again):
        thread.join()
    assert order == ["a1", "b1", "a2", "b2"]
