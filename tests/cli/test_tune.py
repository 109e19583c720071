"""`llama-cffi tune`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.command_line import Runner

from llama_cffi import demo
from llama_cffi.binding.tuned import TunedSettings
from llama_cffi.tuning import TuneResult, TuneStep
from llama_cffi.tuning.timing import Request


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call of a `tune` that measures nothing."""
    calls: list[dict[str, Any]] = []

    def fake(model: object, **options: Any) -> TuneResult:
        calls.append({"model": model, **options})
        settings = TunedSettings(n_threads=2, n_threads_batch=2)
        step = TuneStep("check", settings, 0.5, 0.4, 0.6, 0.7, 0.3, 7)
        failed = TuneStep("kernels", TunedSettings(flash_attn=True), error="no memory")
        return TuneResult(
            "m\x1b.gguf", "npm:1", settings, 0.5, Request(512, 128), 3.0,
            {"flash_attn": None, "cpu_variant": ""}, {"n_threads": [2]}, (failed, step), "file",
            waited=0.5,
        )  # fmt: skip

    monkeypatch.setattr("llama_cffi.tuning.tune", fake)
    return calls


def test_options_reach_python(run: Runner, asked: list[dict[str, Any]]) -> None:
    done = run("tune")
    assert done.code == 0
    assert asked[-1] == {
        "model": demo.model_path(), "seconds": 60.0, "n_prompt": 512, "n_gen": 128,
        "n_gpu_layers": -1, "dry_run": False, "progress": False,
    }  # fmt: skip
    run("tune", "-p", "9", "-n", "8", "--seconds", "7", "-ngl", "3", "--dry-run")
    assert list(asked[-1].values())[1:] == [7.0, 9, 8, 3, True, False]


@pytest.mark.usefixtures("asked")
def test_the_table_tells_what_is_kept(run: Runner) -> None:
    lines = run("tune").out.splitlines()
    assert lines[0] == "m\ufffd.gguf, build npm:1: a prompt of 512 and an answer of 128 tokens"
    assert lines[1] == "defaults: flash_attn=auto, cpu_variant=the only one"
    assert lines[2].split() == ["settings", "time", "prompt", "answer"]
    assert lines[3].split() == ["kernels", "flash_attn=on", "no", "memory"]
    assert lines[4].endswith("n_threads=2, n_threads_batch=2  0.50 (0.40 to 0.60)  0.70    0.30")
    assert lines[5] == "kept in file: n_threads=2, n_threads_batch=2; 0.50 of the time"
    assert lines[6].startswith(
        "the machine is busy: threads waited for a processor 50% of the time"
    )


@pytest.mark.usefixtures("asked")
def test_json_has_everything(run: Runner) -> None:
    found = json.loads(run("tune", "--json").out)
    assert found["settings"] == {"n_threads": 2, "n_threads_batch": 2}
    assert found["request"] == {"n_prompt": 512, "n_gen": 128, "n_repeat": 1}
    assert found["steps"][1]["decode_ratio"] == 0.3


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["-m", "no.gguf"], 1, "no.gguf"),
        (["--seconds", "0"], 1, "seconds=0"),
        (["-p", "0"], 2, "must be at least 1"),
        (["--second", "x"], 2, "must be a number"),
    ],
)
def test_wrong_arguments_are_told(run: Runner, argv: list[str], code: int, message: str) -> None:
    done = run("tune", *argv)
    assert done.code == code
    assert message in done.err
    assert done.out == ""
