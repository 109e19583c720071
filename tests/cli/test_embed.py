"""`llama-cffi embed` and `rerank`: the numbers of `Embedder`, in every format."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from support.command_line import PROGRAM, Runner
from support.tiny_encoders import write_bert

from llama_cffi import Embedder

TEXTS = ["abc", "no", "pappaal"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _ = write_bert(tmp_path_factory.mktemp("bert") / "bert.gguf")
    return path


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert") / "ranker.gguf"
    return write_bert(path, pooling=gguf.PoolingType.RANK, head=True)[0]


@pytest.fixture(scope="module")
def vectors(bert: Path) -> NDArray[np.float32]:
    with Embedder(bert, pooling="mean", n_threads=1) as embedder:
        found = embedder.embed(TEXTS)
    assert isinstance(found, np.ndarray)
    return found


def test_every_format_has_the_vectors_of_the_embedder(
    run: Runner, bert: Path, vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    command = ("embed", "-m", bert, "-t", "1")
    whole = run.json(*command, *TEXTS)
    assert [item["index"] for item in whole["data"]] == [0, 1, 2]
    assert whole["usage"]["total_tokens"] > 3
    found = np.array([item["embedding"] for item in whole["data"]], np.float32)
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    lines = run.text(*command, "-o", "jsonl", stdin="\n".join(TEXTS)).splitlines()
    assert [json.loads(line)["embedding"] for line in lines] == [
        item["embedding"] for item in whole["data"]
    ]
    file = tmp_path / "lines.txt"
    file.write_text("abc\n\nno\r\npappaal\n", encoding="utf-8")
    table = run.text(*command, "-o", "csv", "-f", file)
    np.testing.assert_array_equal(np.loadtxt(io.StringIO(table), delimiter=","), found)
    out = tmp_path / "out.npy"
    assert run.text(*command, *TEXTS, "-o", "npy", "--out", out) == ""
    np.testing.assert_array_equal(np.load(out), found)


def test_npy_goes_through_a_pipe(bert: Path, vectors: NDArray[np.float32]) -> None:
    command = [PROGRAM, "embed", "-m", bert, "-t", "1", "-o", "npy"]
    done = subprocess.run(command, input="\n".join(TEXTS).encode(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    np.testing.assert_allclose(np.load(io.BytesIO(done.stdout)), vectors, atol=1e-5)


def test_pooling_and_length_are_options(run: Runner, bert: Path) -> None:
    def vector(*args: str) -> NDArray[np.float64]:
        item = run.json("embed", "-m", bert, "-t", "1", "abc", *args)["data"][0]
        return np.array(item["embedding"])

    assert np.linalg.norm(vector()) == pytest.approx(1, abs=1e-5)
    assert abs(np.linalg.norm(vector("--no-normalize")) - 1) > 1e-3
    assert np.abs(vector("--pooling", "cls") - vector("--pooling", "mean")).max() > 1e-3


def test_the_demo_model_embeds_too(run: Runner) -> None:
    assert len(run.text("embed", "hello", "-o", "csv").split(",")) > 8


def test_documents_are_sorted_by_score(run: Runner, ranker: Path) -> None:
    with Embedder(ranker, pooling="rank", n_threads=1) as embedder:
        wanted = embedder.rerank("abc", TEXTS)
    command = ("rerank", "-m", ranker, "-t", "1", "abc")
    found = run.json(*command, *TEXTS)["results"]
    assert [item["index"] for item in found] == [result.index for result in wanted]
    assert [item["document"]["text"] for item in found] == [r.document for r in wanted]
    scores = [item["relevance_score"] for item in found]
    assert scores == pytest.approx([r.score for r in wanted], abs=1e-5)
    lines = run.text(*command, "--top-n", "2", stdin="\n".join(TEXTS)).splitlines()
    rows = [line.split("\t") for line in lines]
    assert [(row[1], row[2]) for row in rows] == [(str(r.index), r.document) for r in wanted[:2]]


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["embed"], "", "there is no text: the input has no line with text"),
        (["embed"], " \n\r\n", "there is no text"),
        (["embed"], b"a\n\xff", "stdin is not UTF-8 text: byte 0xff at offset 2"),
        (["embed", "-f", "nowhere"], "", "cannot read nowhere"),
        (["embed", "a " * 90], "", "text 0 has 92 tokens and the model supports 64"),
        (["embed", "a", "--out", "no/such/file"], "", "cannot write no/such/file"),
        (["rerank", "abc", "a " * 90], "", "document 0 has"),
        (["rerank", "abc"], "", "there is no document"),
    ],
)
def test_wrong_input_is_one_sentence(
    args: list[str], stdin: str | bytes, message: str, run: Runner, bert: Path, ranker: Path
) -> None:
    model = ranker if args[0] == "rerank" else bert
    assert message in run.error(args[0], "-m", model, "-t", "1", *args[1:], stdin=stdin)


def test_a_model_without_a_head_is_no_reranker(run: Runner, tiny_model: Path) -> None:
    assert "rank" in run.error("rerank", "-m", tiny_model, "-t", "1", "a", "b")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["embed", "a", "-f", "b"], "not both"),
        (["embed", "a", "-o", "xml"], "invalid choice: 'xml'"),
        (["embed", "a", "--pooling", "rank"], "invalid choice: 'rank'"),
        (["rerank"], "arguments are required: QUERY"),
        (["rerank", "a", "b"], "give a reranker with -m"),
        (["rerank", "-m", "x", "a", "b", "--top-n", "0"], "must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_usage_errors(args: list[str], message: str, run: Runner) -> None:
    assert message in run.usage(*args)


def test_errors_are_json_with_json(run: Runner) -> None:
    done = run("embed", "a", "-m", "nowhere.gguf", "--json")
    assert (done.code, done.err) == (1, "")
    assert json.loads(done.out)["error"]["type"] == "ModelLoadError"
