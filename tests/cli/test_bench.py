"""`llama-cffi bench`: llama-bench's columns and fields; no assertion on speed."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Runner

from llama_cffi.cli import bench
from llama_cffi.cli.bench import numbers

FIELDS = {
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename",
    "model_type", "model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads", "type_k",
    "type_v", "n_gpu_layers", "split_mode", "main_gpu", "flash_attn", "tensor_split", "n_prompt",
    "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns",
    "samples_ts",
}  # fmt: skip
SHORT = ("-p", "16", "-n", "4", "-t", "1", "-r", "2")


def bench_of(run: Runner, model: Path, *args: object) -> str:
    """Return what is printed; a busy machine may be told on stderr."""
    done = run("bench", "-m", model, *SHORT, *args)
    assert done.code == 0
    assert done.err == "" or done.err.startswith("warning: ")
    return done.out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("512", [512]),
        ("128,256", [128, 256]),
        ("1-4", [1, 2, 3, 4]),
        ("0-100+50", [0, 50, 100]),
        ("1-9*2", [1, 2, 4, 8]),
        ("-1,0", [-1, 0]),
    ],
)
def test_lists_and_ranges_are_llama_bench_s(text: str, wanted: list[int]) -> None:
    assert numbers(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "4-1", "1-4+0", "1-4*1", "0-4*2", "0-99999", "1;2"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        numbers(text)


def test_json_has_the_fields_and_consistent_numbers(run: Runner, tiny_model: Path) -> None:
    results = json.loads(bench_of(run, tiny_model, "-d", "0,8", "-pg", "8,2", "-o", "json"))
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in results] == [
        (16, 0, 0), (0, 4, 0), (8, 2, 0), (16, 0, 8), (0, 4, 8), (8, 2, 8),
    ]  # fmt: skip
    for result in results:
        assert result.keys() >= FIELDS
        n = result["n_prompt"] + result["n_gen"]
        assert len(result["samples_ns"]) == 2
        rates = [n * 1e9 / ns for ns in result["samples_ns"]]
        assert result["samples_ts"] == pytest.approx(rates)
        assert result["avg_ts"] == pytest.approx(sum(rates) / 2)
        assert result["avg_ns"] == pytest.approx(sum(result["samples_ns"]) / 2, abs=1)
        assert (result["n_threads"], result["model_filename"]) == (1, str(tiny_model))


def test_the_table_has_llama_bench_s_columns(run: Runner, tiny_model: Path) -> None:
    lines = bench_of(run, tiny_model, "-b", "64", "-d", "4").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert rows[0] == ["model", "size", "params", "backend", "threads", "n_batch", "test", "t/s"]
    assert [row[6] for row in rows[2:]] == ["pp16 @ d4", "tg4 @ d4"]
    assert all(" ± " in row[7] for row in rows[2:])
    assert lines[-1].startswith("build: ")


def test_csv_and_json_lines_have_a_row_for_each_test(run: Runner, tiny_model: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(bench_of(run, tiny_model, "-o", "csv"))))
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [("16", "0"), ("0", "4")]
    assert {*rows[0]} >= FIELDS - {"samples_ns", "samples_ts"}
    lines = bench_of(run, tiny_model, "-o", "jsonl", "-n", "0", "-fa", "off,on").splitlines()
    assert [json.loads(line)["flash_attn"] for line in lines] == ["off", "on"]


def test_builds_are_compared_in_processes_of_their_own(run: Runner, tiny_model: Path) -> None:
    from llama_cffi import get_library

    build = get_library().build
    both = f"{build.spec},path:{build.library}"
    text = bench_of(run, tiny_model, "--build", both, "-n", "0")
    rows = [line.split("|")[1].strip() for line in text.splitlines()[2:4]]
    assert rows == both.split(",")
    failed = run("bench", "-m", tiny_model, *SHORT, "--build", "path:/no/such/folder")
    assert failed.code == 1
    assert failed.err.startswith("error: with path:/no/such/folder: ")


def test_a_busy_machine_is_told(
    run: Runner, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_cffi.cli import bench_run

    measure = bench_run.measure

    def waiting(*args: Any) -> Any:
        return ({**result, "waited": 0.5} for result in measure(*args))

    monkeypatch.setattr(bench_run, "measure", waiting)
    done = run("bench", "-m", tiny_model, *SHORT)
    assert "threads waited for a processor 50% of the time" in done.err
    assert bench._public({"waited": 1, "n_gen": 2}) == {"n_gen": 2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-p", "0", "-n", "0"], "nothing to run"),
        (["-p", "x"], "must be numbers such as 512"),
        (["-pg", "512"], "must be PP,TG"),
        (["-r", "0"], "must be at least 1, got 0"),
        (["-fa", "maybe"], "must be on, off or auto, got 'maybe'"),
        (["-o", "sql"], "invalid choice: 'sql'"),
    ],
)
def test_wrong_arguments_are_usage_errors(args: list[str], message: str, run: Runner) -> None:
    assert message in run.usage("bench", *args)


def test_wrong_models_and_types_are_one_sentence(run: Runner, tiny_model: Path) -> None:
    assert "no model file at nowhere.gguf" in run.error("bench", "-m", "nowhere.gguf")
    assert "type_k" in run.error("bench", "-m", tiny_model, *SHORT, "-ctk", "q9")
