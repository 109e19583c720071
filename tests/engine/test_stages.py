from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_cffi import Engine, ValidationError


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=128, n_threads=1) as engine:
        yield engine


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("prompt", r"<\|im_start\|>user\ntest<\|im_end\|>\n<\|im_start\|>assistant\n"),
        ("tokenize", r"\[OK\] tokenize: 23 toks"),
        ("prefill", r"\[OK\] prefill in \d+\.\d{3}s"),
        ("sample", r"\[OK\] sample: token \d+ after \d+\.\d{3}s"),
        ("piece", r"\[OK\] piece: b'.*'"),
        ("push", r"\[OK\] push: \d bytes"),
    ],
)
@pytest.mark.parametrize("prefix", ["LLAMA_CFFI_", "POLARIS_"])
def test_generation_ends_at_the_stage(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    line: str,
    prefix: str,
) -> None:
    text = engine.generate("test", n_predict=3, temperature=0)
    monkeypatch.setenv(prefix + "STAGE", stage)
    result = engine.generate("test", n_predict=3, temperature=0)
    assert re.fullmatch(line, result, re.S), result
    out, err = capsys.readouterr()
    assert (out, err) == ("", result + "\n")
    streamed = "".join(engine.stream("test", n_predict=3, temperature=0))
    assert re.fullmatch(line, streamed, re.S)
    assert engine.stats.n_generated <= 1
    monkeypatch.delenv(prefix + "STAGE")
    assert engine.generate("test", n_predict=3, temperature=0) == text


def test_unknown_stage(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARIS_STAGE", "all")
    with pytest.raises(ValidationError, match=r"POLARIS_STAGE='all'.*tokenize"):
        engine.generate("test")
