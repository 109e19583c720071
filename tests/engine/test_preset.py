"""What `Engine` takes over from Polaris Core besides its prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cffi import Engine, Model


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        yield engine


def test_a_prompt_that_is_too_long_loses_its_beginning_and_the_log_says_so(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    text = "".join(chr(97 + i % 26) for i in range(400))
    for ask in (
        lambda: engine.generate(text, max_tokens=4, raw=True),
        lambda: engine.generate(text, max_tokens=4),
        lambda: engine.generate_chat([("user", text)], 4),
        lambda: "".join(engine.stream(text, max_tokens=4)),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ask()
        stats = engine.stats
        assert stats.n_prompt == engine.n_ctx - 16 - 4
        (record,) = caplog.records
        assert f"oldest {stats.n_truncated} tokens" in record.message
        assert engine.tokens[:3] != engine.tokenize(text)[:3]
    caplog.clear()
    assert engine.generate("short", max_tokens=1) is not None
    assert not caplog.records


def test_n_gpu_layers_of_the_environment_applies_unless_given(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    init = Model.__init__

    def noted(self: Model, *args: Any, n_gpu_layers: int = -1, **options: Any) -> None:
        seen.append(n_gpu_layers)
        init(self, *args, n_gpu_layers=n_gpu_layers, **options)

    monkeypatch.setattr(Model, "__init__", noted)
    monkeypatch.setenv("POLARIS_N_GPU_LAYERS", "7")
    for given in ({}, {"n_gpu_layers": -1}, {"n_gpu_layers": 0}, {"n_gpu_layers": 3}):
        Engine(tiny_model, n_ctx=64, **given).close()
    assert seen == [7, 7, 0, 3]
