"""How many threads are used: what the machine, its container and the caller allow."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from llama_cffi import Engine, InferenceEngine, Llama
from llama_cffi.binding import processors
from llama_cffi.binding.processors import run_queue_waits, thread_count
from llama_cffi.errors import ValidationError


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 6 cores with 12 hyper-threads."""
    monkeypatch.setattr(processors, "physical_cores", lambda: 6)
    monkeypatch.setattr(processors, "usable_cpus", lambda: 12)


@pytest.mark.usefixtures("cores")
def test_the_default_is_one_thread_for_each_physical_core(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count("n", 0) == 6
    assert thread_count("n", 8) == 8
    assert thread_count("n", 100) == 12
    for text, expected in {"3": 3, " 100 ": 12, "0": 6, "": 6}.items():
        monkeypatch.setenv("LLAMA_CFFI_N_THREADS", text)
        assert thread_count("n", 0) == expected
        assert thread_count("n", 5) == 5


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("text", ["many", "-1", "1.5", "2 3", "²"])
def test_a_variable_that_is_no_number_of_threads_is_named(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("LLAMA_CFFI_N_THREADS", text)
    with pytest.raises(ValidationError, match=f"LLAMA_CFFI_N_THREADS={text!r} is not a number of"):
        thread_count("n", 0)


def test_every_face_starts_from_the_processors_of_this_process(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (3, 1):
        monkeypatch.setattr(processors, "usable_cpus", lambda n=n: n)
        monkeypatch.setattr(processors, "physical_cores", lambda n=n: n)
        with Engine(tiny_model, n_ctx=64) as engine, Llama(tiny_model, n_ctx=64) as llm:
            assert engine.context.n_threads == llm.engine.context.n_threads == n
        with InferenceEngine(tiny_model, 2, 64, start=False) as many:
            assert many.context.n_threads == many.context.n_threads_batch == n


def test_the_wait_of_each_thread_of_the_process_is_read() -> None:
    waits = run_queue_waits()
    if sys.platform == "linux":
        assert threading.get_native_id() in waits
    assert all(seconds >= 0 for seconds in waits.values())
