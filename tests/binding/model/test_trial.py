"""Models that are tried in a child process: crashes, hangs, and what is remembered."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.architectures import WRITE, write_gemma3
from support.builds import MIDDLE
from support.children import Child

from llama_cffi import Engine, InferenceEngine, Llama, Model
from llama_cffi.binding.model import trial
from llama_cffi.demo import model_path
from llama_cffi.errors import LlamaError, ModelLoadError, ValidationError

Commands = list[list[str]]
CRASH = "import os; print('@started', flush=True); os.write(2, b'x.c:1: GGML_ASSERT(a > b) failed'); os.abort()"  # noqa: E501
HANG = "import time; print('@started', flush=True); time.sleep(60)"
NOT_STARTED = "raise ImportError('no such module')"


@pytest.fixture
def unusual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model about which the rules do not decide, in a process that knows no verdict."""
    monkeypatch.setenv("LLAMA_CFFI_CHECK", "auto")
    monkeypatch.setenv("LLAMA_CFFI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_verdicts", {})
    WRITE["gpt2"](tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


@pytest.fixture
def child_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Commands]:
    """Make the child run other code; returns the list of the commands that were started."""

    def replace(code: str) -> Commands:
        started: Commands = []

        def command(*arguments: str) -> list[str]:
            started.append(list(arguments))
            return [sys.executable, "-c", code]

        monkeypatch.setattr(trial, "child_command", command)
        return started

    return replace


def test_a_crash_of_the_child_is_an_error_that_is_remembered(
    unusual: Path, child_is: Callable[[str], Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = child_is(CRASH)
    for verdicts in ({}, None, {}):  # by the file's hash, in this process and in the cache
        if verdicts is not None:
            monkeypatch.setattr(trial, "_verdicts", verdicts)
        with pytest.raises(ModelLoadError, match=r"ended with \w+: GGML_ASSERT\(a > b\) failed"):
            Model(unusual)
    assert len(started) == 1
    copy = unusual.with_name("copy.gguf")
    copy.write_bytes(unusual.read_bytes())
    with pytest.raises(ModelLoadError, match="check='rules' loads it all the same"):
        Model(copy)
    assert len(started) == 1
    Model(unusual, check="rules").close()


def test_a_child_that_hangs_is_ended(
    unusual: Path, child_is: Callable[[str], Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    child_is(HANG)
    monkeypatch.setattr(trial, "_SECONDS", 1)
    monkeypatch.setattr(trial, "cpu_seconds", iter([5.0, 5.9]).__next__)
    with pytest.raises(ModelLoadError, match="gave no answer within 1 s"):
        Model(unusual)


def test_a_child_that_gets_no_processor_decides_nothing(
    unusual: Path, child_is: Callable[[str], Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = child_is(HANG)
    monkeypatch.setattr(trial, "_SECONDS", 1)
    monkeypatch.setattr(trial, "cpu_seconds", iter([5.0, 5.1, 5.1, 5.2]).__next__)
    for _ in range(2):
        Model(unusual).close()
    assert len(started) == 2


def test_without_child_processes_the_rules_have_to_do(
    unusual: Path, child_is: Callable[[str], Commands], monkeypatch: pytest.MonkeyPatch
) -> None:
    child_is(NOT_STARTED)
    Model(unusual).close()
    with pytest.raises(LlamaError, match="no child process could be started"):
        Model(unusual, check="child")
    started = child_is(CRASH)
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # its executable is another program
    Model(unusual).close()
    assert not started


def test_ordinary_and_large_models_are_not_tried(
    unusual: Path,
    tiny_model: Path,
    child_is: Callable[[str], Commands],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = child_is(CRASH)
    for path in (tiny_model, model_path()):
        Model(path).close()
    monkeypatch.setattr(trial, "_SMALL_BYTES", 1000)
    Model(unusual).close()
    assert not started


@pytest.mark.parametrize(
    "load",
    [
        lambda path: Model(path, check="child"),
        lambda path: Llama(path, check="child"),
        lambda path: Engine(path, check="child"),
        lambda path: InferenceEngine(path, check="child"),
    ],
)
def test_every_class_takes_the_option(
    unusual: Path,
    tiny_model: Path,
    child_is: Callable[[str], Commands],
    load: Callable[[Path], object],
) -> None:
    child_is(CRASH)
    with pytest.raises(ModelLoadError, match="was tried in a child process"):
        load(tiny_model)


def test_a_model_that_works_is_tried_once(unusual: Path) -> None:
    Model(unusual).close()
    cached = list((unusual.parent / "cache" / "models").iterdir())
    assert len(cached) == 1
    written = cached[0].stat().st_mtime_ns
    Model(unusual).close()
    assert cached[0].stat().st_mtime_ns == written


def test_a_wrong_name_lists_the_valid_ones(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="check='x' is not one of auto, child, rules"):
        Model(tiny_model, check="x")
    monkeypatch.setenv("LLAMA_CFFI_CHECK", "y")
    with pytest.raises(ValidationError, match="LLAMA_CFFI_CHECK='y'"):
        Model(tiny_model)


def test_a_real_crash(child: Child, tmp_path: Path) -> None:
    """Without a layer of full attention, b6673 asserts; newer builds run such a model."""
    write_gemma3(tmp_path / "m.gguf", n_layer=2, name=str(tmp_path))  # not in the cache
    code = """
        import sys, llama_cffi
        try:
            llama_cffi.Engine(sys.argv[1], n_ctx=64, n_threads=1)
        except llama_cffi.ModelLoadError as e:
            print(e)
    """
    said = child(code, tmp_path / "m.gguf", LLAMA_CFFI_BUILD=MIDDLE, LLAMA_CFFI_CHECK="auto")
    assert "which ended with SIGABRT: GGML_ASSERT(buffer) failed" in said.stdout, said.stderr
    assert "build b6673" in said.stdout
