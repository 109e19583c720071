"""How many threads are used: what the machine, its container and the caller allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_cffi import Engine, InferenceEngine, Llama
from llama_cffi.binding import processors
from llama_cffi.binding.processors import thread_count
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


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity")
def test_every_face_starts_from_the_processors_of_this_process(tiny_model: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with Engine(tiny_model, n_ctx=64) as engine, Llama(tiny_model, n_ctx=64) as llm:
            assert engine.context.n_threads == 1
            assert llm.context.n_threads == 1
        with InferenceEngine(tiny_model, 2, 64, start=False) as many:
            assert many.context.n_threads == 1
    finally:
        os.sched_setaffinity(0, before)
