from __future__ import annotations

import threading

import pytest
from support.injection import interrupted_everywhere

from llama_cffi.engine.lock import CallLock
from llama_cffi.errors import ValidationError


def free(turns: CallLock) -> bool:
    with turns.take(wait=False) as mine:
        return mine


def test_one_at_a_time() -> None:
    turns, order = CallLock(), []

    def run(name: str, taken: threading.Event, go: threading.Event) -> None:
        with turns.take() as mine:
            assert mine
            order.append(name)
            taken.set()
            go.wait(30)
            order.append(name)

    events = [(threading.Event(), threading.Event()) for _ in range(2)]
    first = threading.Thread(target=run, args=("a", *events[0]))
    second = threading.Thread(target=run, args=("b", *events[1]))
    first.start()
    assert events[0][0].wait(30)
    second.start()
    assert not events[1][0].wait(0.05)
    assert not free(turns)
    with turns.take(0.01) as mine:
        assert not mine
    events[0][1].set()
    assert events[1][0].wait(30)
    events[1][1].set()
    first.join()
    second.join()
    assert order == ["a", "a", "b", "b"]
    assert free(turns)


def test_waiting_for_oneself() -> None:
    turns = CallLock()
    with turns.take():
        with pytest.raises(ValidationError, match="busy in this thread"), turns.take():
            pass
        with turns.take(wait=False) as mine:
            assert not mine
        assert turns.holder == threading.get_ident()
    assert turns.holder is None


def test_ctrl_c_at_any_moment_frees_it() -> None:
    """Python looks for signals after each call: also after the one that takes the lock."""
    turns = CallLock()

    def run() -> None:
        with turns.take():
            pass

    n = 0
    for n in interrupted_everywhere(run, CallLock.take, CallLock.move_here):  # noqa: B007
        assert not turns._lock.locked()
        assert turns.holder is None
    assert n > 2
