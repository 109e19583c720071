"""`llama-cffi perplexity` and `score` against numpy over the logits."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.command_line import PROGRAM, Runner
from support.tiny_gguf import write_tiny

from llama_cffi import Batch, Context, Model

N_CTX, N_CHUNKS = 64, 3
TEXT = "".join(chr(ord("a") + (i * i + i // 7) % 26) for i in range(N_CTX * N_CHUNKS + 10))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the same vocabulary and other weights."""
    return write_tiny(tmp_path_factory.mktemp("models") / "other.gguf", seed=7)


def chunk_logprobs(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probabilities of the second half of each chunk, and the tokens there."""
    rows, targets = [], []
    with Model(path) as model, Context(model, n_ctx=N_CTX, n_batch=512, n_threads=1) as context:
        tokens = model.vocab.tokenize(TEXT)
        for i in range(N_CHUNKS):
            chunk = tokens[i * N_CTX : (i + 1) * N_CTX]
            context.memory.clear()
            batch = Batch(N_CTX)
            for pos, token in enumerate(chunk[:-1]):
                batch.add(token, pos, (0,), True)
            context.decode(batch)
            for pos in range(N_CTX // 2, N_CTX - 1):
                x = context.logits(pos).astype(np.float64)
                x -= x.max()
                rows.append(x - np.log(np.exp(x).sum()))
                targets.append(chunk[pos + 1])
    return np.array(rows), np.array(targets)


def test_perplexity_is_that_of_numpy_over_the_logits(
    run: Runner, tiny_model: Path, tmp_path: Path
) -> None:
    rows, targets = chunk_logprobs(tiny_model)
    nll = -rows[np.arange(len(targets)), targets]
    wanted = math.exp(nll.mean())
    error = wanted * math.sqrt((np.mean(nll**2) - nll.mean() ** 2) / (len(nll) - 1))
    command = ("perplexity", "-m", tiny_model, "-t", "1", "-c", N_CTX)
    found = run.json(*command, stdin=TEXT + "\n")
    assert found["perplexity"] == pytest.approx(wanted, rel=1e-4)
    assert found["error"] == pytest.approx(error, rel=1e-3)
    assert (found["n_chunks"], found["n_tokens"]) == (N_CHUNKS, len(nll))
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    line = run.text(*command, "-f", file)
    assert line == f"Final estimate: PPL = {found['perplexity']:.4f} +/- {found['error']:.5f}\n"
    one = run.json(*command, "-f", file, "--chunks", 1)
    n = len(nll) // N_CHUNKS
    assert one["perplexity"] == pytest.approx(math.exp(nll[:n].mean()), rel=1e-4)


def test_divergence_is_that_of_numpy_over_the_logits(
    run: Runner, tiny_model: Path, other: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.npz"
    made = run.json(
        "perplexity", "-m", other, "-t", "1", "-c", N_CTX, TEXT, "--kl-divergence-base", base
    )
    command = ("perplexity", "-m", tiny_model, "-t", "1", "--kl-divergence-base", base)
    found = run.json(*command, "--kl-divergence")
    (p, targets), (q, _) = chunk_logprobs(other), chunk_logprobs(tiny_model)
    kld = (np.exp(p) * (p - q)).sum(1)
    at = np.arange(len(targets)), targets
    dp = np.exp(q[at]) - np.exp(p[at])
    assert found["n_tokens"] == len(kld)
    assert found["kld"]["mean"] == pytest.approx(kld.mean(), rel=1e-3)
    assert found["kld"]["Maximum"] == pytest.approx(kld.max(), rel=1e-3)
    assert found["kld"]["Median"] == pytest.approx(np.median(kld), rel=1e-3)
    assert found["dp"]["mean"] == pytest.approx(dp.mean(), abs=1e-5)
    assert found["dp_rms"] == pytest.approx(np.sqrt(np.mean(dp**2)), rel=1e-2)
    same = np.mean(p.argmax(1) == q.argmax(1))
    assert found["same_top"]["value"] == pytest.approx(same, abs=0.02)
    assert found["perplexity_base"]["value"] == pytest.approx(made["perplexity"], rel=1e-3)
    report = run.text(*command, "--kl-divergence", "--chunks", 2)
    for name in ("Mean PPL(Q)", "Mean    KLD:", "99.9%   KLD:", "Median  Δp:", "Same top p:"):
        assert name in report
    itself = run.json(
        "perplexity", "-m", other, "-t", "1", "--kl-divergence-base", base, "--kl-divergence"
    )
    assert itself["kld"]["Maximum"] < 1e-4


def test_score_gives_the_probabilities_of_the_scorer(run: Runner, tiny_model: Path) -> None:
    from llama_cffi import Scorer

    with Scorer(tiny_model, n_threads=1) as scorer:
        shares = scorer.choice_probabilities("ab", ["c", "de"])
        scores = scorer.score_continuations("ab", ["c", "de"])
    command = ("score", "-m", tiny_model, "-t", "1", "ab")
    found = run.json(*command, "c", "de")["continuations"]
    assert [row["probability"] for row in found] == pytest.approx(shares, abs=1e-4)
    assert [row["logprob"] for row in found] == pytest.approx([s.logprob for s in scores], abs=1e-3)
    assert [row["n_tokens"] for row in found] == [1, 2]
    assert sum(found[1]["logprobs"]) == pytest.approx(found[1]["logprob"])
    lines = [line.split("\t") for line in run.text(*command, stdin="c\nde\n").splitlines()]
    assert [(line[2], line[3]) for line in lines] == [("1", "c"), ("2", "de")]


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["perplexity", "abc"], "", "the text has 3 tokens, fewer than a chunk of 64"),
        (["perplexity", "-f", "nowhere"], "", "cannot read nowhere"),
        (["perplexity"], "", "the text has 0 tokens"),
        (["perplexity", TEXT, "--kl-divergence-base", "no/such/f"], "", "cannot write no/such/f"),
        (["score", "a"], "", "there is no continuation"),
        (["score", "", "a"], "", "there is no token before the first one"),
    ],
)
def test_wrong_input_is_one_sentence(
    args: list[str], stdin: str, message: str, run: Runner, tiny_model: Path
) -> None:
    more = ["-c", "64"] if args[0] == "perplexity" else []
    assert message in run.error(args[0], "-m", tiny_model, *more, *args[1:], stdin=stdin)


def test_a_wrong_base_file_is_one_sentence(run: Runner, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.npz"

    def compared(model: Path) -> str:
        return run.error("perplexity", "-m", model, "--kl-divergence", "--kl-divergence-base", base)

    assert "cannot read" in compared(tiny_model)
    base.write_bytes(b"not a file of numpy")
    assert "is not a file of log-probabilities" in compared(tiny_model)
    base.unlink()
    run.text("perplexity", "-m", tiny_model, "-c", N_CTX, TEXT, "--kl-divergence-base", base)
    larger = write_tiny(tmp_path / "larger.gguf", control=["<a>"])
    assert "has 260 tokens and the base model 259" in compared(larger)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["perplexity", "a", "--kl-divergence"], "add --kl-divergence-base FILE"),
        (["perplexity", "a", "--kl-divergence", "--kl-divergence-base", "x"], "leave them out"),
        (["perplexity", "a", "--chunks", "0"], "at least 1, or -1"),
        (["perplexity", "a", "-c", "2"], "must be at least 4, got 2"),
        (["score"], "arguments are required: PROMPT"),
        (["score", "a", "b", "-f", "c"], "not both"),
    ],
)
def test_wrong_arguments_are_usage_errors(args: list[str], message: str, run: Runner) -> None:
    assert message in run.usage(*args)


def test_the_running_value_is_for_a_terminal(tiny_model: Path) -> None:
    pty = pytest.importorskip("pty")
    main_end, terminal = pty.openpty()
    with open(terminal, "wb", buffering=0) as stderr:
        command = [PROGRAM, "perplexity", "-m", tiny_model, "-t", "1", "-c", str(N_CTX), TEXT]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, check=True)
        with open(main_end, "rb", buffering=0) as shown:
            text = shown.read(65536).decode()
    assert re.fullmatch(r"\[1\][\d.]+,\[2\][\d.]+,\[3\][\d.]+,\s+", text)
    last = text.split("]")[-1].split(",")[0]
    assert done.stdout.decode().startswith(f"Final estimate: PPL = {last} +/- ")
